//! `murmesh supervise`: runs a daemon, and runs it again when it fails.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdUnixDatagram};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
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

/// Passes the signal to stop on, and hears whether the daemon is ready, and whether another process is the daemon by now.
/// Returns when the last of them has ended.
async fn until_end(
    child: &mut Child,
    stop: &CancellationToken,
    manager: &Manager,
    was_ready: &mut bool,
) -> anyhow::Result<Ended> {
    let mut current = Pid::from_raw(child.id().context("a process that was just started")?.cast_signed());
    let (mut successors, mut told) = (VecDeque::new(), false);
    let mut end: Pin<Box<dyn Future<Output = anyhow::Result<Ended>>>> = Box::pin(async {
        let status = child.wait().await?;
        Ok(Ended { words: status.to_string(), is_well: status.success() })
    });
    loop {
        tokio::select! {
            // What a process said before its end is heard first.
            biased;
            message = manager.heard() => match message? {
                Message::Ready => *was_ready = true,
                Message::FollowedBy(process) => {
                    // It is a child of the one before, and becomes ours when that ends, instead of init's.
                    prctl::set_child_subreaper(true)?;
                    successors.push_back(process);
                }
                Message::Other => {}
            },
            ended = &mut end => {
                let Some(successor) = successors.pop_front() else { return ended };
                prctl::set_child_subreaper(!successors.is_empty())?;
                current = successor;
                end = Box::pin(adopted(successor));
            }
            () = stop.cancelled(), if !told => {
                told = true;
                for process in successors.iter().copied().chain([current]) {
                    // It may have ended just now.
                    let _ = kill(process, Signal::SIGTERM);
                }
            }
        }
    }
}

/// Waits for the end of a process that another one has left to us.
async fn adopted(process: Pid) -> anyhow::Result<Ended> {
    let ended = tokio::task::spawn_blocking(move || {
        loop {
            match waitpid(process, None) {
                Err(Errno::EINTR) => {}
                ended => return ended,
            }
        }
    });
    Ok(match ended.await? {
        Ok(WaitStatus::Exited(_, code)) => {
            Ended { words: format!("exit status: {code}"), is_well: code == 0 }
        }
        Ok(WaitStatus::Signaled(_, signal, _)) => Ended { words: signal.to_string(), is_well: false },
        // It ended before the one that it has taken over from did.
        Err(Errno::ECHILD) => Ended { words: "no status".to_owned(), is_well: false },
        other => anyhow::bail!("waiting for process {process}: {other:?}"),
    })
}

/// What a daemon says.
enum Message {
    Ready,
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
            None => Self::Other,
        }
    }
}
