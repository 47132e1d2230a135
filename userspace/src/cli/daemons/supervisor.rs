//! `murmesh supervise`: runs a daemon, and runs it again when it fails.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdUnixDatagram};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
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
/// started again, except if it was never ready: what is wrong then is wrong the next time, too. A daemon that hands over
/// to a newer one is followed there.
///
/// # Errors
/// When it cannot be started, or is supervised already.
pub async fn supervise(role: Role, run_dir: &Path, arguments: &[OsString]) -> anyhow::Result<ExitCode> {
    let _claim = Claim::take(role, run_dir)?;
    let (stop, manager) = (daemon::stop_on_signal()?, Manager::new()?);
    let mut was_ready = false;
    loop {
        let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
        command.args(arguments).env("NOTIFY_SOCKET", &manager.name).stdin(Stdio::null());
        command.env_remove("WATCHDOG_USEC");
        let mut child = command.spawn().with_context(|| format!("starting the {}", role.name()))?;
        let ended = until_end(&mut child, &stop, &manager, &mut was_ready).await?;
        if ended.is_well || stop.is_cancelled() || !was_ready {
            return Ok(if ended.is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        eprintln!("murmesh: the {} ended ({}), and is started again", role.name(), ended.words);
        if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// How a daemon ended: in words, and whether it did as it should.
struct Ended {
    words: String,
    is_well: bool,
}

/// Passes the signal to stop on, and hears whether the daemon is ready, whether it stops, and whether another process is the
/// daemon by now. Returns when that one has ended; the one before carries what is open, and is only waited for where both
/// were told to stop.
async fn until_end(
    child: &mut Child,
    stop: &CancellationToken,
    manager: &Manager,
    was_ready: &mut bool,
) -> anyhow::Result<Ended> {
    let first = Pid::from_raw(child.id().context("a process that was just started")?.cast_signed());
    let mut newest: Option<(Pid, End)> = None;
    let (mut first_runs, mut is_stopping, mut told) = (true, false, false);
    loop {
        tokio::select! {
            // What a process said before its end is heard first.
            biased;
            message = manager.heard() => match message? {
                Message::Ready => *was_ready = true,
                Message::Stopping => is_stopping = true,
                Message::FollowedBy(process) => newest = Some((process, Box::pin(end(process)))),
                Message::Other => {}
            },
            status = child.wait(), if first_runs => {
                let status = status?;
                first_runs = false;
                if newest.is_none() {
                    return Ok(Ended { words: status.to_string(), is_well: status.success() });
                }
            }
            ended = ended(&mut newest), if newest.is_some() => {
                ended?;
                newest = None;
                if !(is_stopping && first_runs) {
                    let words = "it had taken over from another one".to_owned();
                    return Ok(Ended { words, is_well: is_stopping });
                }
            }
            () = stop.cancelled(), if !told => {
                told = true;
                let newest = newest.as_ref().map(|(process, _)| *process);
                for process in newest.into_iter().chain(first_runs.then_some(first)) {
                    // It may have ended just now.
                    let _ = kill(process, Signal::SIGTERM);
                }
            }
        }
    }
}

type End = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

async fn ended(process: &mut Option<(Pid, End)>) -> anyhow::Result<()> {
    match process {
        Some((_, end)) => end.await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a process that is no child of ours (pidfd_open(2), Linux 5.3).
async fn end(process: Pid) -> anyhow::Result<()> {
    // SAFETY: a number goes in, and a new descriptor or an error comes out.
    let opened = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) });
    let descriptor = match opened {
        Err(Errno::ESRCH) => return Ok(()),
        opened => RawFd::try_from(opened.context("a process cannot be watched")?)?,
    };
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: it is the same descriptor until it is dropped, together with the registration.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.context("a process cannot be watched")?.readable().await?.retain_ready();
    Ok(())
}

/// What a daemon says.
enum Message {
    Ready,
    Stopping,
    FollowedBy(Pid),
    Other,
}

/// Where the daemon says how it is (sd_notify(3)).
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    fn new() -> anyhow::Result<Self> {
        let name = format!("murmesh-supervisor-{}", std::process::id());
        let socket = StdUnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixDatagram::from_std(socket)?, name: format!("@{name}") })
    }

    async fn heard(&self) -> std::io::Result<Message> {
        let mut message = [0; 256];
        let length = self.socket.recv(&mut message).await?;
        Ok(Message::from(&message[..length]))
    }
}

impl From<&[u8]> for Message {
    fn from(message: &[u8]) -> Self {
        let text = String::from_utf8_lossy(message);
        let process = text.lines().find_map(|line| line.strip_prefix("MAINPID=")?.parse().ok());
        match process {
            Some(process) => Self::FollowedBy(Pid::from_raw(process)),
            None if text.lines().any(|line| line == "READY=1") => Self::Ready,
            None if text.lines().any(|line| line == "STOPPING=1") => Self::Stopping,
            None => Self::Other,
        }
    }
}
