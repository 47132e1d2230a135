//! The server: certificate authority, catalog and join, over TLS for agents and a Unix socket for the operator.

mod addresses;
mod admin;
mod administration;
mod backlog;
mod confirmation;
mod credentials;
mod feed;
mod figures;
mod flows;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod leadership;
mod listener;
mod mesh;
mod metered;
mod needs;
mod plaintext;
mod policy;
mod presence;
mod records;
mod registry;
mod removal;
mod roots;
mod rotation;
mod sealing;
mod servers;
mod services;
mod subscription;
#[cfg(test)]
mod tests;
mod transfer;
mod view;
mod web;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server as GrpcServer;
use tracing::{info, warn};

use crate::admission::{Admission, Limits, Refusals, descriptors};
use crate::api::v1::administration_server::AdministrationServer;
use crate::api::v1::local_server::LocalServer;
use crate::api::v1::mesh_server::MeshServer;
use crate::api::{MAX_REQUEST_BYTES, unix_seconds, v1};
use crate::identity::token::{ServerAddress, ServerAddressError};
use crate::identity::{IdentityError, NodeName, SpiffeId, TrustDomain};
use crate::local::{LocalError, LocalSocket, SERVER_SOCKET};
use crate::metrics::{self, MetricsAddress};
use crate::notify;
use crate::seal::{KeyId, KeySource};
use crate::store::{EmbeddedStore, EtcdOptions, EtcdStore, Store, StoreError};
use admin::AdminService;
use administration::AdministrationService;
use credentials::Credentials;
use feed::{Feed, FeedError};
use figures::{CountCallsLayer, Counted, Figures, Timed};
use flows::{HostFlows, OtherServers};
use leadership::Leadership;
use listener::Entrance;
use mesh::MeshService;
pub use plaintext::{MAX_CLIENTS as MAX_PLAINTEXT_CLIENTS, MAX_PORTS as MAX_PLAINTEXT_PORTS};
pub use policy::DEFAULT_MAX_RULES;
use policy::PolicyRecords;
use presence::Presence;
use registry::{Registry, RegistryError};
use roots::RootRecords;
use rotation::Rotation;
use transfer::TransferError;
pub use web::{DEFAULT_PAGE, PageAddressError, PageOptions};
use web::{Page, Sources};

/// Where agents find a server unless told otherwise.
pub const DEFAULT_PORT: u16 = 9190;

const DATABASE_FILE: &str = "server.redb";
/// A connection that was silent for the interval, and answers no ping within the timeout, is closed: its agent hangs.
/// Kernels tell much sooner that its host is gone. A server that is busy with a thousand agents at once, or shares its
/// machine with them, must not take that for their end, and have them all come again.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_STREAMS_PER_CONNECTION: u32 = 16;
/// Pause before a store is asked again that did not answer at the start.
const QUORUM_PAUSE: Duration = Duration::from_secs(1);
/// How long calls in progress may take to end at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a server keeps its records.
#[derive(Debug, Clone)]
pub enum StoreOptions {
    /// In a file in this directory: for one server.
    Embedded(PathBuf),
    /// In an etcd cluster, with other servers.
    Etcd(EtcdOptions),
}

/// How to run a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where its records are kept.
    pub store: StoreOptions,
    /// The key that secrets in the database are sealed with.
    pub seal: KeySource,
    /// Where the Unix socket for the command line is made.
    pub run_dir: PathBuf,
    /// Addresses to listen on; none means port 9190 on every address.
    pub listen: Vec<SocketAddr>,
    /// Addresses that agents are given; none means this machine's first address and the port listened on.
    pub advertise: Vec<ServerAddress>,
    /// Where figures are to be had.
    pub metrics: MetricsAddress,
    /// The name of the mesh. Fixed at the first start; only needed then, and checked later.
    pub trust_domain: Option<TrustDomain>,
    /// How long the certificates live that it signs.
    pub certificate_lifetime: Duration,
    /// The name in the server's own identity.
    pub node: NodeName,
    /// How many rules the mesh may have.
    pub max_rules: usize,
    /// Where the page is.
    pub page: PageOptions,
}

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory is unusable.
    #[error("{path}: {reason}; choose another with --data-dir")]
    DataDirectory {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        reason: String,
    },
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Records cannot be moved, or were not moved completely.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// A record in the database fails.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Catalog or policy cannot be read.
    #[error(transparent)]
    Feed(#[from] FeedError),
    /// The authority or a certificate fails.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Another mesh lives in this data directory.
    #[error(
        "the data directory is of trust domain {found}, not {asked}; leave out --trust-domain or choose another --data-dir"
    )]
    OtherTrustDomain {
        /// What the database says.
        found: TrustDomain,
        /// What was asked for.
        asked: TrustDomain,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {reason}; choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        reason: String,
    },
    /// The page has no place.
    #[error("cannot serve the page on {address}: {reason}; choose another address with --page, or off")]
    Page {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        reason: String,
    },
    /// There is no address to give to agents.
    #[error("this machine has no address that agents could use; name one with --advertise HOST:PORT")]
    NothingToAdvertise,
    /// The address to give to agents is not one.
    #[error(transparent)]
    Advertise(#[from] ServerAddressError),
    /// The Unix socket fails.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Serving failed.
    #[error("serving failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A server whose listeners are bound and whose state is loaded.
pub struct Server {
    listeners: Vec<TcpListener>,
    socket: LocalSocket,
    credentials: Arc<Credentials>,
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    records: RootRecords,
    feed: Arc<Feed>,
    name: NodeName,
    administration: AdministrationService,
    metrics: MetricsAddress,
    counted: Arc<Counted>,
    page: Option<Page>,
}

/// Runs a server until `shutdown`.
///
/// # Errors
/// When it cannot start, or serving fails.
pub async fn run(options: ServerOptions, shutdown: CancellationToken) -> Result<(), ServerError> {
    match shutdown.run_until_cancelled(Server::bind(options)).await {
        Some(server) => server?.serve(shutdown).await,
        None => Ok(()),
    }
}

impl Server {
    /// Loads the state, or makes it at the first start, and binds every listener.
    ///
    /// # Errors
    /// Any that keeps the server from starting.
    pub async fn bind(options: ServerOptions) -> Result<Self, ServerError> {
        let store = open_store(&options.store).await?;
        wait_for_quorum(&*store).await?;
        transfer::ensure_finished(&*store).await?;
        let counted = Arc::new(Counted::default());
        let store: Arc<dyn Store> = Arc::new(Timed { store, counted: counted.clone() });
        let registry = Arc::new(Registry::new(store.clone()));
        let sealer = Arc::new(sealing::open(&*store, &options.seal).await?);
        let records = RootRecords { store: store.clone(), sealer };
        let roots = records.load(options.trust_domain.as_ref()).await?;
        let found = roots.authority.trust_domain().clone();
        let asked = options.trust_domain.unwrap_or_else(|| found.clone());
        if asked != found {
            return Err(ServerError::OtherTrustDomain { found, asked });
        }
        let id = SpiffeId::server(asked, options.node.clone());
        let credentials = Credentials::new(roots, id, options.certificate_lifetime)?;
        let credentials = Arc::new(credentials.counted_by(counted.clone()));
        let listeners = listener::bind(&options.listen)?;
        let addresses = listener::advertised(options.advertise, &listeners)?;
        let alone = matches!(options.store, StoreOptions::Embedded(_));
        registry.add_server(&record(&options.node, &addresses), alone).await?;
        let feed = Arc::new(Feed::load(store.clone(), registry.clone()).await?);
        let policy = Arc::new(PolicyRecords {
            store: store.clone(),
            feed: feed.clone(),
            trust_domain: credentials.trust_domain().clone(),
            max_rules: options.max_rules,
        });
        let lifetime = options.certificate_lifetime;
        let rotation = Rotation { records: records.clone(), feed: feed.clone(), lifetime };
        let page = Page::bind(options.page)?;
        let administration = AdministrationService { policy, rotation, page: page.as_ref().map(Page::doors) };
        let socket = LocalSocket::bind(&options.run_dir, SERVER_SOCKET)?;
        Ok(Self {
            listeners,
            socket,
            credentials,
            store,
            registry,
            records,
            feed,
            name: options.node,
            administration,
            metrics: options.metrics,
            counted,
            page,
        })
    }

    /// The addresses that it listens on.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `shutdown`; calls in progress get three seconds to end.
    ///
    /// # Errors
    /// When a listener fails for good.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ServerError> {
        info!(listen = ?self.addresses(), id = %self.credentials.id(), "ready");
        let mut tasks = JoinSet::new();
        let (sender, connections) = mpsc::channel(1);
        let refusals = Arc::new(Refusals::default());
        let entrance = Arc::new(Entrance {
            credentials: self.credentials.clone(),
            admission: Admission::new(Limits::of_server(descriptors())).into(),
            refusals: refusals.clone(),
            connections: sender,
        });
        for listener in self.listeners {
            tasks.spawn(listener::accept(listener, entrance.clone()));
        }
        tasks.spawn(self.credentials.clone().keep_renewed());
        tasks.spawn(self.credentials.clone().follow_roots(self.records.clone(), self.feed.trust()));
        let figures = Figures {
            name: self.name.clone(),
            counted: self.counted.clone(),
            credentials: self.credentials.clone(),
            feed: self.feed.clone(),
            refusals: refusals.clone(),
        };
        tasks.spawn(metrics::serve(self.metrics, Arc::new(figures)));
        let (name, store, registry) = (self.name.to_string(), self.store, self.registry.clone());
        let presence = Presence { store: store.clone(), feed: self.feed.clone(), name: name.clone() };
        tasks.spawn(presence.keep());
        let feed = self.feed.clone();
        tasks.spawn(Leadership { store: store.clone(), registry, feed, name: name.clone() }.keep());
        let feed_stop = CancellationToken::new();
        tasks.spawn(confirmation::run(self.administration.policy.clone()));
        let feeding = tokio::spawn(self.feed.clone().run(feed_stop.clone()));
        let flows = Arc::<HostFlows>::default();
        tasks.spawn(flows.clone().forget_unseen());
        if let Some(page) = self.page {
            let (feed, flows, credentials) = (self.feed.clone(), flows.clone(), self.credentials.clone());
            let others = OtherServers {
                name: name.clone(),
                feed: feed.clone(),
                flows: flows.clone(),
                credentials: credentials.clone(),
            };
            tasks.spawn(others.ask());
            tasks.spawn(page.serve(Sources { feed, flows, credentials }));
        }

        let mesh = MeshService {
            registry: self.registry.clone(),
            credentials: self.credentials.clone(),
            records: self.records,
            feed: self.feed.clone(),
            flows,
            shutdown: shutdown.clone(),
        };
        let registry = self.registry.clone();
        let (credentials, feed) = (self.credentials, self.feed);
        let admin = AdminService { registry: self.registry, credentials, feed, refusals };
        let routes =
            Routes::new(LocalServer::new(admin)).add_service(AdministrationServer::new(self.administration));
        let local = self.socket.serve(routes, shutdown.clone());
        notify::ready();
        let serving = GrpcServer::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .layer(CountCallsLayer(self.counted))
            .add_service(MeshServer::new(mesh).max_decoding_message_size(MAX_REQUEST_BYTES))
            .serve_with_incoming_shutdown(
                ReceiverStream::new(connections),
                shutdown.clone().cancelled_owned(),
            );
        let both = async {
            tokio::try_join!(async { Ok::<_, ServerError>(serving.await?) }, async { Ok(local.await?) })
        };
        let overdue = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        };
        let ended = tokio::select! {
            ended = both => ended.map(|_| ()),
            () = overdue => Ok(()),
        };
        tasks.shutdown().await;
        feed_stop.cancel();
        // Fails only when the feed panicked, which its own task has reported.
        let _ = feeding.await;
        if let Err(error) = registry.server_seen(&name).await {
            warn!(%error, "could not record when this server was last seen");
        }
        store.close().await;
        ended
    }
}

/// Writes all records of the mesh into a file, and returns how many there are.
///
/// # Errors
/// When the store is in use, holds no mesh or fails, or the file cannot be written.
pub async fn export(store: &StoreOptions, path: &Path) -> Result<usize, ServerError> {
    Ok(transfer::export(&*open_store(store).await?, path).await?)
}

/// Puts all records of such a file into an empty store, and returns how many there are.
///
/// # Errors
/// When the store is in use, holds a mesh or fails, or the file is not an export.
pub async fn import(store: &StoreOptions, path: &Path) -> Result<usize, ServerError> {
    Ok(transfer::import(&*open_store(store).await?, path).await?)
}

/// Seals every secret in the store anew; no server may use it meanwhile. The key from `old` gives way to the one
/// from `new`, or to a new one in the data directory. Returns the id of the new key.
///
/// # Errors
/// When the store is in use or sealed with another key, or a key cannot be had.
pub async fn reseal(
    store: &StoreOptions,
    old: &KeySource,
    new: Option<&KeySource>,
) -> Result<KeyId, ServerError> {
    Ok(sealing::reseal(&*open_store(store).await?, old, new).await?)
}

/// Waits until the store answers: machines that start together are not ready together.
async fn wait_for_quorum(store: &dyn Store) -> Result<(), StoreError> {
    loop {
        match store.list(records::SERVERS).await {
            Err(error @ StoreError::NoQuorum { .. }) => warn!(%error, "waiting for the store"),
            answered => return answered.map(|_| ()),
        }
        tokio::time::sleep(QUORUM_PAUSE).await;
    }
}

fn record(name: &NodeName, addresses: &[ServerAddress]) -> v1::Server {
    v1::Server {
        node: name.to_string(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        last_seen: unix_seconds(SystemTime::now()),
        ..v1::Server::default()
    }
}

/// The store, which is made if it is missing.
///
/// # Errors
/// When it cannot be opened. An etcd cluster is not asked yet.
pub async fn open_store(options: &StoreOptions) -> Result<Arc<dyn Store>, ServerError> {
    let path = match options {
        StoreOptions::Embedded(path) => path,
        StoreOptions::Etcd(options) => return Ok(Arc::new(EtcdStore::open(options).await?)),
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| ServerError::DataDirectory { path: path.to_owned(), reason: error.to_string() })?;
    Ok(Arc::new(EmbeddedStore::open(&path.join(DATABASE_FILE))?))
}
