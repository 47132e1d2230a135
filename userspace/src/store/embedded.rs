//! The store of a single server: one redb file.
//!
//! redb syncs each commit before it returns, so what was acknowledged survives `kill -9` and loss of power. Transactions
//! that come while others are synced are written together next, and synced once. What is announced is kept in memory only,
//! and so goes with the server.
//!
//! After a failure to read or write redb refuses everything until the file is opened again: that is done at the next use,
//! so that a disk which was full costs what was tried meanwhile, and no restart.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::identity::key::belong_to_directory;
use crate::recent::{Bounds, Recent};

use super::{ANNOUNCED, Applied, Change, Condition, Entry, Outcome, Store, StoreError, Transaction, Watch};

/// Key to (revision, value).
const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// One row: the revision of the store.
const REVISION: TableDefinition<'_, (), u64> = TableDefinition::new("revision");
/// Applied transactions that are kept for watchers. One may be of nearly 1 MiB, where ordinary ones have a few KiB.
const HISTORY: Bounds = Bounds { count: 1024, bytes: 32 << 20 };
/// Transactions that are written together: far fewer than are kept for watchers.
const MAX_TOGETHER: usize = 256;

/// A store in one file.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// Those in progress keep the file open, also when nobody waits for them any more.
    commits: TaskTracker,
}

struct Shared {
    path: PathBuf,
    /// `None` since a failure.
    database: RwLock<Option<Database>>,
    /// Transactions that nobody has begun to write.
    waiting: Mutex<Vec<Waiting>>,
    /// Held while transactions are written and kept, so that watchers see them in their order.
    turn: Arc<AsyncMutex<()>>,
    state: Mutex<State>,
    latest: watch::Sender<u64>,
    session: watch::Sender<u64>,
    /// Always: without its file there would be no store.
    answers: watch::Sender<bool>,
}

struct Waiting {
    transaction: Transaction,
    answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

struct State {
    history: Recent<Arc<Applied>>,
    announced: Announced,
}

/// Key to (revision, value).
type Announced = BTreeMap<String, (u64, Vec<u8>)>;

impl EmbeddedStore {
    /// Opens the store in `path`, which is created for its owner only if it is missing.
    ///
    /// # Errors
    /// When the file cannot be opened, is damaged, or is in use by another process.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = open(path)?;
        let revision = prepare(&database).map_err(|error| not_opened(path, &error))?;
        let latest = watch::Sender::new(revision);
        let (waiting, turn) = Default::default();
        let state = Mutex::new(State { history: Recent::new(HISTORY), announced: Announced::new() });
        let (session, answers) = (watch::Sender::new(1), watch::Sender::new(true));
        let (path, database) = (path.to_owned(), RwLock::new(Some(database)));
        Ok(Self {
            commits: TaskTracker::new(),
            shared: Arc::new(Shared { path, database, waiting, turn, state, latest, session, answers }),
        })
    }
}

#[tonic::async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.shared.get(key)
    }

    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError> {
        self.shared.list(prefix).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let committed = self.commits.spawn(self.shared.clone().commit(transaction)).await;
        committed.map_err(|error| StoreError::Database(error.to_string()))?
    }

    fn watch(&self, revision: u64) -> Box<dyn Watch> {
        Box::new(EmbeddedWatch {
            shared: self.shared.clone(),
            latest: self.shared.latest.subscribe(),
            revision,
        })
    }

    fn sessions(&self) -> watch::Receiver<u64> {
        self.shared.session.subscribe()
    }

    fn answers(&self) -> watch::Receiver<bool> {
        self.shared.answers.subscribe()
    }

    async fn close(&self) {
        self.commits.close();
        self.commits.wait().await;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work`. A database that fails is closed, and opened again at the next call.
    fn using<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.open_again()?;
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &*database else {
            return Err(StoreError::Database("it has just failed, try again".to_owned()));
        };
        let done = work(open);
        drop(database);
        if let Err(error @ (redb::Error::Io(_) | redb::Error::PreviousIo)) = &done {
            warn!("{} is closed, to be opened again: {error}", self.path.display());
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(done?)
    }

    /// If it is closed.
    fn open_again(&self) -> Result<(), StoreError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            let opened = open(&self.path)?;
            let revision = revision(&opened)?;
            info!(revision, "{} is open again", self.path.display());
            *database = Some(opened);
            // What failed may have been kept all the same. Watchers then have to list again.
            self.latest.send_if_modified(|latest| std::mem::replace(latest, revision) != revision);
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        if key.starts_with(ANNOUNCED) {
            let state = self.state();
            return Ok(state.announced.get(key).map(|(revision, value)| entry(key, (*revision, value))));
        }
        self.using(|database| {
            let table = database.begin_read()?.open_table(ENTRIES)?;
            Ok(table.get(key)?.map(|found| entry(key, found.value())))
        })
    }

    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError> {
        let mut entries = Vec::new();
        let mut turn = None;
        if ANNOUNCED.starts_with(prefix) || prefix.starts_with(ANNOUNCED) {
            // Nothing is written until both parts have been read.
            turn = Some(self.turn.lock().await);
            let state = self.state();
            let announced = state.announced.range(prefix.to_owned()..);
            let announced = announced.take_while(|(key, _)| key.starts_with(prefix));
            entries.extend(announced.map(|(key, (revision, value))| entry(key, (*revision, value))));
        }
        let revision = self.using(|database| {
            let reading = database.begin_read()?;
            let revision = reading.open_table(REVISION)?.get(())?.map_or(0, |revision| revision.value());
            for found in reading.open_table(ENTRIES)?.range(prefix..)? {
                let (key, value) = found?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                entries.push(entry(key.value(), value.value()));
            }
            Ok(revision)
        })?;
        drop(turn);
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        Ok((revision, entries))
    }

    /// Whoever has the turn writes what waits, so that most find theirs written when it is their turn.
    async fn commit(self: Arc<Self>, transaction: Transaction) -> Result<Outcome, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        self.waiting().push(Waiting { transaction, answer });
        let mut turn = self.turn.clone().lock_owned().await;
        loop {
            match answered.try_recv() {
                Ok(outcome) => return outcome,
                Err(TryRecvError::Closed) => {
                    return Err(StoreError::Database("the writer panicked".to_owned()));
                }
                Err(TryRecvError::Empty) => {}
            }
            let shared = self.clone();
            let written = tokio::task::spawn_blocking(move || {
                shared.write_waiting();
                turn
            });
            turn = written.await.map_err(|error| StoreError::Database(error.to_string()))?;
        }
    }

    /// Writes those that have waited for longest, and answers them.
    fn write_waiting(&self) {
        let together = self.take_waiting();
        let announced = |key: &str| self.state().announced.get(key).map(|(revision, _)| *revision);
        let outcomes = match self.using(|database| write(database, &together, announced)) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // Who does not wait any more need not know.
                together.into_iter().for_each(|waiting| drop(waiting.answer.send(Err(error.clone()))));
                return;
            }
        };
        let mut answers = Vec::with_capacity(together.len());
        let mut state = self.state();
        for (Waiting { transaction, answer }, outcome) in together.into_iter().zip(outcomes) {
            if let Outcome::Applied(revision) = outcome {
                state.keep(revision, transaction.changes);
                self.latest.send_replace(revision);
            }
            answers.push((answer, outcome));
        }
        drop(state);
        for (answer, outcome) in answers {
            let _ = answer.send(Ok(outcome));
        }
    }

    /// None behind one that changes what is announced: the conditions of those are about what it leaves.
    fn take_waiting(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        let announcing = waiting.iter().position(|waiting| waiting.transaction.is_about_announced());
        let count = announcing.map_or(waiting.len(), |position| position + 1).min(MAX_TOGETHER);
        waiting.drain(..count).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The transaction after `revision`; `None` when that one is the latest.
    fn after(&self, revision: u64) -> Result<Option<Arc<Applied>>, StoreError> {
        let state = self.state();
        if *self.latest.borrow() <= revision {
            return Ok(None);
        }
        // Each has the revision after the one before it.
        let first = state.history.first().map_or(0, |applied| applied.revision);
        let place = (revision + 1).checked_sub(first);
        let found = place.and_then(|place| state.history.get(place as usize));
        found.cloned().map(Some).ok_or(StoreError::Compacted(revision))
    }
}

impl State {
    /// Takes what is in the database already.
    fn keep(&mut self, revision: u64, changes: Vec<Change>) {
        let told = changes.into_iter().map(|change| match change {
            Change::Announce(key, value) => {
                self.announced.insert(key.clone(), (revision, value.clone()));
                Change::Put(key, value)
            }
            Change::Delete(key) => {
                self.announced.remove(&key);
                Change::Delete(key)
            }
            put @ Change::Put(..) => put,
        });
        let applied = Applied { revision, changes: told.collect() };
        let bytes = applied.changes.iter().map(Change::bytes).sum();
        self.history.push(Arc::new(applied), bytes);
    }
}

struct EmbeddedWatch {
    shared: Arc<Shared>,
    latest: watch::Receiver<u64>,
    revision: u64,
}

#[tonic::async_trait]
impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<Arc<Applied>, StoreError> {
        loop {
            self.latest.borrow_and_update();
            if let Some(applied) = self.shared.after(self.revision)? {
                self.revision = applied.revision;
                return Ok(applied);
            }
            self.latest.changed().await.map_err(|error| StoreError::Database(error.to_string()))?;
        }
    }
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        Self::Database(error.to_string())
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    belong_to_directory(&file, path)?;
    // The name of a new file is durable only once its directory is.
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

fn not_opened(path: &Path, error: &dyn ToString) -> StoreError {
    StoreError::Open { path: path.display().to_string(), reason: error.to_string() }
}

fn open(path: &Path) -> Result<Database, StoreError> {
    let file = open_private(path).map_err(|error| not_opened(path, &error))?;
    let backend = FileBackend::new(file).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => not_opened(path, &"another server uses it"),
        error => not_opened(path, &error),
    })?;
    Database::builder().create_with_backend(backend).map_err(|error| not_opened(path, &error))
}

fn revision(database: &Database) -> Result<u64, redb::Error> {
    let table = database.begin_read()?.open_table(REVISION)?;
    Ok(table.get(())?.map_or(0, |revision| revision.value()))
}

/// Writes transactions in their order, and syncs once. A condition of one is about what those before it leave, but for
/// what is announced, of which `announced` tells the revision.
fn write(
    database: &Database,
    together: &[Waiting],
    announced: impl Fn(&str) -> Option<u64>,
) -> Result<Vec<Outcome>, redb::Error> {
    let writing = database.begin_write()?;
    let mut outcomes = Vec::with_capacity(together.len());
    {
        let (mut entries, mut revisions) = (writing.open_table(ENTRIES)?, writing.open_table(REVISION)?);
        let mut revision = revisions.get(())?.map_or(0, |revision| revision.value());
        for Waiting { transaction, .. } in together {
            if !all_hold(&entries, &announced, &transaction.conditions)? {
                outcomes.push(Outcome::Conflict);
                continue;
            }
            revision += 1;
            for change in &transaction.changes {
                match change {
                    Change::Put(key, value) => {
                        entries.insert(key.as_str(), (revision, value.as_slice()))?;
                    }
                    Change::Delete(key) => {
                        entries.remove(key.as_str())?;
                    }
                    Change::Announce(..) => {}
                }
            }
            outcomes.push(Outcome::Applied(revision));
        }
        revisions.insert((), revision)?;
    }
    if outcomes.iter().any(|outcome| *outcome != Outcome::Conflict) {
        writing.commit()?;
    }
    Ok(outcomes)
}

fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let writing = database.begin_write()?;
    writing.open_table(ENTRIES)?;
    let revision = writing.open_table(REVISION)?.get(())?.map_or(0, |revision| revision.value());
    writing.commit()?;
    Ok(revision)
}

fn entry(key: &str, (revision, value): (u64, &[u8])) -> Entry {
    Entry { key: key.to_owned(), value: value.to_vec(), revision }
}

fn all_hold(
    entries: &impl ReadableTable<&'static str, (u64, &'static [u8])>,
    announced: impl Fn(&str) -> Option<u64>,
    conditions: &[Condition],
) -> Result<bool, redb::Error> {
    let revision = |key: &str| -> Result<Option<u64>, redb::Error> {
        Ok(match announced(key) {
            Some(revision) => Some(revision),
            None => entries.get(key)?.map(|found| found.value().0),
        })
    };
    for condition in conditions {
        let holds = match condition {
            Condition::Absent(key) => revision(key)?.is_none(),
            Condition::Unchanged(key, wanted) => revision(key)? == Some(*wanted),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Transaction {
        Transaction { conditions: vec![], changes: vec![Change::Put(key.to_owned(), value.into())] }
    }

    fn opened(directory: &tempfile::TempDir) -> EmbeddedStore {
        EmbeddedStore::open(&directory.path().join("server.redb")).unwrap()
    }

    #[tokio::test]
    async fn what_was_applied_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = opened(&directory);
        assert_eq!(store.commit(put("a/1", "x")).await.unwrap(), Outcome::Applied(1));
        assert_eq!(store.commit(put("b/1", "y")).await.unwrap(), Outcome::Applied(2));
        drop(store);
        let (revision, entries) = opened(&directory).list("a/").await.unwrap();
        assert_eq!((revision, entries.len(), entries[0].revision), (2, 1, 1));
        let mode = std::fs::metadata(directory.path().join("server.redb")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_comes_together_is_written_together_in_its_order_and_each_by_its_own_conditions() {
        let directory = tempfile::tempdir().unwrap();
        let store = opened(&directory);
        let create = |key: &str, value: &str| Transaction {
            conditions: vec![Condition::Absent(key.to_owned())],
            ..put(key, value)
        };
        // They all wait until the turn is given back.
        let turn = store.shared.turn.clone().lock_owned().await;
        let wanted = [create("a", "1"), create("a", "2"), put("b", "1"), create("c", "1"), put("b", "2")];
        let mut commits: Vec<_> = wanted.into_iter().map(|wanted| store.commit(wanted)).collect();
        for commit in &mut commits {
            assert!(futures_util::poll!(commit).is_pending());
        }
        while store.shared.waiting().len() < commits.len() {
            tokio::task::yield_now().await;
        }
        drop(turn);
        let mut outcomes = Vec::new();
        for commit in commits {
            outcomes.push(commit.await.unwrap());
        }
        use Outcome::{Applied, Conflict};
        assert_eq!(outcomes, [Applied(1), Conflict, Applied(2), Applied(3), Applied(4)]);
        let mut watch = store.watch(0);
        for revision in 1..=4 {
            assert_eq!(watch.next().await.unwrap().revision, revision);
        }
        assert_eq!(store.get("b").await.unwrap().unwrap().value, b"2");
    }

    #[tokio::test]
    async fn a_watch_from_before_the_history_must_list_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = opened(&directory);
        store.commit(put("a", "0")).await.unwrap();
        drop(store);
        let store = opened(&directory);
        assert!(matches!(store.watch(0).next().await, Err(StoreError::Compacted(0))));
    }

    #[tokio::test]
    async fn large_transactions_are_not_kept_by_their_number_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = opened(&directory);
        let (mut slow, mut quick) = (store.watch(0), store.watch(0));
        let large = "x".repeat(HISTORY.bytes / 4);
        for revision in 1..=5 {
            store.commit(put("a", &large)).await.unwrap();
            assert_eq!(quick.next().await.unwrap().revision, revision);
        }
        assert!(matches!(slow.next().await, Err(StoreError::Compacted(0))));
        assert_eq!(store.watch(2).next().await.unwrap().revision, 3);
    }
}
