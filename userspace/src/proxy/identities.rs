//! The identities that this host has certificates for: its own, and those of its workloads and services, which are
//! asked for when they are first needed.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::identity::{Identity, IdentityError, SpiffeId, tls};

/// How long a stream waits for the first certificate of its workload, or of its service.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(3);

/// Requests that nobody has taken yet. Whoever finds no room asks again with the next stream.
const MAX_WANTED: usize = 1024;

/// One identity, and what TLS makes of it.
pub struct CurrentIdentity {
    /// The identity.
    pub identity: Arc<Identity>,
    /// Its id, to be shared.
    pub id: Arc<SpiffeId>,
    /// Differs from that of every other: tunnels of an earlier one are not used for new streams.
    pub generation: u64,
    /// For accepting tunnels.
    pub acceptor: Arc<ServerConfig>,
    used: AtomicBool,
}

/// All of them. Readers take no lock.
pub struct Identities {
    host: ArcSwap<CurrentIdentity>,
    others: ArcSwap<HashMap<Arc<SpiffeId>, Arc<CurrentIdentity>>>,
    generations: AtomicU64,
    wanted: mpsc::Sender<Arc<SpiffeId>>,
    changed: watch::Sender<()>,
}

/// Identities that somebody waits for, in the order in which they were asked for.
pub type Wanted = mpsc::Receiver<Arc<SpiffeId>>;

impl CurrentIdentity {
    fn new(identity: Arc<Identity>, generation: u64) -> Result<Self, IdentityError> {
        let (acceptor, id) = (tls::tunnel_server(&identity)?, Arc::new(identity.id.clone()));
        Ok(Self { identity, id, generation, acceptor, used: AtomicBool::new(true) })
    }

    /// Whether it was used since this was asked last.
    pub fn take_used(&self) -> bool {
        self.used.swap(false, Relaxed)
    }
}

impl Identities {
    /// Only that of the host itself; and what others are asked for.
    ///
    /// # Errors
    /// It is unusable for TLS.
    pub fn new(host: Arc<Identity>) -> Result<(Self, Wanted), IdentityError> {
        let (wanted, asked_for) = mpsc::channel(MAX_WANTED);
        let identities = Self {
            host: ArcSwap::from_pointee(CurrentIdentity::new(host, 0)?),
            others: ArcSwap::default(),
            generations: AtomicU64::new(1),
            wanted,
            changed: watch::Sender::default(),
        };
        Ok((identities, asked_for))
    }

    /// Replaces that of the host itself.
    ///
    /// # Errors
    /// It is unusable for TLS; then the earlier one stays.
    pub fn set_host(&self, identity: Arc<Identity>) -> Result<(), IdentityError> {
        let generation = self.generations.fetch_add(1, Relaxed);
        self.host.store(Arc::new(CurrentIdentity::new(identity, generation)?));
        Ok(())
    }

    /// Adds one of a workload or a service, or replaces it.
    ///
    /// # Errors
    /// As [`Self::set_host`].
    pub fn put(&self, identity: Arc<Identity>) -> Result<(), IdentityError> {
        let generation = self.generations.fetch_add(1, Relaxed);
        let current = Arc::new(CurrentIdentity::new(identity, generation)?);
        self.others.rcu(|others| {
            let mut others = HashMap::clone(others);
            others.insert(current.id.clone(), current.clone());
            others
        });
        self.changed.send_replace(());
        Ok(())
    }

    /// Forgets one of a workload or a service.
    pub fn remove(&self, id: &SpiffeId) {
        self.others.rcu(|others| {
            let mut others = HashMap::clone(others);
            others.remove(id);
            others
        });
    }

    /// Says so when there is a new one of a workload or a service.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Those of workloads and services.
    pub fn all(&self) -> Vec<Arc<Identity>> {
        self.others.load().values().map(|current| current.identity.clone()).collect()
    }

    /// That of the host itself.
    pub fn host(&self) -> Arc<CurrentIdentity> {
        self.host.load_full()
    }

    /// The one called `id`, if it is here, which is in use.
    pub fn current(&self, id: &SpiffeId) -> Option<Arc<CurrentIdentity>> {
        let found = self.held(id)?;
        found.used.store(true, Relaxed);
        Some(found)
    }

    /// The same, without counting as use.
    pub fn held(&self, id: &SpiffeId) -> Option<Arc<CurrentIdentity>> {
        let own = || Some(self.host()).filter(|host| *host.id == *id);
        self.others.load().get(id).cloned().or_else(own)
    }

    /// Asks for one that will be needed.
    pub fn want(&self, id: &Arc<SpiffeId>) {
        if self.valid(id).is_none() {
            let _ = self.wanted.try_send(id.clone());
        }
    }

    /// The one called `id`, which is waited for if it is not here yet. `None` if it does not come in time.
    pub async fn get(&self, id: &Arc<SpiffeId>) -> Option<Arc<CurrentIdentity>> {
        if let Some(current) = self.valid(id) {
            return Some(current);
        }
        // Streams that find theirs have no room for this in their tasks.
        Box::pin(timeout(ISSUE_TIMEOUT, self.wait_for(id))).await.ok()
    }

    /// As [`Self::current`], unless it has expired.
    pub fn valid(&self, id: &SpiffeId) -> Option<Arc<CurrentIdentity>> {
        self.current(id).filter(|current| !current.identity.is_expired(SystemTime::now()))
    }

    async fn wait_for(&self, id: &Arc<SpiffeId>) -> Arc<CurrentIdentity> {
        let mut changed = self.changed.subscribe();
        self.want(id);
        loop {
            if let Some(current) = self.valid(id) {
                return current;
            }
            // It lives as long as this.
            let _ = changed.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Subject, authority::DEFAULT_LIFETIME, fixture};

    fn workload() -> Subject {
        Subject::Workload("here".parse().expect("a name"), "web.service".parse().expect("a name"))
    }

    #[tokio::test]
    async fn who_needs_an_identity_asks_for_it_once_and_waits_until_it_is_there() {
        let authority = fixture::authority();
        let (identities, mut wanted) =
            Identities::new(fixture::host(&authority, "here").into()).expect("usable");
        let issued = fixture::issue(&authority, workload(), DEFAULT_LIFETIME);
        let id = Arc::new(issued.id.clone());
        assert!(identities.current(&id).is_none());
        let issue = async {
            let asked_for = wanted.recv().await.expect("asked for");
            assert_eq!(asked_for, id);
            identities.put(issued.into()).expect("usable");
        };
        let (got, ()) = tokio::join!(identities.get(&id), issue);
        assert_eq!(got.expect("in time").id, id);
        assert!(identities.get(&id).await.is_some() && wanted.try_recv().is_err());
        identities.remove(&id);
        assert!(identities.current(&id).is_none());
    }

    #[test]
    fn an_identity_that_has_expired_is_none_and_is_asked_for_again() {
        let authority = fixture::authority();
        let (identities, mut wanted) =
            Identities::new(fixture::host(&authority, "here").into()).expect("usable");
        let expired = fixture::issue(&authority, workload(), Duration::ZERO);
        let id = Arc::new(expired.id.clone());
        identities.put(Arc::new(Identity { not_after: SystemTime::UNIX_EPOCH, ..expired })).expect("usable");
        assert!(identities.valid(&id).is_none() && identities.valid(&identities.host().id).is_some());
        identities.want(&id);
        assert_eq!(wanted.try_recv(), Ok(id));
    }
}
