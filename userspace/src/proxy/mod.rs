//! The data path: intercepted connections into tunnels (`outbound`), tunnels into services (`inbound`).
//!
//! Each core has a worker: a thread with its own runtime, listeners and tunnels. What workers share is read-only
//! snapshots, replaced whole, and counters.

mod accept;
pub mod access;
pub mod access_log;
mod callers;
mod inbound;
pub mod judge;
pub mod live;
mod origin;
mod outbound;
mod pool;
pub mod relay;
mod routes;
mod rules;
pub mod traffic;
pub mod watchdog;
mod worker;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::sync::watch;

pub use origin::Origin;
pub use pool::Peer;
pub use routes::{Here, LocalServices, Route, Routes};
pub use rules::Rules;
pub use worker::{BoundWorkers, Listen, Workers};

use crate::{
    identity::{Identity, IdentityError, NodeName, SpiffeId, tls},
    observe::Observer,
    workload::Workloads,
};
use traffic::Traffic;

/// What all workers read.
pub struct Shared {
    /// Where original destinations lead.
    pub routes: ArcSwap<Routes>,
    /// What may be reached on this host.
    pub services: ArcSwap<LocalServices>,
    /// Who may reach what.
    pub rules: ArcSwap<Rules>,
    /// Says that there are new rules.
    rules_changed: watch::Sender<()>,
    /// Who this host's processes are, once they are followed; a sidecar does not tell them apart.
    pub workloads: OnceLock<watch::Receiver<Workloads>>,
    /// Who this host is.
    pub identity: ArcSwap<CurrentIdentity>,
    /// What is counted.
    pub traffic: Traffic,
    /// Where what becomes of connections is told.
    pub observer: Arc<Observer>,
    /// `SO_MARK` of the agent's own sockets; a sidecar has no hooks to be exempt from.
    pub mark: Option<u32>,
}

/// This host's identity, and what TLS makes of it.
pub struct CurrentIdentity {
    /// The identity.
    pub identity: Arc<Identity>,
    /// Its id, to be shared.
    pub id: Arc<SpiffeId>,
    /// The host that it is of.
    pub node: Arc<NodeName>,
    /// Counts renewals: tunnels of an earlier one are not used for new streams.
    pub generation: u64,
    /// For accepting tunnels.
    pub acceptor: Arc<ServerConfig>,
}

impl CurrentIdentity {
    /// Prepares `identity` for use.
    ///
    /// # Errors
    /// It is unusable for TLS, or of no host.
    pub fn new(identity: Arc<Identity>, generation: u64) -> Result<Self, IdentityError> {
        let acceptor = tls::tunnel_server(&identity)?;
        let (id, node) = (Arc::new(identity.id.clone()), Arc::new(identity.node()?.clone()));
        Ok(Self { identity, id, node, generation, acceptor })
    }
}

impl Shared {
    /// With nothing to route to and nothing served.
    pub fn new(identity: CurrentIdentity, mark: Option<u32>) -> Self {
        Self {
            routes: ArcSwap::default(),
            services: ArcSwap::default(),
            rules: ArcSwap::default(),
            rules_changed: watch::Sender::default(),
            workloads: OnceLock::new(),
            identity: ArcSwap::from_pointee(identity),
            traffic: Traffic::default(),
            observer: Arc::default(),
            mark,
        }
    }

    /// From now on streams are judged by `rules`, those that are open too.
    pub fn set_rules(&self, rules: Rules) {
        let is_open = rules.is_open();
        let before = self.rules.swap(Arc::new(rules));
        if !(is_open && before.is_open()) {
            self.rules_changed.send_replace(());
        }
    }
}
