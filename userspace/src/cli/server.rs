//! `murmesh server`.

mod store;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::daemon::{self, DaemonOptions};
use super::output;
use crate::identity::token::ServerAddress;
use crate::identity::{NodeName, TrustDomain};
use crate::metrics::{self, MetricsAddress};
use crate::sandbox;
use crate::seal::KeySource;
use crate::server::{self, DEFAULT_MAX_RULES, PageOptions, ServerOptions};
use store::StoreArgs;

const SHORTEST_LIFETIME: Duration = Duration::from_secs(10);
const LONGEST_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// Arguments of `murmesh server`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServerArgs {
    #[command(subcommand)]
    command: Option<ServerCommand>,
    #[command(flatten)]
    daemon: DaemonOptions,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    seal: SealOptions,
    /// Address to listen on, for agents; may be given several times [default: port 9190 of every address].
    #[arg(long, value_name = "IP:PORT")]
    listen: Vec<SocketAddr>,
    /// Address of this server that join tokens carry; may be given several times [default: this machine's
    /// first address, of the interface with the default route if there is one].
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<ServerAddress>,
    /// Where figures for Prometheus are served (/metrics, and /healthz), or "off".
    #[arg(long, default_value = metrics::SERVER_ADDRESS, value_name = "IP:PORT")]
    metrics: MetricsAddress,
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
    /// Loopback address of the page to which `murmesh ui` gives a link, or "off" [default: 127.0.0.1:9194, if that is
    /// free].
    #[arg(long, value_name = "IP:PORT")]
    page: Option<PageOptions>,
}

/// What is done with the database of a server that does not run.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Seal every secret in the store with a new key. Stop the server first, and start it with the new key.
    Reseal(ResealArgs),
    /// Write all records of the mesh into a file, to import them into another store. Stop the servers first.
    Export(TransferArgs),
    /// Put all records of an exported file into an empty store. Secrets in it need the same seal key as before.
    Import(TransferArgs),
}

/// Arguments of `murmesh server export` and `import`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Directory of the server's database.
    #[arg(long, default_value = "/var/lib/murmesh", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// The file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The key that secrets in the store are sealed with: a file, or a passphrase. By default systemd's credential
/// `murmesh-seal-key` if there is one, else `seal.key` in the data directory, which is made at the first start.
#[derive(Debug, Args)]
pub struct SealOptions {
    /// File with the key that secrets in the store are sealed with: 64 hexadecimal digits [default: systemd's
    /// credential murmesh-seal-key, else seal.key in the data directory, which is made at the first start].
    #[arg(long, conflicts_with = "seal_passphrase_file", value_name = "FILE")]
    seal_key_file: Option<PathBuf>,
    /// File whose first line is the passphrase that secrets in the store are sealed with, such as /dev/stdin.
    #[arg(long, value_name = "FILE")]
    seal_passphrase_file: Option<PathBuf>,
}

/// Arguments of `murmesh server reseal`.
#[derive(Debug, Args)]
pub struct ResealArgs {
    /// Directory of the server's database.
    #[arg(long, default_value = "/var/lib/murmesh", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    seal: SealOptions,
    /// File with the new key [default: a new seal.key in the data directory, if the old key is there].
    #[arg(long, conflicts_with = "new_seal_passphrase_file", value_name = "FILE")]
    new_seal_key_file: Option<PathBuf>,
    /// File whose first line is the new passphrase.
    #[arg(long, value_name = "FILE")]
    new_seal_passphrase_file: Option<PathBuf>,
}

impl ServerArgs {
    /// Its directories.
    pub(super) fn daemon(&self) -> &DaemonOptions {
        &self.daemon
    }
}

impl SealOptions {
    fn source(self, data_dir: &Path) -> KeySource {
        KeySource::choose(self.seal_key_file, self.seal_passphrase_file, data_dir)
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the server cannot start, or serving fails.
pub fn run(arguments: ServerArgs) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Some(ServerCommand::Reseal(arguments)) => return reseal(arguments),
        Some(ServerCommand::Export(arguments)) => return export(arguments),
        Some(ServerCommand::Import(arguments)) => return import(arguments),
        None => {}
    }
    let form = arguments.daemon.log_format;
    let node = daemon::node_name(arguments.node)?;
    let options = ServerOptions {
        run_dir: arguments.daemon.run_dir(),
        seal: arguments.seal.source(&arguments.daemon.data_dir),
        store: arguments.store.options(arguments.daemon.data_dir, &node),
        listen: arguments.listen,
        advertise: arguments.advertise,
        metrics: arguments.metrics,
        trust_domain: arguments.trust_domain,
        certificate_lifetime: arguments.certificate_lifetime,
        node,
        max_rules: arguments.max_rules,
        page: arguments.page.unwrap_or_default(),
    };
    sandbox::enter(&options.needs())?;
    let _last_lines = daemon::start_log(form)?;
    sandbox::log();
    daemon::block_on(async {
        server::run(options, daemon::stop_on_signal()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn reseal(arguments: ResealArgs) -> anyhow::Result<ExitCode> {
    let ResealArgs { data_dir, store, seal, new_seal_key_file, new_seal_passphrase_file } = arguments;
    let old = seal.source(&data_dir);
    let new = match (new_seal_key_file, new_seal_passphrase_file) {
        (Some(path), _) => Some(KeySource::File(path)),
        (None, path) => path.map(KeySource::Passphrase),
    };
    let store = store.options(data_dir, &daemon::node_name(None)?);
    let key = daemon::block_on(async { Ok(server::reseal(&store, &old, new.as_ref()).await?) })?;
    let place = new.as_ref().unwrap_or(&old).path().display();
    output::print(&format!("sealed anew with key {key} of {place}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn export(arguments: TransferArgs) -> anyhow::Result<ExitCode> {
    let TransferArgs { data_dir, store, file } = arguments;
    let store = store.options(data_dir, &daemon::node_name(None)?);
    let count = daemon::block_on(async { Ok(server::export(&store, &file).await?) })?;
    output::print(&format!("{count} records written to {}\n", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn import(arguments: TransferArgs) -> anyhow::Result<ExitCode> {
    let TransferArgs { data_dir, store, file } = arguments;
    let store = store.options(data_dir, &daemon::node_name(None)?);
    let count = daemon::block_on(async { Ok(server::import(&store, &file).await?) })?;
    output::print(&format!("{count} records imported from {}\n", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (SHORTEST_LIFETIME..=LONGEST_LIFETIME).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err("it must be between 10s and 365days".to_owned())
    }
}
