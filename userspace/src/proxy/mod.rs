//! The data path: intercepted connections into tunnels (`outbound`), tunnels into services (`inbound`).
//!
//! Each core has a worker: a thread with its own runtime, listeners and tunnels. What workers share is read-only
//! snapshots, replaced whole, and counters.

mod accept;
pub mod access;
pub mod access_log;
mod callers;
mod carry;
pub mod ending;
mod handshakes;
mod held;
pub mod identities;
mod inbound;
pub mod instances;
pub mod judge;
mod listening;
pub mod live;
mod origin;
mod outbound;
mod pool;
pub mod questions;
pub mod relay;
mod removals;
mod routes;
mod rules;
mod services;
mod sources;
pub mod tally;
pub mod traffic;
pub mod watchdog;
mod worker;

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use identities::{CurrentIdentity, Identities, Wanted};
pub use listening::Listening;
pub use origin::Origin;
pub use pool::Peer;
pub use routes::{Choice, Here, Route, Routes};
pub use rules::Rules;
pub use services::{FormerlyNamed, LocalServices};
pub use worker::{BoundWorkers, Listen, WorkerListeners, Workers};

use crate::{
    admission::{Admission, Limits, Refusals, descriptors},
    flows::Flows,
    identity::{Identity, IdentityError, NodeName, PeerIdentity, Removed},
    observe::Observer,
    workload::Finder,
};
use questions::Questions;
use removals::Removals;
use tally::Tally;
use traffic::Traffic;

/// What all workers read.
pub struct Shared {
    /// Where original destinations lead.
    pub routes: ArcSwap<Routes>,
    /// What may be reached on this host.
    pub services: ArcSwap<LocalServices>,
    /// Who may reach what.
    pub rules: ArcSwap<Rules>,
    /// Whose certificates are refused.
    pub removals: ArcSwap<Removals>,
    /// Says that there are new rules, or that hosts were removed.
    rules_changed: watch::Sender<()>,
    /// Who this host's processes are, once they are followed; a sidecar does not tell them apart.
    pub workloads: OnceLock<Arc<Finder>>,
    /// Who this host is, and who its workloads and services are.
    pub identities: Identities,
    /// Its name.
    pub node: Arc<NodeName>,
    /// What is counted.
    pub traffic: Traffic,
    /// What is counted by service.
    pub tally: Tally,
    /// Connections to the tunnel port.
    pub admission: Arc<Admission>,
    /// Those that did not become a tunnel, and tunnels that broke the protocol.
    pub refusals: Refusals,
    /// Where what becomes of connections is told.
    pub observer: Arc<Observer>,
    /// Who of this host connects to whom.
    pub flows: Arc<Flows>,
    /// Who of others connects to this host.
    pub incoming: Flows,
    /// By which workers are asked what their open streams have moved.
    pub questions: Questions,
    /// `SO_MARK` of the agent's own sockets; a sidecar has no hooks to be exempt from.
    pub mark: Option<u32>,
}

impl Shared {
    /// With nothing to route to and nothing served, on the host that has `identity`. What other identities are needed
    /// is asked for.
    ///
    /// # Errors
    /// The identity is unusable for TLS, or of no host.
    pub fn new(identity: Arc<Identity>, mark: Option<u32>) -> Result<(Self, Wanted), IdentityError> {
        let node = Arc::new(identity.node()?.clone());
        let (identities, wanted) = Identities::new(identity)?;
        let shared = Self {
            routes: ArcSwap::default(),
            services: ArcSwap::default(),
            rules: ArcSwap::default(),
            removals: ArcSwap::default(),
            rules_changed: watch::Sender::default(),
            workloads: OnceLock::new(),
            identities,
            node,
            traffic: Traffic::default(),
            tally: Tally::default(),
            admission: Admission::new(Limits::of_agent(descriptors())).into(),
            refusals: Refusals::default(),
            observer: Arc::default(),
            flows: Arc::default(),
            incoming: Flows::default(),
            questions: Questions::default(),
            mark,
        };
        Ok((shared, wanted))
    }

    /// From now on certificates that these hosts had are refused, and streams with them are cut.
    pub fn set_removed(&self, removed: &Arc<Removed>) {
        let before = self.removals.load();
        if before.hosts != *removed {
            self.removals.store(Arc::new(before.followed_by(removed.clone())));
            self.rules_changed.send_replace(());
        }
    }

    /// Whether a certificate is not accepted any more although it is valid.
    pub fn refuses(&self, peer: &PeerIdentity) -> bool {
        self.removals.load().hosts.refuses(peer)
    }

    /// From now on streams are judged by `rules`, those that are open too.
    pub fn set_rules(&self, rules: Rules) {
        let rules = Arc::new(rules);
        let before = self.rules.swap(rules.clone());
        if !rules.has_policy_of(&before) {
            self.rules_changed.send_replace(());
        }
    }
}
