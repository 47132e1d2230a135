//! `murmesh server`.

mod store;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::daemon::{self, DaemonOptions};
use crate::identity::token::ServerAddress;
use crate::identity::{NodeName, TrustDomain};
use crate::server::{self, DEFAULT_MAX_RULES, ServerOptions};
use store::StoreArgs;

const SHORTEST_LIFETIME: Duration = Duration::from_secs(10);
const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Arguments of `murmesh server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    #[command(flatten)]
    daemon: DaemonOptions,
    #[command(flatten)]
    store: StoreArgs,
    /// Address to listen on, for agents; may be given several times [default: port 9190 of every address].
    #[arg(long, value_name = "IP:PORT")]
    listen: Vec<SocketAddr>,
    /// Address of this server that join tokens carry; may be given several times [default: this machine's
    /// first address].
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<ServerAddress>,
    /// Name of the mesh, fixed at the first start [default: murmesh.internal].
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// How long the certificates of hosts live, such as "1h". They are renewed at half of it.
    #[arg(long, default_value = "1h", value_parser = lifetime, value_name = "DURATION")]
    certificate_lifetime: Duration,
    /// Name of this server in its identity [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// How many rules the mesh may have.
    #[arg(long, default_value_t = DEFAULT_MAX_RULES, value_name = "NUMBER")]
    max_rules: usize,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the server cannot start, or serving fails.
pub fn run(arguments: ServerArgs) -> anyhow::Result<ExitCode> {
    daemon::start_log(arguments.daemon.log_format)?;
    let node = daemon::node_name(arguments.node)?;
    let options = ServerOptions {
        run_dir: arguments.daemon.run_dir(),
        store: arguments.store.options(arguments.daemon.data_dir, &node),
        listen: arguments.listen,
        advertise: arguments.advertise,
        trust_domain: arguments.trust_domain,
        certificate_lifetime: arguments.certificate_lifetime,
        node,
        max_rules: arguments.max_rules,
    };
    daemon::block_on(async {
        server::run(options, daemon::stop_on_signal()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (SHORTEST_LIFETIME..=LONGEST_LIFETIME).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err("it must be between 10s and 365days".to_owned())
    }
}
