//! Tunnels at rest, kept to carry the next stream without a handshake. Each worker has its own, so there is
//! nothing to lock.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustls::ClientConfig;
use tracing::debug;

use super::{CurrentIdentity, Shared, traffic::Counter};
use crate::{
    identity::{IdentityError, NodeName, SpiffeId, WorkloadName, tls},
    tunnel::{DialError, Tunnel, dial},
};

/// Tunnels at rest per peer and worker; further ones are closed.
const MAX_IDLE: usize = 32;

/// How long a tunnel may be at rest. The accepting side keeps it longer, so that this side closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A service of another host, as this one reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Who it must be.
    pub id: Arc<SpiffeId>,
    /// Its host.
    pub node: Arc<NodeName>,
    /// Who serves there, where its host tells.
    pub workload: Option<WorkloadName>,
    /// Where its agent accepts tunnels.
    pub address: SocketAddr,
}

/// Who has tunnels to whom: they are never used for others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ends {
    /// A workload of this host.
    pub caller: Arc<SpiffeId>,
    /// The service.
    pub peer: Arc<Peer>,
}

/// One worker's tunnels.
pub struct Pool {
    shared: Arc<Shared>,
    ends: RefCell<HashMap<Ends, Entry>>,
    /// Tunnels are not kept any more.
    closed: Cell<bool>,
}

#[derive(Default)]
struct Entry {
    /// The most recently used last.
    idle: VecDeque<Idle>,
    /// For the current identity of the caller.
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
    generation: u64,
}

impl Pool {
    /// An empty pool.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, ends: RefCell::default(), closed: Cell::default() }
    }

    /// A tunnel at rest, if there is one. Takes care that the next stream finds one, too. The service listens on `port`.
    pub fn recycle(self: &Rc<Self>, ends: &Ends, port: u16) -> Option<Lease> {
        let idle = self.take_idle(ends)?;
        self.warm(ends, port);
        Some(Lease { tunnel: idle.tunnel, generation: idle.generation })
    }

    /// A new tunnel. Takes care that the next stream finds one at rest.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn open(self: &Rc<Self>, ends: &Ends, port: u16) -> Result<Lease, DialError> {
        let lease = self.dial(ends, port).await?;
        self.warm(ends, port);
        Ok(lease)
    }

    async fn dial(&self, ends: &Ends, port: u16) -> Result<Lease, DialError> {
        let address = ends.peer.address;
        let identity = self.shared.identities.get(&ends.caller).await;
        let identity = identity.ok_or_else(|| DialError::NoCertificate(ends.caller.clone()))?;
        let (generation, config) =
            self.config(ends, &identity).map_err(|error| DialError::Identity(address, error))?;
        self.shared.traffic.add(Counter::TunnelHandshakes, 1);
        let tunnel = dial(address, config, Some(port), self.shared.mark).await?;
        if self.shared.refuses(tunnel.peer()) {
            return Err(DialError::Removed(tunnel.peer().id.clone()));
        }
        Ok(Lease { tunnel, generation })
    }

    /// Takes a tunnel back. One that is not idle is closed: its stream did not come to an end.
    pub fn put_back(&self, ends: &Ends, mut lease: Lease) {
        let is_wanted = !self.closed.get() && Some(lease.generation) == self.generation(&ends.caller);
        if !is_wanted || !lease.tunnel.comes_to_rest() || lease.tunnel.is_retired() {
            return;
        }
        let mut all = self.ends.borrow_mut();
        let idle = &mut all.entry(ends.clone()).or_default().idle;
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
    /// an earlier certificate of their caller.
    pub fn sweep(&self) {
        self.ends.borrow_mut().retain(|ends, entry| {
            let held = self.shared.identities.held(&ends.caller).map(|identity| identity.generation);
            let before = entry.idle.len();
            entry.idle.retain(|idle| {
                Some(idle.generation) == held
                    && idle.since.elapsed() < IDLE_TIMEOUT
                    && is_usable(&idle.tunnel)
            });
            self.shared.traffic.subtract(Counter::TunnelsIdle, (before - entry.idle.len()) as u64);
            !entry.idle.is_empty() || entry.warming
        });
    }

    /// Closes all tunnels at rest, and from now on those that come to rest.
    pub fn close(&self) {
        self.closed.set(true);
        let mut all = self.ends.borrow_mut();
        let idle: usize = all.values_mut().map(|entry| entry.idle.drain(..).len()).sum();
        self.shared.traffic.subtract(Counter::TunnelsIdle, idle as u64);
    }

    /// The most recently used one, whose connection is the likeliest to be alive and its memory to be warm.
    fn take_idle(&self, ends: &Ends) -> Option<Idle> {
        let generation = self.generation(&ends.caller)?;
        let mut all = self.ends.borrow_mut();
        let idle = &mut all.get_mut(ends)?.idle;
        while let Some(candidate) = idle.pop_back() {
            self.shared.traffic.subtract(Counter::TunnelsIdle, 1);
            if candidate.generation == generation
                && is_usable(&candidate.tunnel)
                && !self.shared.refuses(candidate.tunnel.peer())
            {
                return Some(candidate);
            }
        }
        None
    }

    /// Dials a spare tunnel if none is at rest. One at a time: streams that come together dial their own, and
    /// leave them behind.
    fn warm(self: &Rc<Self>, ends: &Ends, port: u16) {
        {
            let mut all = self.ends.borrow_mut();
            let entry = all.entry(ends.clone()).or_default();
            if self.closed.get() || entry.warming || !entry.idle.is_empty() {
                return;
            }
            entry.warming = true;
        }
        let (pool, ends) = (self.clone(), ends.clone());
        tokio::task::spawn_local(async move {
            let result = pool.dial(&ends, port).await;
            if let Some(entry) = pool.ends.borrow_mut().get_mut(&ends) {
                entry.warming = false;
            }
            match result {
                Ok(lease) => pool.put_back(&ends, lease),
                Err(error) => debug!(peer = %ends.peer.id, "no spare tunnel: {error}"),
            }
        });
    }

    /// The TLS configuration for a pair of ends, made once per certificate of the caller.
    fn config(
        &self,
        ends: &Ends,
        identity: &CurrentIdentity,
    ) -> Result<(u64, Arc<ClientConfig>), IdentityError> {
        let mut all = self.ends.borrow_mut();
        let entry = all.entry(ends.clone()).or_default();
        if let Some((generation, config)) = &entry.config
            && *generation == identity.generation
        {
            return Ok((*generation, config.clone()));
        }
        let config = tls::tunnel_client(&identity.identity, &ends.peer.id)?;
        entry.config = Some((identity.generation, config.clone()));
        Ok((identity.generation, config))
    }

    /// That of its certificate, if it is still valid.
    fn generation(&self, caller: &SpiffeId) -> Option<u64> {
        Some(self.shared.identities.valid(caller)?.generation)
    }
}

fn is_usable(tunnel: &Tunnel) -> bool {
    tunnel.is_valid_at(SystemTime::now()) && !tunnel.has_news()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Identity, fixture},
        tunnel::tests::tunnel,
    };

    /// Whether a tunnel at rest is used by a caller whose certificate ends at `not_after`.
    async fn is_used(not_after: SystemTime) -> bool {
        let identity = Identity { not_after, ..fixture::host(&fixture::authority(), "fcc00") };
        let (shared, _wanted) = Shared::new(identity.into(), None).expect("usable");
        let caller = shared.identities.host();
        let peer = Peer {
            id: caller.id.clone(),
            node: shared.node.clone(),
            workload: None,
            address: ([127, 0, 0, 1], 9191).into(),
        };
        let ends = Ends { caller: caller.id.clone(), peer: peer.into() };
        let (opener, _acceptor) = tunnel().await;
        let idle = Idle { tunnel: opener.into(), since: Instant::now(), generation: caller.generation };
        let pool = Pool::new(shared.into());
        pool.ends.borrow_mut().entry(ends.clone()).or_default().idle.push_back(idle);
        pool.take_idle(&ends).is_some()
    }

    #[tokio::test]
    async fn a_tunnel_at_rest_is_not_used_once_its_own_certificate_has_ended() {
        assert!(is_used(SystemTime::now() + Duration::from_secs(60)).await);
        assert!(!is_used(SystemTime::now()).await);
    }

    #[tokio::test]
    async fn a_tunnel_at_rest_is_not_used_once_the_other_ends_certificate_has_ended() {
        let (opener, acceptor) = tunnel().await;
        for end in [&opener, &acceptor] {
            let not_after = end.peer().not_after;
            assert!(is_usable(end) && !end.is_valid_at(not_after), "as the pool and the acceptor ask");
        }
    }
}
