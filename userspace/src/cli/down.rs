//! `murmesh down`.

use std::process::ExitCode;

use clap::Args;

use super::daemons::{self, HostOptions};
use crate::agent::Capture;

/// Arguments of `murmesh down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    #[command(flatten)]
    host: HostOptions,
    /// Stop the server of this host, too, after the agent.
    #[arg(long)]
    server: bool,
}

/// Stops the agent of this host, which lets connections end first, and keeps it from starting at the next boot.
///
/// # Errors
/// When it does not end.
pub fn run(arguments: &DownArgs) -> anyhow::Result<ExitCode> {
    let (agent, options) = arguments.host.agent(None, None)?;
    let ran = agent.stop_for_good()?;
    daemons::done(if ran { "the agent is stopped: connections are plain again" } else { "no agent runs" });
    if let Capture::Kernel(kernel) = &options.capture
        && !ran
        && kernel.bpf_dir.exists()
    {
        eprintln!(
            "murmesh: the hooks of an agent that was killed are still in force ({}), and refuse what they redirect; `murmesh up`, then `murmesh down` takes them off",
            kernel.bpf_dir.display()
        );
    }
    if arguments.server {
        let ran = arguments.host.server()?.stop_for_good()?;
        daemons::done(if ran { "the server is stopped" } else { "no server runs" });
    }
    Ok(ExitCode::SUCCESS)
}
