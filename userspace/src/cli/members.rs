//! `murmesh members`. JSON: a list of `{role, node, connected, last_seen, addresses, tunnel_port, listeners, version}`,
//! where `role` is "host", "server" or "leader" (the server that leads), `last_seen` a time or null, and `listeners` a
//! number. A server has no `tunnel_port` and no `listeners`, and ports in its `addresses`.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::output::{self, Format, relative, rfc3339};
use super::{ReadOptions, RunDirectory, daemon};
use crate::api::v1::Snapshot;
use crate::catalog::{Catalog, Host, Server};
use crate::cli::status::local_error;
use crate::local::{ANY_SOCKET, connect};

/// Arguments of `murmesh members`.
#[derive(Debug, Args)]
pub struct MembersArgs {
    #[command(flatten)]
    read: ReadOptions,
}

#[derive(Serialize)]
struct Member {
    role: &'static str,
    node: String,
    connected: bool,
    last_seen: Option<String>,
    #[serde(skip)]
    seen: Option<SystemTime>,
    addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listeners: Option<usize>,
    version: String,
}

/// Prints the hosts and servers that the daemon on this host knows.
///
/// # Errors
/// When no daemon answers.
pub fn run(arguments: MembersArgs) -> anyhow::Result<ExitCode> {
    let catalog = fetch(&arguments.read)?;
    let hosts = catalog.hosts.values().map(|host| Member::from(host.as_ref()));
    let members: Vec<_> = hosts.chain(catalog.servers.iter().map(Member::from)).collect();
    match arguments.read.output {
        Format::Json => output::print_json(&members)?,
        Format::Table => {
            let now = SystemTime::now();
            let rows: Vec<_> = members.iter().map(|member| member.row(now)).collect();
            let columns = ["NAME", "ROLE", "CONNECTED", "LAST SEEN", "ADDRESSES", "VERSION"];
            output::print(&output::table(columns, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The catalog of the daemon on this host.
pub(super) fn fetch(read: &ReadOptions) -> anyhow::Result<Catalog> {
    daemon::block_on(catalog(&read.run_directory, ANY_SOCKET))
}

/// The same as it came.
pub(super) fn snapshot(read: &ReadOptions) -> anyhow::Result<Snapshot> {
    daemon::block_on(ask(&read.run_directory, ANY_SOCKET))
}

/// The catalog of the first daemon that has one of `sockets`.
pub(super) async fn catalog(directory: &RunDirectory, sockets: &[&str]) -> anyhow::Result<Catalog> {
    Ok(Catalog::try_from(ask(directory, sockets).await?)?)
}

async fn ask(directory: &RunDirectory, sockets: &[&str]) -> anyhow::Result<Snapshot> {
    let mut daemon = connect(&directory.run_dir, sockets, "murmesh daemon").await?;
    let answer = daemon.members(crate::api::v1::MembersRequest {}).await.map_err(local_error)?;
    Ok(answer.into_inner())
}

impl Member {
    fn row(&self, now: SystemTime) -> [String; 6] {
        let last_seen = if self.connected { Some(now) } else { self.seen };
        [
            self.node.clone(),
            self.role.to_owned(),
            if self.connected { "yes" } else { "no" }.to_owned(),
            last_seen.map_or("never".to_owned(), |time| relative(time, now)),
            self.addresses.join(" "),
            self.version.clone(),
        ]
    }
}

impl From<&Host> for Member {
    fn from(host: &Host) -> Self {
        Self {
            role: "host",
            node: host.node.to_string(),
            connected: host.connected,
            last_seen: host.last_seen.map(rfc3339),
            seen: host.last_seen,
            addresses: host.report.addresses.iter().map(ToString::to_string).collect(),
            tunnel_port: Some(host.report.tunnel_port),
            listeners: Some(host.report.listeners.len()),
            version: host.report.version.clone(),
        }
    }
}

impl From<&Server> for Member {
    fn from(server: &Server) -> Self {
        Self {
            role: if server.leader { "leader" } else { "server" },
            node: server.node.to_string(),
            connected: server.connected,
            last_seen: server.last_seen.map(rfc3339),
            seen: server.last_seen,
            addresses: server.addresses.iter().map(ToString::to_string).collect(),
            tunnel_port: None,
            listeners: None,
            version: server.version.clone(),
        }
    }
}
