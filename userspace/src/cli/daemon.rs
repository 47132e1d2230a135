//! What every daemon shares: its directories, its log, its runtime and how it is stopped.

use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::RunDirectory;
use crate::{
    identity::NodeName,
    log_writer::{self, LastLines},
    notify,
    proxy::access_log,
};

/// One level below what would do: that directory can belong to the agent's user, who may then make others beside it.
pub const DEFAULT_BPF_DIR: &str = "/sys/fs/bpf/murmesh/agent";

/// Options of every daemon.
#[derive(Debug, Clone, Args)]
pub struct DaemonOptions {
    /// Directory for what must survive a restart: keys, certificates, the server's database.
    #[arg(long, default_value = "/var/lib/murmesh", value_name = "DIR")]
    pub data_dir: PathBuf,
    #[command(flatten)]
    run_directory: RunDirectory,
    /// TOML file with the values of flags that are not given: a table per daemon, keys named as the flags.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Form of the log on standard output. MURMESH_LOG sets what is logged, such as "debug" or "murmesh=trace".
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

impl DaemonOptions {
    /// Directory of the daemon's Unix socket.
    pub fn run_dir(&self) -> PathBuf {
        self.run_directory.run_dir.clone()
    }
}

/// Options of every command that deals with the kernel half.
#[derive(Debug, Clone, Args)]
pub struct KernelOptions {
    /// Directory below a mounted bpffs, for the pins of the kernel half.
    #[arg(long, default_value = DEFAULT_BPF_DIR, value_name = "DIR")]
    pub bpf_dir: PathBuf,
    /// Directory of the cgroup (v2) whose processes are intercepted [default: the root of cgroup v2].
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends the log to standard output, and lines of the `log` crate with it. The last lines are written when what is
/// returned is dropped.
///
/// # Errors
/// When `MURMESH_LOG` is not a filter, or nothing can be written.
pub fn start_log(format: LogFormat) -> anyhow::Result<LastLines> {
    let directives = std::env::var("MURMESH_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&directives).with_context(|| {
        format!("MURMESH_LOG={directives:?} is not a log filter; try \"info\" or \"debug\"")
    })?;
    let last_lines = log_writer::start().context("the log cannot be written")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stdout().is_terminal());
    let log = log.with_writer(|| log_writer::Lines);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    access_log::start(match format {
        LogFormat::Text => access_log::Form::Text,
        LogFormat::Json => access_log::Form::Json,
    });
    Ok(last_lines)
}

/// Runs a future on a multi-threaded runtime until it is done.
///
/// # Errors
/// Those of the future, and a failure to start threads.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("the runtime cannot start its threads")?.block_on(future)
}

/// A token that is cancelled at the first SIGTERM or SIGINT. From now on the service manager is told that the daemon
/// lives. Needs a tokio runtime.
///
/// # Errors
/// When the signals cannot be caught.
pub fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(notify::keep_alive());
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "stopping");
        notify::stopping();
        stop.cancel();
    });
    Ok(token)
}

/// The name given by `--node`, or the first label of the host name.
///
/// # Errors
/// When the host name is no node name.
pub fn node_name(given: Option<NodeName>) -> anyhow::Result<NodeName> {
    match given {
        Some(node) => Ok(node),
        None => NodeName::of_this_machine().context("this machine's host name cannot name its node"),
    }
}
