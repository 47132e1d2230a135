//! `murmesh supervise`: runs a daemon, and runs it again when it fails.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdUnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::Role;
use super::background::Claim;
use crate::cli::daemon;

/// Before a daemon that failed is started again.
const PAUSE: Duration = Duration::from_secs(2);

/// Arguments of `murmesh supervise`.
#[derive(Debug, Args)]
pub struct SuperviseArgs {
    /// What to run.
    role: Role,
    /// Run directory of the daemon.
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// Arguments of `murmesh`.
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

/// Runs a daemon apart from the terminal until SIGTERM or SIGINT.
///
/// # Errors
/// As [`supervise`].
pub fn run(arguments: &SuperviseArgs) -> anyhow::Result<ExitCode> {
    // Fails only for the leader of a process group, which has nothing to get away from.
    let _ = setsid();
    daemon::block_on(supervise(arguments.role, &arguments.run_dir, &arguments.arguments))
}

/// Runs `murmesh ARGUMENTS` until it ends well, or until SIGTERM or SIGINT, which it is passed. Whenever it fails it is
/// started again, except if it was never ready: what is wrong then is wrong the next time, too.
///
/// # Errors
/// When it cannot be started, or is supervised already.
pub async fn supervise(role: Role, run_dir: &Path, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let _claim = Claim::take(role, run_dir)?;
    let (stop, readiness) = (daemon::stop_on_signal()?, Readiness::new()?);
    let mut was_ready = false;
    loop {
        let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
        command.args(arguments).env("NOTIFY_SOCKET", &readiness.name).stdin(Stdio::null());
        command.env_remove("WATCHDOG_USEC");
        let mut child = command.spawn().with_context(|| format!("starting the {}", role.name()))?;
        let ended = until_end(&mut child, &stop, &readiness, &mut was_ready).await?;
        if ended.success() || stop.is_cancelled() || !was_ready {
            return Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        eprintln!("murmesh: the {} ended with {ended}, and is started again", role.name());
        if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Passes the signal to stop on, and hears whether the daemon is ready.
async fn until_end(
    child: &mut Child,
    stop: &CancellationToken,
    readiness: &Readiness,
    was_ready: &mut bool,
) -> anyhow::Result<ExitStatus> {
    let process = child.id().map(|id| Pid::from_raw(id.cast_signed()));
    let mut told = false;
    loop {
        tokio::select! {
            ended = child.wait() => return Ok(ended?),
            ready = readiness.heard() => *was_ready |= ready?,
            () = stop.cancelled(), if !told => {
                told = true;
                // It may have ended just now.
                let _ = process.map(|process| kill(process, Signal::SIGTERM));
            }
        }
    }
}

/// Where the daemon says that it is ready (sd_notify(3)).
struct Readiness {
    socket: UnixDatagram,
    name: String,
}

impl Readiness {
    fn new() -> anyhow::Result<Self> {
        let name = format!("murmesh-supervisor-{}", std::process::id());
        let socket = StdUnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixDatagram::from_std(socket)?, name: format!("@{name}") })
    }

    /// Waits for a message; returns whether it is that.
    async fn heard(&self) -> std::io::Result<bool> {
        let mut message = [0; 256];
        let length = self.socket.recv(&mut message).await?;
        Ok(message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1"))
    }
}
