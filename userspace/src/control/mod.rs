//! The agent's side of the control plane: its identity, the catalog, and what it reports.
//!
//! State is published on `watch` channels; readers borrow it and never wait for a server.

mod backoff;
mod cache;
mod confirm;
mod connection;
mod enrolment;
mod flows;
mod issuer;
mod membership;
mod session;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(crate) use backoff::{Backoff, jitter};
pub use cache::{Cache, Cached};
pub use connection::DialError;
pub(crate) use connection::dial;
pub use issuer::Issuer;
pub use membership::Membership;

use crate::api::v1;
use crate::catalog::{Catalog, Report, WireError};
use crate::flows::Flows;
use crate::identity::token::ServerAddress;
use crate::identity::{Fingerprint, Identity, IdentityError, JoinToken, NodeName, TrustDomain};
use crate::seal::{KeySource, SealError};

/// How long a clean stop waits for the server to acknowledge that nothing is served any more.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(2);

/// What an agent needs to take part in a mesh.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// Where the key and the membership are kept.
    pub data_dir: PathBuf,
    /// The key that secrets in `data_dir` are sealed with.
    pub seal: KeySource,
    /// Used when `data_dir` holds no membership yet, and when it holds one that another token gave.
    pub join: Option<JoinToken>,
    /// The name to join as; a membership in `data_dir` keeps its own.
    pub node: NodeName,
    /// `SO_MARK` of connections to servers, which exempts them from the agent's own hooks.
    pub mark: Option<u32>,
    /// A catalog on disk that is older than this revision is not gone by.
    pub remembered_from: u64,
}

/// Whether a server answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// All servers that are known.
    pub servers: Vec<ServerAddress>,
    /// The one in use.
    pub connected: Option<ServerAddress>,
    /// Why there is none in use.
    pub error: Option<String>,
    /// Why the server did not take the last report, if it did not.
    pub refusal: Option<String>,
    /// Addresses of this host that another host claimed first, as of the last report.
    pub contested: Vec<IpAddr>,
}

/// Why the control plane fails.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Neither a membership nor a token to get one.
    #[error(
        "{0} holds no membership of a mesh; make a token on a server with `murmesh token create` and start with --join TOKEN"
    )]
    NotJoined(PathBuf),
    /// A file of the membership cannot be read, written or understood.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong and what to do.
        reason: String,
    },
    /// A key, certificate or name is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A secret cannot be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No connection to a server.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A server answered with an error.
    #[error("server {server}: {message}")]
    Refused {
        /// The server.
        server: ServerAddress,
        /// Its words.
        message: String,
        /// Whether asking again may help.
        retry: bool,
    },
    /// A server sent what cannot be understood.
    #[error("the server's catalog is invalid: {0}")]
    Catalog(#[from] WireError),
    /// The connection to the server ended.
    #[error("the connection to server {0} ended")]
    Ended(ServerAddress),
    /// Stopped before joining.
    #[error("stopped while joining")]
    Stopped,
}

/// The running control plane of an agent. Its tasks end with the token that [`start`] was given,
/// or when this is dropped.
pub struct Control {
    /// The host's identity; replaced at each renewal.
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The catalog as last heard, also before the last restart; kept while no server answers.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// What this host says about itself; `None` until there is something to say.
    pub report: watch::Sender<Option<Report>>,
    /// Who reaches this host's services in clear; `None` where nobody can tell.
    pub plaintext: watch::Sender<Option<v1::PlaintextReport>>,
    /// Who of this host connects to whom; `None` until somebody counts.
    pub flows: watch::Sender<Option<Arc<Flows>>>,
    /// Whether a server answers.
    pub status: watch::Receiver<ServerStatus>,
    /// Roots that signed what workloads and services of this host use.
    pub issuers: watch::Sender<BTreeSet<Fingerprint>>,
    /// Where it is kept what the mesh is known to be.
    pub cache: Arc<Cache>,
    /// Certificates of workloads and services that were kept there.
    pub cached_identities: Vec<Identity>,
    /// This host knew a catalog before this start, of which there is none now.
    pub catalog_is_lost: bool,
    acknowledged: watch::Receiver<Option<Report>>,
    mark: Option<u32>,
    handed_over: CancellationToken,
    _tasks: JoinSet<()>,
}

/// What a host is a member as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// The name of the host in it.
    pub node: NodeName,
    /// Whether it has just become that.
    pub is_new: bool,
}

/// Joins the mesh if need be, and no more.
///
/// # Errors
/// As [`start`].
pub async fn join(options: &ControlOptions) -> Result<Joined, ControlError> {
    let sealer = membership::sealer(&options.data_dir, &options.seal)?;
    let before = Membership::load(&options.data_dir, &sealer)?;
    let membership = enrolment::membership(options, &sealer, &CancellationToken::new()).await?;
    let (trust_domain, node) = membership.name()?;
    let is_new = before.is_none_or(|before| !before.is_of_the_same_token(&membership));
    Ok(Joined { trust_domain, node, is_new })
}

/// Joins the mesh if need be, then keeps identity, catalog and report up to date in the background.
/// Once joined it does not wait for any server.
///
/// # Errors
/// When the host is not a member and cannot become one, or its files are unusable.
pub async fn start(options: ControlOptions, shutdown: CancellationToken) -> Result<Control, ControlError> {
    let sealer = membership::sealer(&options.data_dir, &options.seal)?;
    let membership = enrolment::membership(&options, &sealer, &shutdown).await?;
    let (identity_sender, identity) = watch::channel(membership.identity()?);
    let cache = Cache::new(&options.data_dir, sealer, &identity.borrow().id);
    let Cached { mut catalog, identities: cached_identities, is_lost: mut catalog_is_lost } =
        cache.load(&identity.borrow());
    if catalog.revision < options.remembered_from {
        catalog_is_lost = true;
        warn!("rules changed since the catalog was kept on disk: those in force stay until a server answers");
        catalog = Catalog::default();
    }
    let (catalog_sender, catalog) = watch::channel(Arc::new(catalog));
    let (report, report_receiver) = watch::channel(None);
    let (plaintext, plaintext_receiver) = watch::channel(None);
    let (flows, flows_receiver) = watch::channel(None);
    let servers = membership.servers().to_vec();
    let (status_sender, status) = watch::channel(ServerStatus { servers, ..ServerStatus::default() });
    let (acknowledged_sender, acknowledged) = watch::channel(None);

    let handed_over = CancellationToken::new();
    let (issuers, issuers_receiver) = watch::channel(BTreeSet::new());
    let trust = catalog.clone();
    let renewal =
        enrolment::keep_renewed(membership, options.mark, identity_sender, status_sender.clone(), trust);
    let session = session::Session {
        mark: options.mark,
        identity: identity.clone(),
        catalog: catalog_sender,
        report: report_receiver,
        plaintext: plaintext_receiver,
        flows: flows_receiver,
        acknowledged: acknowledged_sender,
        status: status_sender,
        issuers: issuers_receiver,
        handed_over: handed_over.clone(),
    };
    let (mut tasks, stop, renewals) = (JoinSet::new(), shutdown.clone(), handed_over.clone());
    tasks.spawn(async move { stop.run_until_cancelled(session.run()).await.unwrap_or_default() });
    tasks.spawn(async move {
        let renewal = renewals.run_until_cancelled(renewal);
        shutdown.run_until_cancelled(renewal).await.flatten().unwrap_or_default()
    });
    Ok(Control {
        identity,
        catalog,
        report,
        plaintext,
        flows,
        status,
        issuers,
        cache: Arc::new(cache),
        cached_identities,
        catalog_is_lost,
        acknowledged,
        mark: options.mark,
        handed_over,
        _tasks: tasks,
    })
}

impl Control {
    /// Gets certificates for the workloads and services of this host.
    pub fn issuer(&self) -> Issuer {
        Issuer { identity: self.identity.clone(), status: self.status.clone(), mark: self.mark }
    }

    /// Another process of this host reports from now on, and renews its certificate. The catalog is still followed.
    pub fn hand_over(&self) {
        self.handed_over.cancel();
    }

    /// Reports that nothing is served here any more and waits, for at most two seconds, until a server
    /// has acknowledged it. Returns whether one has.
    pub async fn withdraw(&self) -> bool {
        self.report.send_modify(|report| {
            if let Some(report) = report {
                report.listeners.clear();
            }
        });
        let wanted = self.report.borrow().clone();
        let mut acknowledged = self.acknowledged.clone();
        let arrived = acknowledged.wait_for(|report| *report == wanted);
        matches!(tokio::time::timeout(WITHDRAW_TIMEOUT, arrived).await, Ok(Ok(_)))
    }
}
