//! `murmesh uninstall`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;

use super::RunDirectory;
use super::daemon::DEFAULT_BPF_DIR;
use crate::leftovers::{Leftovers, Running, UNIT_DIRECTORY};

/// Only our package puts it there.
const PACKAGE: &str = "/usr/share/doc/murmesh/copyright";

/// How often a process that was asked to end is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Arguments of `murmesh uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// Directory below a mounted bpffs, where the kernel half is pinned.
    #[arg(long, default_value = DEFAULT_BPF_DIR, value_name = "DIR")]
    bpf_dir: PathBuf,
    /// Directory of what daemons keep. On a server's host the database of the mesh is there.
    #[arg(long, default_value = "/var/lib/murmesh", value_name = "DIR")]
    data_dir: PathBuf,
    /// Keep that directory, so that a new agent or server goes on as the old one.
    #[arg(long)]
    keep_data: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Stop the daemons that run; without this nothing is removed while one does.
    #[arg(long)]
    stop: bool,
    /// How long they may take to stop.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

/// Removes everything but the program itself.
///
/// # Errors
/// A daemon runs, nobody agreed, or something cannot be removed.
pub fn run(arguments: &UninstallArgs) -> anyhow::Result<ExitCode> {
    let leftovers = Leftovers {
        bpf_dir: arguments.bpf_dir.clone(),
        run_dir: arguments.run_directory.run_dir.clone(),
        data_dir: (!arguments.keep_data).then(|| arguments.data_dir.clone()),
        unit_dir: UNIT_DIRECTORY.into(),
    };
    let running = leftovers.running();
    if let Some(daemon) = running.first()
        && !arguments.stop
    {
        bail!("{daemon}: stop it first, or add --stop");
    }
    let present = leftovers.present();
    let is_installed = !present.is_empty() || !running.is_empty();
    if is_installed && !arguments.yes {
        agreed(&present, &running)?;
    }
    for daemon in &running {
        stop(daemon, arguments.timeout)?;
    }
    for path in leftovers.remove()? {
        println!("removed {}", path.display());
    }
    println!("nothing of Murmesh is in the kernel any more: connections of this host are plain");
    if Path::new(PACKAGE).exists() {
        println!("the program and its units belong to a package: apt-get purge murmesh");
    }
    Ok(ExitCode::SUCCESS)
}

fn agreed(present: &[PathBuf], running: &[Running]) -> anyhow::Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "this removes keys and certificates: add --yes, or run it at a terminal"
    );
    for daemon in running {
        println!("will be stopped: {daemon}");
    }
    for path in present {
        println!("will be removed: {}", path.display());
    }
    print!("Go on? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing was removed");
    Ok(())
}

/// A daemon that stops ends its connections first. That it has ended nobody else is told.
fn stop(daemon: &Running, within: Duration) -> anyhow::Result<()> {
    daemon.stop().with_context(|| daemon.to_string())?;
    let deadline = Instant::now() + within;
    while daemon.is_there() {
        ensure!(
            Instant::now() < deadline,
            "{daemon}, and has not stopped for {within:?}; nothing was removed"
        );
        thread::sleep(INTERVAL);
    }
    println!("stopped: {daemon}");
    Ok(())
}
