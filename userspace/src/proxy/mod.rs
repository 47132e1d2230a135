//! The data path: intercepted connections into tunnels (`outbound`), tunnels into services (`inbound`).
//!
//! Each core has a worker: a thread with its own runtime, listeners and tunnels. What workers share is read-only
//! snapshots, replaced whole, and counters.

mod accept;
pub mod access;
pub mod access_log;
mod callers;
mod inbound;
mod judge;
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
    identity::{Identity, IdentityError, SpiffeId, tls},
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
    /// Who this host's processes are, once they are followed; a sidecar does not tell them apart.
    pub workloads: OnceLock<watch::Receiver<Workloads>>,
    /// Who this host is.
    pub identity: ArcSwap<CurrentIdentity>,
    /// What is counted.
    pub traffic: Traffic,
    /// `SO_MARK` of the agent's own sockets; a sidecar has no hooks to be exempt from.
    pub mark: Option<u32>,
}

/// This host's identity, and what TLS makes of it.
pub struct CurrentIdentity {
    /// The identity.
    pub identity: Arc<Identity>,
    /// Its id, to be shared.
    pub id: Arc<SpiffeId>,
    /// Counts renewals: tunnels of an earlier one are not used for new streams.
    pub generation: u64,
    /// For accepting tunnels.
    pub acceptor: Arc<ServerConfig>,
}

impl CurrentIdentity {
    /// Prepares `identity` for use.
    ///
    /// # Errors
    /// It is unusable for TLS.
    pub fn new(identity: Arc<Identity>, generation: u64) -> Result<Self, IdentityError> {
        let acceptor = tls::tunnel_server(&identity)?;
        Ok(Self { id: Arc::new(identity.id.clone()), identity, generation, acceptor })
    }
}

impl Shared {
    /// With nothing to route to and nothing served.
    pub fn new(identity: CurrentIdentity, mark: Option<u32>) -> Self {
        Self {
            routes: ArcSwap::default(),
            services: ArcSwap::default(),
            rules: ArcSwap::default(),
            workloads: OnceLock::new(),
            identity: ArcSwap::from_pointee(identity),
            traffic: Traffic::default(),
            mark,
        }
    }
}
