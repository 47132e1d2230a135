//! Where a server keeps what it must not lose: keys with values, changed by atomic transactions.

mod embedded;

use std::sync::Arc;

pub use embedded::EmbeddedStore;

/// Why the store cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
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
    /// Removes a key, if it is there.
    Delete(String),
}

/// Changes that are applied together, and only if every condition holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// In this order.
    pub changes: Vec<Change>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, at this revision.
    Applied(u64),
    /// A condition did not hold, and nothing was changed.
    Conflict,
}

/// The changes of one applied transaction.
#[derive(Debug, PartialEq, Eq)]
pub struct Applied {
    /// The store's revision from here on.
    pub revision: u64,
    /// What changed.
    pub changes: Vec<Change>,
}

/// A durable, transactional map. Every applied transaction raises the revision of the whole store by one.
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
