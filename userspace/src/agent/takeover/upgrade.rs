//! SIGUSR2 has the agent start the program at its own path, which may be a newer version by now, with the same
//! arguments, to take over.

use std::{env, ffi::OsString, path::PathBuf, process::Stdio};

use nix::libc;
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// What makes an agent take over.
const FLAG: &str = "--take-over";

/// Starts agents that take over.
pub struct Upgrade {
    signal: Signal,
    /// As it was at the start: a file that is replaced has no path any more.
    program: PathBuf,
}

impl Upgrade {
    /// From now on the signal does not end this process.
    ///
    /// # Errors
    /// The signal cannot be caught, or this program has no path.
    pub fn on_signal() -> anyhow::Result<Self> {
        let program = env::current_exe()?;
        Ok(Self { signal: signal(SignalKind::from_raw(libc::SIGUSR2))?, program })
    }

    /// Starts a new agent at each signal, one at a time, until one has taken over.
    ///
    /// # Errors
    /// None: what fails is logged.
    pub async fn run(mut self, handed_over: CancellationToken) -> anyhow::Result<()> {
        while self.signal.recv().await.is_some() {
            let program = self.program.display();
            let mut child = match self.start() {
                Ok(child) => child,
                Err(error) => {
                    error!("{program} cannot be started, this agent goes on: {error}");
                    continue;
                }
            };
            info!(pid = child.id(), "started {program} to take over");
            tokio::select! {
                ended = child.wait() => match ended {
                    Ok(status) => error!("the new agent has not taken over ({status}), this one goes on"),
                    Err(error) => warn!("the new agent cannot be watched: {error}"),
                },
                () = handed_over.cancelled() => return Ok(()),
            }
        }
        Ok(())
    }

    fn start(&self) -> std::io::Result<Child> {
        let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
        if !arguments.iter().any(|argument| argument == FLAG) {
            arguments.push(FLAG.into());
        }
        // The service manager's watchdog means whoever is the daemon.
        Command::new(&self.program).args(arguments).env_remove("WATCHDOG_PID").stdin(Stdio::null()).spawn()
    }
}
