//! `cargo xtask bench`: what Murmesh costs beside plain TCP and beside other proxies, all on this machine.
//!
//! The load generator is `murmesh bench run`, once for each path, load and round; this decides who runs when.

mod bars;
mod certificates;
mod connect;
mod failover;
mod flood;
mod lane;
mod limits;
mod load;
mod micro;
mod ours;
mod peers;
mod rounds;
mod scale;
mod statistics;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use murmesh_lab::{Lab, Topology, is_root, on_interrupt, remove};

use crate::shell::{self, cargo, progress, repository};
use crate::{build, setup};
use peers::Peer;
use rounds::Rounds;

/// Names the `murmesh` that hosts of the lab run.
const BINARY: &str = "MURMESH_BIN";

/// Options of `cargo xtask bench`.
#[derive(Args, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// One short round of direct, sidecar and mesh, to see that everything works. The figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Proxies to compare with; installed when they are missing. An empty list is none.
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0..)]
    peers: Option<Vec<Peer>>,
    /// A ztunnel binary to compare with, too: it has no package. Build it from github.com/istio/ztunnel.
    #[arg(long, value_name = "FILE")]
    ztunnel: Option<PathBuf>,
    /// How many times to measure everything [default: 3, and 1 with --quick].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// Where to write results [default: docs/benchmarks/DATE, and nowhere with --quick].
    #[arg(long)]
    directory: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// Measures what the connect hook adds to `connect`, at 1, 1 000 and 100 000 endpoints.
    Connect,
    /// Measures how long it takes until a dead instance, or a dead host, gets no connections any more, and counts those
    /// that fail meanwhile.
    Failover(failover::Arguments),
    /// Measures what a flood of strangers' connections to an agent costs those whom it serves.
    Flood(flood::Arguments),
    /// Measures single steps by themselves: frames, TLS records, routes, the hooks' decision. Needs no root.
    Micro(micro::Arguments),
    /// Measures what 100, 300 and 1 000 agents take of a server, and how long a change takes to all of them.
    Scale(scale::Arguments),
    /// Times connects to an address that fail at once. `bench connect` runs this in its hosts.
    #[command(hide = true)]
    ConnectSamples(connect::Samples),
}

/// Runs `cargo xtask bench …`.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.action {
        Some(Action::ConnectSamples(samples)) => return connect::sample(samples),
        Some(Action::Micro(arguments)) => return micro::run(arguments),
        _ if !is_root() => bail!("the benchmark makes network namespaces, which needs root"),
        Some(Action::Connect) => return connect::run(),
        Some(Action::Failover(arguments)) => return failover::run(arguments),
        Some(Action::Flood(arguments)) => return flood::run(arguments),
        Some(Action::Scale(arguments)) => return scale::run(arguments),
        None => {}
    }
    let peers = match &arguments.peers {
        Some(peers) => peers.clone(),
        None if arguments.quick => Vec::new(),
        None => Peer::all(),
    };
    prepare(arguments.quick)?;
    peers::install(&peers)?;
    limits::raise_open_files()?;

    let hosts = if arguments.ztunnel.is_some() { 4 } else { 3 };
    let lab =
        Lab::new(Topology { servers: 1, services: hosts, clients: hosts }).context("making the hosts")?;
    let name = lab.name().to_owned();
    on_interrupt(move || {
        let _ = remove(&name);
    })?;
    let mut running = ours::start(&lab)?;
    running.extend(peers::start(&peers, &lab)?);
    if let Some(binary) = &arguments.ztunnel {
        let lane = peers::ztunnel::start(binary, &lab, &mut running.others)?;
        running.extend(vec![lane]);
    }
    running.wait_until_answered(&lab)?;

    let rounds = Rounds {
        count: arguments.rounds.unwrap_or(if arguments.quick { 1 } else { 3 }),
        duration: if arguments.quick { Duration::from_millis(200) } else { Duration::from_secs(2) },
    };
    let directory = arguments.directory.clone().or_else(|| (!arguments.quick).then(default_directory));
    rounds.measure(&lab, &running)?.show(&lab, directory.as_deref())
}

/// Sees that everything works, as far as it does without root.
pub fn quick() -> Result<()> {
    micro::quick()?;
    if !is_root() {
        progress("the benchmark of connections is left out: it makes network namespaces, which needs root");
        return Ok(());
    }
    run(&Arguments { quick: true, ..Arguments::default() })
}

/// A binary as it is released; `--quick` takes the one that the tests use. `MURMESH_BIN` names another.
fn prepare(quick: bool) -> Result<()> {
    setup::for_running()?;
    if std::env::var_os(BINARY).is_some() {
        return Ok(());
    }
    if quick {
        return build::run();
    }
    setup::for_building()?;
    progress("building murmesh for release");
    shell::run(cargo().args(["build", "--release", "--package", "murmesh", "--locked"]))?;
    // SAFETY: no other thread has been started yet that could read the environment.
    unsafe { std::env::set_var(BINARY, repository().join("target/release/murmesh")) };
    Ok(())
}

fn default_directory() -> PathBuf {
    let today = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    repository().join("docs/benchmarks").join(&today[..10])
}

/// What was run, as it is stated with the results.
fn command_line() -> String {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let commit =
        Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(repository()).output();
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("cargo xtask {arguments}  # at commit {}", commit.unwrap_or_default())
}
