//! `murmesh members`. JSON: a list of `{node, connected, last_seen, addresses, tunnel_port, listeners, version}`,
//! where `last_seen` is a time or null and `listeners` a number.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::output::{self, Format, relative, rfc3339};
use super::{ReadOptions, daemon};
use crate::api::v1::Snapshot;
use crate::catalog::{Catalog, Host};
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
    node: String,
    connected: bool,
    last_seen: Option<String>,
    addresses: Vec<String>,
    tunnel_port: u16,
    listeners: usize,
    version: String,
}

/// Prints the hosts that the daemon on this host knows.
///
/// # Errors
/// When no daemon answers.
pub fn run(arguments: MembersArgs) -> anyhow::Result<ExitCode> {
    let catalog = fetch(&arguments.read)?;
    let hosts = catalog.hosts.values();
    match arguments.read.output {
        Format::Json => {
            output::print_json(&hosts.map(|host| Member::from(host.as_ref())).collect::<Vec<_>>())?
        }
        Format::Table => {
            let now = SystemTime::now();
            let rows: Vec<_> = hosts.map(|host| row(host, now)).collect();
            output::print(&output::table(["HOST", "CONNECTED", "LAST SEEN", "ADDRESSES", "VERSION"], &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The catalog of the daemon on this host.
pub(super) fn fetch(read: &ReadOptions) -> anyhow::Result<Catalog> {
    Ok(Catalog::try_from(snapshot(read)?)?)
}

/// The same as it came.
pub(super) fn snapshot(read: &ReadOptions) -> anyhow::Result<Snapshot> {
    daemon::block_on(async {
        let mut daemon = connect(&read.run_directory.run_dir, ANY_SOCKET, "murmesh daemon").await?;
        let answer = daemon.members(crate::api::v1::MembersRequest {}).await.map_err(local_error)?;
        Ok(answer.into_inner())
    })
}

fn row(host: &Host, now: SystemTime) -> [String; 5] {
    let last_seen = if host.connected { Some(now) } else { host.last_seen };
    [
        host.node.to_string(),
        if host.connected { "yes" } else { "no" }.to_owned(),
        last_seen.map_or("never".to_owned(), |time| relative(time, now)),
        host.report.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        host.report.version.clone(),
    ]
}

impl From<&Host> for Member {
    fn from(host: &Host) -> Self {
        Self {
            node: host.node.to_string(),
            connected: host.connected,
            last_seen: host.last_seen.map(rfc3339),
            addresses: host.report.addresses.iter().map(ToString::to_string).collect(),
            tunnel_port: host.report.tunnel_port,
            listeners: host.report.listeners.len(),
            version: host.report.version.clone(),
        }
    }
}
