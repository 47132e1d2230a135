//! Where a server keeps what it must not lose: keys with values, changed by atomic transactions.

#[cfg(test)]
mod claims;
mod embedded;
mod etcd;

use std::sync::Arc;

use tokio::sync::watch;

pub use embedded::EmbeddedStore;
#[cfg(test)]
pub use etcd::testing as etcd_testing;
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls};

/// What every announced key begins with, and no other.
pub const ANNOUNCED: &str = "alive/";

/// Why the store cannot do what it is asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database file cannot be opened.
    #[error("the database {path} cannot be opened: {reason}")]
    Open {
        /// The file.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// Reading or writing failed; nothing of the transaction was kept.
    #[error("the database failed: {0}")]
    Database(String),
    /// No majority of the members of etcd answers. A change may have been made or not; whatever was acknowledged before
    /// is not lost.
    #[error(
        "etcd has no quorum: {reason}; check that more than half of its members run and reach each other ({endpoints})"
    )]
    NoQuorum {
        /// What the last member said.
        reason: String,
        /// All members.
        endpoints: String,
    },
    /// etcd takes no transaction of this size.
    #[error(
        "the change is larger than etcd takes at once: {0}; start its members with higher --max-txn-ops and --max-request-bytes"
    )]
    TooLarge(String),
    /// How etcd is to be reached is not usable.
    #[error("{0}")]
    Settings(String),
    /// The changes after the wanted revision are no longer kept: list again and watch from there.
    #[error("the changes since revision {0} are no longer known")]
    Compacted(u64),
}

/// A value and the revision that last changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of the transaction that put it; compare against this to change only what was read.
    pub revision: u64,
}

/// What must hold for a transaction to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent(String),
    /// The key was last put at this revision.
    Unchanged(String, u64),
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(String, Vec<u8>),
    /// Sets a key below [`ANNOUNCED`] that goes away with this server, or when the others have not heard of it for
    /// some seconds. See [`Store::sessions`].
    Announce(String, Vec<u8>),
    /// Removes a key, if it is there.
    Delete(String),
}

impl Change {
    /// Of its key and its value.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put(key, value) | Self::Announce(key, value) => key.len() + value.len(),
            Self::Delete(key) => key.len(),
        }
    }
}

/// Changes that are applied together, and only if every condition holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// In this order.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// Whether it sets a key that goes away with this server.
    pub fn announces(&self) -> bool {
        self.changes.iter().any(|change| matches!(change, Change::Announce(..)))
    }

    /// Whether it changes what is announced.
    pub fn is_about_announced(&self) -> bool {
        let key = |change: &Change| match change {
            Change::Put(key, _) | Change::Announce(key, _) | Change::Delete(key) => {
                key.starts_with(ANNOUNCED)
            }
        };
        self.changes.iter().any(key)
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, at this revision.
    Applied(u64),
    /// A condition did not hold, and nothing was changed.
    Conflict,
}

/// The changes of one applied transaction. What was announced is told as put.
#[derive(Debug, PartialEq, Eq)]
pub struct Applied {
    /// The store's revision from here on.
    pub revision: u64,
    /// What changed.
    pub changes: Vec<Change>,
}

/// A durable, transactional map. Every applied transaction raises the revision of the whole store.
#[tonic::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The entry of `key`, if there is one.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All entries whose key begins with `prefix`, in order of their keys, and the revision at which that
    /// is the whole truth.
    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError>;

    /// Applies a transaction; returns once it is durable.
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError>;

    /// Every transaction applied after `revision`, in order.
    fn watch(&self, revision: u64) -> Box<dyn Watch>;

    /// Tells when all that this server announced is gone, by a new number: it must be announced again. 0 means that
    /// nothing can be announced now.
    fn sessions(&self) -> watch::Receiver<u64>;

    /// Whether the store answers, as was found in the last seconds.
    fn answers(&self) -> watch::Receiver<bool>;

    /// Takes back what was announced. Nothing else may be asked afterwards.
    async fn close(&self);
}

/// A place in the sequence of applied transactions.
#[tonic::async_trait]
pub trait Watch: Send {
    /// Waits for the next transaction.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the watcher was too slow and must list again.
    async fn next(&mut self) -> Result<Arc<Applied>, StoreError>;
}
