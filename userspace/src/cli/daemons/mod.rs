//! The daemons of this host, as `init`, `up` and `down` deal with them: units of systemd where the package installed
//! them, else processes with a supervisor of ours.

pub mod background;
mod state;
pub mod supervisor;
mod systemd;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use nix::unistd::geteuid;

pub use state::State;

use super::Command;
use crate::agent::{AgentOptions, Capture};
use crate::check::{self, CheckOptions, Verdict};
use crate::identity::{JoinToken, NodeName};
use crate::local::{AGENT_SOCKET, SERVER_SOCKET};
use background::Background;

/// Where the daemons' options are.
pub const USUAL_CONFIG: &str = "/etc/murmesh/murmesh.toml";
const USUAL_RUN_DIR: &str = "/run/murmesh";

/// How often a daemon is asked whether it is ready; it has no way to say so to somebody who did not start it.
const INTERVAL: Duration = Duration::from_millis(100);

/// Which daemons of this host are meant.
#[derive(Debug, Clone, Args)]
pub struct HostOptions {
    /// TOML file with the daemons' options. systemd is left alone when it is given [default:
    /// /etc/murmesh/murmesh.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What a daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// `murmesh server`.
    Server,
    /// `murmesh agent`.
    Agent,
}

/// A daemon of this host, running or not.
pub struct Daemon {
    role: Role,
    /// Of `murmesh`.
    arguments: Vec<OsString>,
    run_dir: PathBuf,
    data_dir: PathBuf,
    unit: Option<&'static str>,
    /// How long it may take to stop.
    stop_timeout: Duration,
}

impl Role {
    /// The command that runs it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    fn socket(self) -> &'static str {
        match self {
            Self::Server => SERVER_SOCKET,
            Self::Agent => AGENT_SOCKET,
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Server => "murmesh-server.service",
            Self::Agent => "murmesh-agent.service",
        }
    }
}

impl HostOptions {
    /// The agent, and what it is started with. `join` and `node` are for joining.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub fn agent(
        &self,
        join: Option<JoinToken>,
        node: Option<&NodeName>,
    ) -> anyhow::Result<(Daemon, AgentOptions)> {
        let mut arguments = self.arguments(Role::Agent);
        if let Some(node) = node {
            arguments.extend(["--node".into(), node.to_string().into()]);
        }
        let Command::Agent(parsed) = parse(&arguments)? else { bail!("no agent in {arguments:?}") };
        let mut options = parsed.options()?;
        options.join = join.or(options.join);
        let stop_timeout = options.drain_timeout + STOP_ALLOWANCE;
        let daemon = Daemon {
            role: Role::Agent,
            unit: self.unit(Role::Agent, &options.run_dir),
            arguments,
            run_dir: options.run_dir.clone(),
            data_dir: options.data_dir.clone(),
            stop_timeout,
        };
        Ok((daemon, options))
    }

    /// The server.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub fn server(&self) -> anyhow::Result<Daemon> {
        let arguments = self.arguments(Role::Server);
        let Command::Server(parsed) = parse(&arguments)? else { bail!("no server in {arguments:?}") };
        let run_dir = parsed.daemon().run_dir();
        Ok(Daemon {
            role: Role::Server,
            unit: self.unit(Role::Server, &run_dir),
            data_dir: parsed.daemon().data_dir.clone(),
            arguments,
            run_dir,
            stop_timeout: STOP_ALLOWANCE,
        })
    }

    fn arguments(&self, role: Role) -> Vec<OsString> {
        let usual = Some(PathBuf::from(USUAL_CONFIG)).filter(|path| path.exists());
        let config = self.config.clone().or(usual);
        let config = config.map(|path| ["--config".into(), path.into_os_string()]);
        [role.name().into()].into_iter().chain(config.into_iter().flatten()).collect()
    }

    /// The unit that is to run it, if any: one daemon of the usual directories is systemd's.
    fn unit(&self, role: Role, run_dir: &Path) -> Option<&'static str> {
        let is_usual = self.config.is_none() && run_dir == Path::new(USUAL_RUN_DIR);
        (is_usual && systemd::has_unit(role.unit())).then(|| role.unit())
    }
}

/// Beside draining.
const STOP_ALLOWANCE: Duration = Duration::from_secs(20);

fn parse(arguments: &[OsString]) -> anyhow::Result<Command> {
    let program = [OsString::from("murmesh")].into_iter();
    Ok(super::parse(program.chain(arguments.iter().cloned()))?.command)
}

impl Daemon {
    /// Leaves it to a process of ours even where there is a unit for it.
    pub fn without_systemd(self) -> Self {
        Self { unit: None, ..self }
    }

    /// What it says of itself.
    pub async fn state(&self) -> State {
        State::of(self.role, &self.run_dir).await
    }

    /// Starts it, so that it goes on when this process ends and is started again when it fails, and waits until it is
    /// ready. One that runs is left as it is, or replaced.
    ///
    /// # Errors
    /// When it does not get ready, with the reason.
    pub async fn start(&self, replace: bool, within: Duration) -> anyhow::Result<()> {
        let runs = !matches!(self.state().await, State::Absent);
        let background = match self.unit {
            Some(unit) if runs && replace => systemd::restart(unit).map(|()| None)?,
            Some(unit) => systemd::enable_and_start(unit).map(|()| None)?,
            None if runs && !replace => None,
            None => {
                self.stop()?;
                Some(Background::start(self.role, &self.run_dir, &self.data_dir, &self.arguments)?)
            }
        };
        self.wait(background, within).await
    }

    /// Waits until it is ready: a server that answers, an agent that protects.
    ///
    /// # Errors
    /// When it does not get ready, with the reason.
    pub async fn wait(&self, mut background: Option<Background>, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let state = self.state().await;
            if let State::Ready(_) = state {
                return Ok(());
            }
            if let Some(background) = &mut background {
                background.ensure_running()?;
            }
            ensure!(
                Instant::now() < deadline,
                "the {} is not ready after {}: {}",
                self.role.name(),
                humantime::format_duration(within),
                state.trouble().join("; ")
            );
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Stops it, and waits until it has ended, whoever started it. Returns whether it ran.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> anyhow::Result<bool> {
        background::stop(self.role, &self.run_dir, self.stop_timeout)
    }

    /// The same, and it is not started at the next boot.
    ///
    /// # Errors
    /// When it does not end, or systemd refuses.
    pub fn stop_for_good(&self) -> anyhow::Result<bool> {
        let Some(unit) = self.unit else { return self.stop() };
        let ran = systemd::is_active(unit);
        systemd::disable_and_stop(unit)?;
        Ok(self.stop()? || ran)
    }

    /// Runs it in the foreground, and again when it fails.
    ///
    /// # Errors
    /// As [`supervisor::supervise`].
    pub async fn supervise(&self) -> anyhow::Result<std::process::ExitCode> {
        supervisor::supervise(self.role, &self.run_dir, &self.arguments).await
    }

    /// Whether systemd runs it.
    pub fn unit(&self) -> Option<&'static str> {
        self.unit
    }
}

/// Makes sure that this host can run an agent, before anything is changed.
///
/// # Errors
/// Names all that is missing.
pub fn ensure_able(options: &AgentOptions) -> anyhow::Result<()> {
    ensure!(geteuid().is_root(), "run this as root");
    let Capture::Kernel(kernel) = &options.capture else { return Ok(()) };
    let findings = check::preflight(&CheckOptions {
        run_dir: options.run_dir.clone(),
        data_dir: options.data_dir.clone(),
        bpf_dir: kernel.bpf_dir.clone(),
        cgroup: Some(kernel.cgroup.clone()),
    });
    let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Failed);
    let failed: Vec<_> =
        failed.map(|finding| format!("{}: {} ({})", finding.name, finding.detail, finding.hint)).collect();
    ensure!(failed.is_empty(), "this host cannot run an agent: {}", failed.join("; "));
    Ok(())
}

/// Says on standard error that a step is done.
pub fn done(step: &str) {
    eprintln!("{} {step}", Verdict::Fine);
}

/// Shows warnings of what is done in this process, such as attempts to join that fail.
pub fn show_warnings() {
    let log = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).without_time();
    log.with_target(false).with_writer(std::io::stderr).init();
}
