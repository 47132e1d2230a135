//! `murmesh sidecar`.

use std::{net::SocketAddr, process::ExitCode};

use clap::Args;

use super::{
    agent::{MemberOptions, run_until_stopped},
    daemon::DaemonOptions,
};
use crate::agent::{Capture, SidecarOptions, Upstream};

/// Arguments of `murmesh sidecar`.
#[derive(Debug, Args)]
pub struct SidecarArgs {
    #[command(flatten)]
    daemon: DaemonOptions,
    #[command(flatten)]
    member: MemberOptions,
    /// What programs on this host reach through the sidecar: a port of a host of the mesh, by name, or of an
    /// address. Without it the sidecar only serves this host's listeners to others.
    #[arg(long, value_name = "HOST:PORT")]
    upstream: Option<Upstream>,
    /// Address that programs dial to reach the upstream.
    #[arg(long, default_value = "127.0.0.1:9191", requires = "upstream", value_name = "IP:PORT")]
    listen: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the sidecar cannot start.
pub fn run(arguments: SidecarArgs) -> anyhow::Result<ExitCode> {
    let SidecarArgs { daemon, member, upstream, listen } = arguments;
    let form = daemon.log_format;
    let capture = Capture::Sidecar(upstream.map(|upstream| SidecarOptions { listen, upstream }));
    run_until_stopped(member.agent_options(daemon, capture, &[listen.port()])?, form)
}
