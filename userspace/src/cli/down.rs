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
        && kernel.bpf_dir.exists()
    {
        let left = if ran {
            "strict services of this host stay closed"
        } else {
            "hooks of an agent that does not run are still in force"
        };
        let pins = kernel.bpf_dir.display();
        eprintln!("murmesh: {left} ({pins}); `murmesh agent --cleanup` takes off what is left");
    }
    if arguments.server {
        let ran = arguments.host.server()?.stop_for_good()?;
        daemons::done(if ran { "the server is stopped" } else { "no server runs" });
    }
    Ok(ExitCode::SUCCESS)
}
