//! `murmesh sidecar`.

use std::process::ExitCode;

use clap::Args;

use super::daemon::DaemonOptions;

use crate::identity::{JoinToken, NodeName};

/// Arguments of `murmesh sidecar`.
#[derive(Debug, Args)]
pub struct SidecarArgs {
    #[command(flatten)]
    daemon: DaemonOptions,

    /// Token to join with, from `murmesh token create` on a server. Only needed the first time.
    #[arg(long, env = "MURMESH_JOIN", hide_env_values = true, value_name = "TOKEN")]
    join: Option<JoinToken>,
    /// Name to join as [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the sidecar cannot start.
pub fn run(arguments: SidecarArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet: {arguments:?}")
}
