//! Catalog and policy as every watching agent gets them: one snapshot, then each change as it happens.
//!
//! Durable state comes from the store's own sequence of changes. Which hosts are connected is known only
//! here and now, and is put on top. What watchers are told is encoded once for all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::backlog::{Backlog, Follower, Told};
use super::records::{CHANGES, DEFAULTS, DRAINED, HOSTS, PLAINTEXT, REMOVED, RULES, SERVERS, SERVICES};
use super::registry::{Registry, RegistryError};
use super::roots::AUTHORITY;
use super::servers::Departed;
use super::subscription::Subscription;
use super::view::{DamagedRecord, View};
use crate::api::v1;
use crate::api::v1::catalog_event::Event;
use crate::identity::NodeName;
use crate::identity::token::ServerAddress;
use crate::store::{ANNOUNCED, Change, Store, StoreError};

/// How long hosts may be without a connection after the start of a server, to which nobody is connected yet, and when its
/// store answers again, which no server's may have done meanwhile.
const START_TIME: Duration = Duration::from_secs(10);
/// How often watchers are told who came and who left: when all do at once, that is not told of each by itself.
const PRESENCE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a change may take from the store to the watchers.
const LAG: Duration = Duration::from_secs(5);

/// Pause before the store is read again that could not be.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);

/// Why there is nothing to feed.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record of the policy is damaged.
    #[error(transparent)]
    Damaged(#[from] DamagedRecord),
}

/// Catalog, policy, and everybody who watches them.
pub struct Feed {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    view: Mutex<View>,
    events: Backlog,
    /// The revision up to which watchers have been told.
    told: watch::Sender<u64>,
    /// Grows with everything that is new in the view.
    news: watch::Sender<u64>,
    trust: watch::Sender<v1::Trust>,
    /// Changes with the hosts that are connected to this server.
    connections: watch::Sender<()>,
    leader: watch::Sender<Option<String>>,
    departed: mpsc::UnboundedSender<Departed>,
    departures: AsyncMutex<mpsc::UnboundedReceiver<Departed>>,
}

impl Feed {
    /// A feed of the catalog that the store holds.
    ///
    /// # Errors
    /// When the store fails or a record of the policy is damaged.
    pub async fn load(store: Arc<dyn Store>, registry: Arc<Registry>) -> Result<Self, FeedError> {
        let (departed, departures) = mpsc::unbounded_channel();
        let (view, events) = (Mutex::default(), Backlog::new());
        let (told, departures) = (watch::Sender::new(0), AsyncMutex::new(departures));
        let (connections, leader) = (watch::Sender::new(()), watch::Sender::new(None));
        let (trust, news) = (watch::Sender::default(), watch::Sender::new(0));
        let feed = Self {
            store,
            registry,
            view,
            events,
            told,
            news,
            trust,
            connections,
            leader,
            departed,
            departures,
        };
        feed.reload().await?;
        feed.wait_for_hosts();
        Ok(feed)
    }

    /// Nobody is connected yet, or nobody to other servers.
    fn wait_for_hosts(&self) {
        let mut view = self.view();
        let until = Instant::now() + START_TIME;
        view.away = view.hosts.keys().map(|node| (node.clone(), until)).collect();
    }

    /// Follows the store, and records when hosts leave, until `stop`; those that left before are recorded then.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::join!(self.follow(&stop), self.record_departures(&stop));
    }

    async fn follow(&self, stop: &CancellationToken) {
        let mut answers = self.answers();
        let mut watch = self.store.watch(self.revision());
        let mut ticks = tokio::time::interval(PRESENCE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                applied = watch.next() => match applied {
                    Ok(applied) => self.apply(applied.revision, &applied.changes),
                    Err(error) => {
                        warn!(%error, "reading the whole catalog again");
                        while let Err(error) = self.reload().await {
                            error!(%error, "the catalog cannot be read; agents keep what they have");
                            tokio::select! {
                                () = tokio::time::sleep(RELOAD_PAUSE) => {}
                                () = stop.cancelled() => break,
                            }
                        }
                        watch = self.store.watch(self.revision());
                    }
                },
                Ok(()) = answers.changed() => if *answers.borrow_and_update() { self.wait_for_hosts() },
                // Hosts are sent away meanwhile, and nobody tells whether others have them.
                _ = ticks.tick() => if *answers.borrow() { self.tell_presence(Instant::now()) },
                () = stop.cancelled() => break,
            }
        }
    }

    async fn record_departures(&self, stop: &CancellationToken) {
        let mut departures = self.departures.lock().await;
        while let Some(Some(departed)) = stop.run_until_cancelled(departures.recv()).await {
            self.record_departure(&departed).await;
        }
        while let Ok(departed) = departures.try_recv() {
            self.record_departure(&departed).await;
        }
    }

    async fn record_departure(&self, departed: &Departed) {
        if !*self.answers().borrow() {
            return;
        }
        let recorded = match departed {
            Departed::Host(node) => self.registry.seen(node).await,
            Departed::Server(name) => self.registry.server_seen(name).await,
        };
        if let Err(error) = recorded
            && !matches!(error, RegistryError::NotJoined(_))
        {
            warn!(?departed, %error, "could not record when it was last seen");
        }
    }

    /// Tells watchers who came, who left, and who has been away for too long.
    fn tell_presence(&self, now: Instant) {
        let mut view = self.view();
        view.lose_absent(now);
        if let Some(event) = view.take_moved() {
            self.publish(&mut view, event);
        }
    }

    /// Begins a watch for `node`, which counts as connected until it is dropped.
    pub fn subscribe(self: &Arc<Self>, node: NodeName) -> Subscription {
        let mut view = self.view();
        *view.connections.entry(node.to_string()).or_default() += 1;
        self.connections.send_replace(());
        view.note_connected(node.as_str());
        drop(view);
        Subscription::new(self.clone(), node)
    }

    /// The catalog now.
    pub fn snapshot(&self) -> v1::Snapshot {
        self.view().snapshot()
    }

    /// The roots of the mesh, now and whenever they change.
    pub fn trust(&self) -> watch::Receiver<v1::Trust> {
        self.trust.subscribe()
    }

    /// The revision of the catalog now.
    pub fn revision(&self) -> u64 {
        self.view().revision
    }

    /// The revision up to which watchers have been told, whenever that grows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// Grows with everything that is new in the view, also with what watchers are not told.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What `read` finds in the view.
    pub fn read<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.view())
    }

    /// Where agents find servers.
    pub fn servers(&self) -> Vec<ServerAddress> {
        self.view().servers.addresses()
    }

    /// Tells when a host connects to this server or leaves it.
    pub fn connections(&self) -> watch::Receiver<()> {
        self.connections.subscribe()
    }

    /// Whether the store answers, and this server knows what it is talking about.
    pub fn answers(&self) -> watch::Receiver<bool> {
        self.store.answers()
    }

    /// What the leading server announced.
    pub fn leader(&self) -> watch::Receiver<Option<String>> {
        self.leader.subscribe()
    }

    /// Waits until the view has every change of the policy that any server has made so far; false when that takes too
    /// long.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn catch_up(&self) -> Result<bool, StoreError> {
        match self.store.get(CHANGES).await? {
            Some(entry) => Ok(self.reached(entry.revision).await),
            None => Ok(true),
        }
    }

    /// Waits until watchers have been told of everything up to `revision`; false when that takes too long.
    pub async fn reached(&self, revision: u64) -> bool {
        let mut told = self.told.subscribe();
        let reached = told.wait_for(|told| *told >= revision);
        matches!(tokio::time::timeout(LAG, reached).await, Ok(Ok(_)))
    }

    async fn reload(&self) -> Result<(), FeedError> {
        // The lists are of one revision each. Watching begins at the first: what is in a later one already is only
        // said again.
        let (revision, mut entries) = self.store.list(HOSTS).await?;
        for prefix in [RULES, SERVICES, DEFAULTS, DRAINED, REMOVED, AUTHORITY, SERVERS, ANNOUNCED, PLAINTEXT]
        {
            entries.extend(self.store.list(prefix).await?.1);
        }
        let mut fresh = View { revision, ..View::default() };
        let mut view = self.view();
        (fresh.connections, fresh.lost) = (view.connections.clone(), view.lost.clone());
        fresh.away = view.away.clone();
        for entry in entries {
            fresh.put(&entry.key, &entry.value)?;
        }
        *view = fresh;
        let snapshot = Event::Snapshot(view.snapshot());
        self.publish(&mut view, snapshot);
        self.trust.send_replace(view.trust.clone());
        self.tell_leader(&view);
        self.set_told(revision);
        Ok(())
    }

    fn apply(&self, revision: u64, changes: &[Change]) {
        let mut view = self.view();
        view.revision = revision;
        for change in changes {
            let event = match change {
                Change::Put(key, value) | Change::Announce(key, value) => {
                    view.put(key, value).unwrap_or_else(|error| {
                        error!(%error, "agents keep what they have of it");
                        None
                    })
                }
                Change::Delete(key) => view.remove(key),
            };
            if let Some(Event::Trust(trust)) = &event {
                self.trust.send_replace(trust.clone());
            }
            if let Some(event) = event {
                self.publish(&mut view, event);
            }
        }
        for departed in view.departed.drain(..) {
            // Fails only when the server is stopping.
            let _ = self.departed.send(departed);
        }
        self.tell_leader(&view);
        self.set_told(revision);
    }

    fn tell_leader(&self, view: &View) {
        self.leader.send_if_modified(|leader| {
            let news = leader.as_ref() != view.servers.leader();
            if news {
                *leader = view.servers.leader().cloned();
            }
            news
        });
    }

    /// The catalog now, and what watchers are told from then on.
    pub fn begin(&self) -> (Arc<Told>, Follower) {
        let mut view = self.view();
        let encoded = match &view.encoded {
            Some(encoded) => encoded.clone(),
            None => encode(view.revision, Event::Snapshot(view.snapshot())),
        };
        view.encoded = Some(encoded.clone());
        (Arc::new(Told { encoded, removed: None }), self.events.follow())
    }

    /// How many watch now.
    pub fn watchers(&self) -> u32 {
        self.events.followers().try_into().unwrap_or(u32::MAX)
    }

    /// The watch of a host has ended.
    pub fn leave(&self, node: &NodeName) {
        let mut view = self.view();
        let Some(count) = view.connections.get_mut(node.as_str()) else { return };
        *count -= 1;
        if *count == 0 {
            view.connections.remove(node.as_str());
            self.connections.send_replace(());
            view.note_connected(node.as_str());
            // Fails only when the server is stopping.
            let _ = self.departed.send(Departed::Host(node.clone()));
        }
    }

    fn set_told(&self, revision: u64) {
        self.told.send_replace(revision);
        self.news.send_modify(|news| *news += 1);
    }

    /// With the view locked, so that watchers see changes in their order.
    fn publish(&self, view: &mut View, event: Event) {
        self.news.send_modify(|news| *news += 1);
        view.encoded = None;
        let removed = match &event {
            Event::HostRemoved(node) => node.parse().ok(),
            _ => None,
        };
        self.events.tell(Told { encoded: encode(view.revision, event), removed });
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(revision: u64, event: Event) -> Bytes {
    v1::CatalogEvent { revision, event: Some(event) }.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::super::backlog::BOUNDS;
    use super::super::view::RECONNECT_TIME;
    use super::*;
    use crate::catalog::Catalog;
    use crate::store::EmbeddedStore;

    async fn feed(directory: &tempfile::TempDir) -> Arc<Feed> {
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&directory.path().join("db")).unwrap());
        Arc::new(Feed::load(store.clone(), Arc::new(Registry::new(store))).await.unwrap())
    }

    fn change(number: u64) -> Change {
        change_of(number.to_string())
    }

    fn change_of(version: String) -> Change {
        change_of_host("busy", version)
    }

    fn change_of_host(node: &str, version: String) -> Change {
        let report = v1::HostReport { version, ..v1::HostReport::default() };
        let host = v1::Host { node: node.to_owned(), report: Some(report), ..v1::Host::default() };
        Change::Put(format!("{HOSTS}{node}"), host.encode_to_vec())
    }

    fn version(catalog: &Catalog) -> &str {
        &catalog.hosts[&"busy".parse().unwrap()].report.version
    }

    #[tokio::test]
    async fn a_watcher_gets_a_snapshot_and_then_every_change() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        feed.apply(1, &[change(1)]);
        let mut watcher = feed.subscribe("watcher".parse().unwrap());
        let mut catalog = Catalog::default();
        catalog.take(&watcher.next().await.unwrap()).unwrap();
        for revision in [2, 4, 6] {
            feed.apply(revision, &[change(revision)]);
            feed.apply(revision + 1, &[change(revision + 1)]);
            let message = watcher.next().await.unwrap();
            assert_eq!(message.events.len(), 2, "what has come together is told together");
            catalog.take(&message).unwrap();
            assert_eq!((catalog.revision, version(&catalog)), (revision + 1, &*(revision + 1).to_string()));
        }
    }

    #[tokio::test]
    async fn a_slow_watcher_gets_a_new_snapshot_and_not_a_backlog() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        let mut watcher = feed.subscribe("watcher".parse().unwrap());
        watcher.next().await;
        let last = BOUNDS.count as u64 + 1;
        for revision in 1..=last {
            feed.apply(revision, &[change(revision)]);
        }
        let (mut catalog, message) = (Catalog::default(), watcher.next().await.unwrap());
        assert_eq!(message.events.len(), 1);
        catalog.take(&message).unwrap();
        assert_eq!((catalog.revision, version(&catalog)), (last, &*last.to_string()));
        feed.apply(last + 1, &[change(last + 1)]);
        assert_eq!(watcher.next().await.unwrap().events.len(), 1, "nothing is repeated after it");
    }

    #[tokio::test]
    async fn a_watcher_that_does_not_read_has_no_more_kept_for_it_than_so_many_bytes() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        let mut watcher = feed.subscribe("watcher".parse().unwrap());
        watcher.next().await;
        let large = "x".repeat(BOUNDS.bytes / 4);
        for revision in 1..=8 {
            feed.apply(revision, &[change_of(large.clone()), change(revision)]);
        }
        let (mut catalog, message) = (Catalog::default(), watcher.next().await.unwrap());
        assert_eq!(message.events.len(), 1, "the whole catalog");
        catalog.take(&message).unwrap();
        assert_eq!((catalog.revision, version(&catalog)), (8, "8"));
    }

    #[tokio::test]
    async fn a_host_that_reads_slowly_is_told_nothing_more_once_it_was_removed() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        feed.apply(1, &[change(1)]);
        let mut watcher = feed.subscribe("busy".parse().unwrap());
        watcher.next().await;
        let removed = v1::RemovedHost { node: "busy".to_owned(), removed_at: 1 };
        let gone = Change::Put(format!("{REMOVED}busy"), removed.encode_to_vec());
        feed.apply(2, &[Change::Delete(format!("{HOSTS}busy")), gone]);
        for revision in 3..=BOUNDS.count as u64 + 3 {
            feed.apply(revision, &[change_of_host("other", revision.to_string())]);
        }
        assert!(watcher.next().await.is_none(), "the whole catalog");
    }

    #[tokio::test]
    async fn watchers_that_come_together_share_one_snapshot_and_are_told_of_each_other_at_once() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        let hosts = ["fcs00", "fcs01", "fcs02"];
        let joined = hosts.map(|node| {
            let host = v1::Host { node: node.to_owned(), ..v1::Host::default() };
            Change::Put(format!("{HOSTS}{node}"), host.encode_to_vec())
        });
        feed.apply(1, &joined);
        let mut watchers = hosts.map(|node| feed.subscribe(node.parse().unwrap()));
        let mut snapshots = Vec::new();
        for watcher in &mut watchers {
            snapshots.push(watcher.next().await.unwrap().events.remove(0));
        }
        assert!(snapshots.iter().all(|snapshot| snapshot.as_ptr() == snapshots[0].as_ptr()));
        feed.tell_presence(Instant::now());
        let mut catalog = Catalog::default();
        catalog.take(&v1::CatalogEvents { events: snapshots }).unwrap();
        for watcher in &mut watchers {
            let message = watcher.next().await.unwrap();
            assert_eq!(message.events.len(), 1);
            catalog.take(&message).unwrap();
            assert!(catalog.hosts.values().all(|host| host.connected));
        }
    }

    #[tokio::test]
    async fn a_host_that_is_removed_is_told_so_and_nothing_after_it() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        feed.apply(1, &[change(1)]);
        let mut watcher = feed.subscribe("busy".parse().unwrap());
        watcher.next().await;
        feed.apply(2, &[Change::Delete(format!("{HOSTS}busy"))]);
        feed.apply(3, &[change(3)]);
        assert_eq!(watcher.next().await.unwrap().events.len(), 1);
        assert_eq!(watcher.next().await, None);
    }

    #[tokio::test]
    async fn a_host_with_two_watches_is_connected_until_both_end() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        feed.apply(1, &[change(1)]);
        let connected = || feed.snapshot().hosts[0].connected;
        let (first, second) =
            (feed.subscribe("busy".parse().unwrap()), feed.subscribe("busy".parse().unwrap()));
        drop(first);
        assert!(connected());
        feed.apply(2, &[change(2)]);
        assert!(connected(), "a durable change does not touch it");
        drop(second);
        assert!(!connected());
    }

    #[tokio::test]
    async fn a_host_that_stays_away_is_lost_until_it_is_back() {
        let feed = feed(&tempfile::tempdir().unwrap()).await;
        feed.apply(1, &[change(1)]);
        let lost = || feed.snapshot().hosts[0].lost;
        let first = feed.subscribe("busy".parse().unwrap());
        drop(first);
        let now = Instant::now();
        feed.tell_presence(now);
        assert!(!lost(), "not at once");
        feed.tell_presence(now + RECONNECT_TIME);
        feed.apply(2, &[change(2)]);
        assert!(lost(), "a durable change does not touch it");
        let second = feed.subscribe("busy".parse().unwrap());
        feed.tell_presence(now + 2 * RECONNECT_TIME);
        assert!(!lost());
        drop(second);
        feed.tell_presence(now + 2 * RECONNECT_TIME);
        feed.tell_presence(now + 3 * RECONNECT_TIME);
        assert!(lost());
    }
}
