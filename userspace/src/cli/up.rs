//! `murmesh up`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use super::daemon;
use super::daemons::{self, Daemon, HostOptions, State};
use crate::agent::{self, AgentOptions};
use crate::api::v1;
use crate::identity::{JoinToken, NodeName};

/// Arguments of `murmesh up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Token to join with, from `murmesh token create` on a server. Only needed the first time.
    #[arg(long, env = "MURMESH_JOIN", hide_env_values = true, value_name = "TOKEN")]
    join: Option<JoinToken>,
    /// Name to join as [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    #[command(flatten)]
    host: HostOptions,
    /// Run the agent in the background, and not as a unit of systemd. Without this, and without systemd, it runs in the
    /// foreground. Either way it is started again when it fails.
    #[arg(long)]
    daemon: bool,
    /// How long to wait until the host is protected.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

/// Makes this host a member, starts its agent, and waits until it is protected. What is done already is left as it is.
///
/// # Errors
/// When the host cannot run an agent, cannot join, or is not protected in time; each error says why.
pub fn run(arguments: UpArgs) -> anyhow::Result<ExitCode> {
    daemons::show_warnings();
    let (agent, options) = arguments.host.agent(arguments.join, arguments.node.as_ref())?;
    let agent = if arguments.daemon { agent.without_systemd() } else { agent };
    if agent.unit().is_some() || arguments.daemon {
        daemon::block_on(protect(&agent, &options, arguments.timeout))?;
        return Ok(ExitCode::SUCCESS);
    }
    daemon::block_on(async {
        if is_protected(&agent).await {
            return Ok(ExitCode::SUCCESS);
        }
        daemons::ensure_able(&options)?;
        join(&options).await?;
        let tell = async {
            match agent.wait(None, arguments.timeout).await {
                Ok(()) => drop(is_protected(&agent).await),
                Err(error) => eprintln!("murmesh: {error:#}"),
            }
            std::future::pending().await
        };
        tokio::select! {
            ended = agent.supervise() => ended,
            ended = tell => ended,
        }
    })
}

/// Joins if need be, and has the agent run in the background.
///
/// # Errors
/// As [`run`].
pub(super) async fn protect(agent: &Daemon, options: &AgentOptions, within: Duration) -> anyhow::Result<()> {
    if !is_protected(agent).await {
        daemons::ensure_able(options)?;
        let is_new = join(options).await?;
        agent.start(is_new, within).await?;
        is_protected(agent).await;
    } else if agent.unit().is_some() {
        // It may run without being enabled.
        agent.start(false, within).await?;
    }
    Ok(())
}

/// Returns whether the membership is new.
async fn join(options: &AgentOptions) -> anyhow::Result<bool> {
    let joined = agent::join(options).await.context("this host cannot join")?;
    daemons::done(&format!("member of {} as {}", joined.trust_domain, joined.node));
    Ok(joined.is_new)
}

/// Says so if it is.
async fn is_protected(agent: &Daemon) -> bool {
    let State::Ready(status) = agent.state().await else { return false };
    let by = agent.unit().map(|unit| format!(" ({unit})")).unwrap_or_default();
    daemons::done(&format!("protected: the agent runs{by}, {}", protection(&status)));
    true
}

fn protection(status: &v1::StatusResponse) -> String {
    let hooks = status.interception.as_ref().map_or(0, |interception| interception.attached.len());
    let servers = &status.connected_server;
    format!("{hooks} hooks are in place, server {servers}; see `murmesh status` and `murmesh services`")
}
