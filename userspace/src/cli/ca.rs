//! `murmesh ca`. JSON of every command: `{phase, roots: [{fingerprint, signing}], hosts: [{node, connected, last_seen,
//! trusts_newest, uses_newest_only}]}`.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;
use serde::Serialize;

use super::output::{self, Format, relative, rfc3339};
use super::{ReadOptions, daemon};
use crate::api::{time_from_unix, v1};
use crate::cli::status::local_error;
use crate::identity::token::sha256;
use crate::local::connect_to_server;

/// The commands on the root.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Tell which roots there are, and what every host has of the newest.
    Status(StatusArgs),
    /// Replace the root, in three steps. No connection is refused meanwhile.
    #[command(subcommand)]
    Rotate(RotateCommand),
}

/// The steps. Each may be repeated, and says what hosts it waits for.
#[derive(Debug, Subcommand)]
pub enum RotateCommand {
    /// Make a new root, and have every host trust it beside the old one.
    Prepare(StatusArgs),
    /// Have the new root sign, once every connected host trusts it.
    Activate(StatusArgs),
    /// End the trust in the old root, once no host uses anything that it signed.
    Retire(StatusArgs),
}

/// Arguments of every command on the root.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    read: ReadOptions,
}

#[derive(Serialize)]
struct Roots<'a> {
    phase: &'a str,
    roots: Vec<Root>,
    hosts: Vec<Host<'a>>,
}

#[derive(Serialize)]
struct Root {
    fingerprint: String,
    signing: bool,
}

#[derive(Serialize)]
struct Host<'a> {
    node: &'a str,
    connected: bool,
    last_seen: Option<String>,
    trusts_newest: bool,
    uses_newest_only: bool,
}

/// Asks the server on this host.
///
/// # Errors
/// When no server answers, or the step cannot be taken.
pub fn run(command: CaCommand) -> anyhow::Result<ExitCode> {
    use v1::RotationStep::{Activate, Prepare, Retire};
    let (arguments, step) = match command {
        CaCommand::Status(arguments) => (arguments, None),
        CaCommand::Rotate(RotateCommand::Prepare(arguments)) => (arguments, Some(Prepare)),
        CaCommand::Rotate(RotateCommand::Activate(arguments)) => (arguments, Some(Activate)),
        CaCommand::Rotate(RotateCommand::Retire(arguments)) => (arguments, Some(Retire)),
    };
    let status = daemon::block_on(async {
        let mut server = connect_to_server(&arguments.read.run_directory.run_dir).await?;
        let answer = match step {
            None => server.roots(v1::RootsRequest {}).await,
            Some(step) => server.rotate_roots(v1::RotateRootsRequest { step: step.into() }).await,
        };
        Ok(answer.map_err(local_error)?.into_inner())
    })?;
    let roots = Roots::from(&status);
    match arguments.read.output {
        Format::Json => output::print_json(&roots)?,
        Format::Table => output::print(&page(&roots, &status.hosts))?,
    }
    Ok(ExitCode::SUCCESS)
}

impl<'a> From<&'a v1::RootsStatus> for Roots<'a> {
    fn from(status: &'a v1::RootsStatus) -> Self {
        let trust = status.trust.clone().unwrap_or_default();
        let root = |der: &Vec<u8>| {
            let fingerprint = sha256(der);
            Root { fingerprint: HEXLOWER.encode(&fingerprint), signing: fingerprint[..] == trust.signing }
        };
        let host = |host: &'a v1::HostTrust| Host {
            node: &host.node,
            connected: host.connected,
            last_seen: time_from_unix(host.last_seen).map(rfc3339),
            trusts_newest: host.trusts_next,
            uses_newest_only: host.uses_next_only,
        };
        Self {
            phase: &status.phase,
            roots: trust.roots.iter().map(root).collect(),
            hosts: status.hosts.iter().map(host).collect(),
        }
    }
}

fn page(roots: &Roots<'_>, hosts: &[v1::HostTrust]) -> String {
    let now = SystemTime::now();
    let mut page = format!("{}\n", explained(roots.phase));
    for root in &roots.roots {
        let signs = if root.signing { ", signs" } else { "" };
        let _ = writeln!(page, "root {}{signs}", root.fingerprint);
    }
    for host in hosts {
        let seen = match time_from_unix(host.last_seen) {
            _ if host.connected => "connected".to_owned(),
            Some(time) => format!("seen {}", relative(time, now)),
            None => "never seen".to_owned(),
        };
        let has = match (host.trusts_next, host.uses_next_only) {
            (false, _) => "does not trust the newest root yet",
            (true, false) => "trusts the newest root, uses certificates of the old one",
            (true, true) => "uses the newest root only",
        };
        let _ = writeln!(page, "{:<20}{seen}, {has}", host.node);
    }
    page
}

fn explained(phase: &str) -> &str {
    match phase {
        "steady" => "one root",
        "prepared" => {
            "a new root is trusted beside the old one, which signs; next: `murmesh ca rotate activate`"
        }
        "activated" => "the new root signs, the old one is still trusted; next: `murmesh ca rotate retire`",
        other => other,
    }
}
