//! `murmesh init`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::daemons::{self, HostOptions, State, USUAL_CONFIG};
use super::{daemon, output, status::local_error, up};
use crate::api::v1::CreateTokenRequest;
use crate::control::Membership;
use crate::identity::NodeName;
use crate::local::{SERVER_SOCKET, connect};

const TOKEN_VALIDITY: Duration = Duration::from_secs(3600);

/// Arguments of `murmesh init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Name of this host in the mesh [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    #[command(flatten)]
    host: HostOptions,
    /// How long to wait for each of the two daemons.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    timeout: Duration,
}

/// Makes this host the first server of a mesh, and a member, and prints the line by which another host joins. What is
/// done already is left as it is.
///
/// # Errors
/// When the host cannot run an agent, or a daemon does not get ready in time; each error says why.
pub fn run(arguments: &InitArgs) -> anyhow::Result<ExitCode> {
    daemons::show_warnings();
    let server = arguments.host.server()?;
    let (agent, mut options) = arguments.host.agent(None, arguments.node.as_ref())?;
    daemons::ensure_able(&options)?;
    daemons::done("this host has what an agent needs");
    daemon::block_on(async {
        server.start(false, arguments.timeout).await?;
        if let State::Ready(status) = server.state().await {
            let by = server.unit().map(|unit| format!(" ({unit})")).unwrap_or_default();
            daemons::done(&format!(
                "the server runs{by}, and is told to others as {} (if they reach it by another address: `advertise` in \
                 {USUAL_CONFIG}, and start it again)",
                status.servers.join(" ")
            ));
        }
        if !Membership::exists(&options.data_dir) {
            options.join = Some(token(&options.run_dir).await?.parse()?);
        }
        up::protect(&agent, &options, arguments.timeout).await?;
        eprintln!("\nOn another host, as root, within an hour (the token lets one host in):\n");
        output::print(&format!("murmesh up --join {}\n", token(&options.run_dir).await?))?;
        eprintln!("\nFor each further host, `murmesh token create` here makes another token.");
        Ok(ExitCode::SUCCESS)
    })
}

async fn token(run_dir: &Path) -> anyhow::Result<String> {
    let mut server = connect(run_dir, &[SERVER_SOCKET], "murmesh server").await?;
    let request = CreateTokenRequest { valid_seconds: TOKEN_VALIDITY.as_secs() };
    Ok(server.create_token(request).await.map_err(local_error)?.into_inner().token)
}
