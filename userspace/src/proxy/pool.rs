//! Tunnels at rest, kept to carry the next stream without a handshake. Each worker has its own, so there is
//! nothing to lock.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustls::ClientConfig;
use tracing::debug;

use super::{Shared, traffic::Counter};
use crate::{
    identity::{NodeName, SpiffeId, tls},
    tunnel::{DialError, Tunnel, dial},
};

/// Tunnels at rest per peer and worker; further ones are closed.
const MAX_IDLE: usize = 32;

/// How long a tunnel may be at rest. The accepting side keeps it longer, so that this side closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Another agent, as this host reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Who it must be.
    pub id: Arc<SpiffeId>,
    /// Its host.
    pub node: Arc<NodeName>,
    /// Where it accepts tunnels.
    pub address: SocketAddr,
}

/// One worker's tunnels.
pub struct Pool {
    shared: Arc<Shared>,
    peers: RefCell<HashMap<Arc<Peer>, Entry>>,
}

#[derive(Default)]
struct Entry {
    /// The most recently used last.
    idle: VecDeque<Idle>,
    /// For the current identity of this host.
    config: Option<(u64, Arc<ClientConfig>)>,
    /// A spare tunnel is being dialled.
    warming: bool,
}

struct Idle {
    tunnel: Box<Tunnel>,
    since: Instant,
    generation: u64,
}

/// A tunnel in use, with what it takes to put it back.
pub struct Lease {
    /// The tunnel.
    pub tunnel: Box<Tunnel>,
    /// It was at rest in the pool, where it may have died unnoticed.
    pub recycled: bool,
    generation: u64,
}

impl Pool {
    /// An empty pool.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, peers: RefCell::default() }
    }

    /// A tunnel at rest, or a new one. Takes care that the next stream finds one at rest.
    ///
    /// # Errors
    /// There is none, and none can be opened.
    pub async fn lease(self: &Rc<Self>, peer: &Arc<Peer>) -> Result<Lease, DialError> {
        if let Some(idle) = self.take_idle(peer) {
            self.warm(peer);
            return Ok(Lease { tunnel: idle.tunnel, recycled: true, generation: idle.generation });
        }
        let lease = self.dial(peer).await?;
        self.warm(peer);
        Ok(lease)
    }

    /// A new tunnel.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn dial(&self, peer: &Arc<Peer>) -> Result<Lease, DialError> {
        let (generation, config) =
            self.config(peer).map_err(|error| DialError::Identity(peer.address, error))?;
        self.shared.traffic.add(Counter::TunnelHandshakes, 1);
        // Streams that need no handshake have no room for one in their tasks.
        let tunnel = Box::pin(dial(peer.address, config, self.shared.mark)).await?;
        Ok(Lease { tunnel, recycled: false, generation })
    }

    /// Takes a tunnel back. One that is not idle is closed: its stream did not come to an end.
    pub fn put_back(&self, peer: &Arc<Peer>, lease: Lease) {
        if lease.generation != self.shared.identity.load().generation || !lease.tunnel.is_idle() {
            return;
        }
        let mut peers = self.peers.borrow_mut();
        let idle = &mut peers.entry(peer.clone()).or_default().idle;
        if idle.len() < MAX_IDLE {
            self.shared.traffic.add(Counter::TunnelsIdle, 1);
            idle.push_back(Idle {
                tunnel: lease.tunnel,
                since: Instant::now(),
                generation: lease.generation,
            });
        }
    }

    /// Closes tunnels that have been at rest for too long, that the other side closed, or that were opened with
    /// an earlier certificate of this host.
    pub fn sweep(&self) {
        let generation = self.shared.identity.load().generation;
        self.peers.borrow_mut().retain(|_, entry| {
            let before = entry.idle.len();
            entry.idle.retain(|idle| {
                idle.generation == generation
                    && idle.since.elapsed() < IDLE_TIMEOUT
                    && is_usable(&idle.tunnel)
            });
            self.shared.traffic.subtract(Counter::TunnelsIdle, (before - entry.idle.len()) as u64);
            !entry.idle.is_empty() || entry.warming
        });
    }

    /// The most recently used one, whose connection is the likeliest to be alive and its memory to be warm.
    fn take_idle(&self, peer: &Arc<Peer>) -> Option<Idle> {
        let generation = self.shared.identity.load().generation;
        let mut peers = self.peers.borrow_mut();
        let idle = &mut peers.get_mut(peer)?.idle;
        while let Some(candidate) = idle.pop_back() {
            self.shared.traffic.subtract(Counter::TunnelsIdle, 1);
            if candidate.generation == generation && is_usable(&candidate.tunnel) {
                return Some(candidate);
            }
        }
        None
    }

    /// Dials a spare tunnel if none is at rest. One at a time: streams that come together dial their own, and
    /// leave them behind.
    fn warm(self: &Rc<Self>, peer: &Arc<Peer>) {
        {
            let mut peers = self.peers.borrow_mut();
            let entry = peers.entry(peer.clone()).or_default();
            if entry.warming || !entry.idle.is_empty() {
                return;
            }
            entry.warming = true;
        }
        let (pool, peer) = (self.clone(), peer.clone());
        tokio::task::spawn_local(async move {
            let result = pool.dial(&peer).await;
            if let Some(entry) = pool.peers.borrow_mut().get_mut(&peer) {
                entry.warming = false;
            }
            match result {
                Ok(lease) => pool.put_back(&peer, lease),
                Err(error) => debug!(peer = %peer.id, "no spare tunnel: {error}"),
            }
        });
    }

    /// The TLS configuration for a peer, made once per identity of this host.
    fn config(&self, peer: &Arc<Peer>) -> Result<(u64, Arc<ClientConfig>), crate::identity::IdentityError> {
        let current = self.shared.identity.load();
        let mut peers = self.peers.borrow_mut();
        let entry = peers.entry(peer.clone()).or_default();
        if let Some((generation, config)) = &entry.config
            && *generation == current.generation
        {
            return Ok((*generation, config.clone()));
        }
        let config = tls::tunnel_client(&current.identity, &peer.id)?;
        entry.config = Some((current.generation, config.clone()));
        Ok((current.generation, config))
    }
}

fn is_usable(tunnel: &Tunnel) -> bool {
    tunnel.is_valid_at(SystemTime::now()) && !tunnel.has_news()
}
