//! All records of a mesh in one file, by which it moves from one store to another.
//!
//! The file is JSON: `{"format": "murmesh-export/1", "records": [[KEY, VALUE], …]}`, values in base64. What is sealed in
//! the store is sealed in the file. What servers announce while they run is not in it.

use std::fs;
use std::path::Path;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::roots::AUTHORITY;
use crate::identity::key::write_private_as_own;
use crate::store::{ANNOUNCED, Change, Condition, Outcome, Store, StoreError, Transaction};

const FORMAT: &str = "murmesh-export/1";
/// There while an import is not complete. Servers do not start over such a store.
const UNFINISHED: &str = "import/unfinished";
/// Records in one transaction; etcd takes 128 operations, and 1.5 MiB, unless told otherwise.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;

/// Why records cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The file fails.
    #[error("{0}: {1}")]
    File(String, String),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to export.
    #[error("the store holds no mesh; check --data-dir, or --etcd-endpoints and --etcd-prefix")]
    Empty,
    /// Another mesh is there already.
    #[error("the store holds a mesh already; import into an empty one")]
    NotEmpty,
    /// An import was not completed.
    #[error(
        "an import into this store was not completed; run `murmesh server import` with the same file again"
    )]
    Unfinished,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: String,
    records: Vec<(String, String)>,
}

/// Writes all records into `path`, which only its owner may read. Returns how many there are.
///
/// # Errors
/// When the store holds no mesh or fails, or the file cannot be written.
pub async fn export(store: &dyn Store, path: &Path) -> Result<usize, TransferError> {
    ensure_finished(store).await?;
    let entries = store.list("").await?.1.into_iter().filter(|entry| !entry.key.starts_with(ANNOUNCED));
    let records: Vec<_> = entries.map(|entry| (entry.key, BASE64.encode(&entry.value))).collect();
    if !records.iter().any(|(key, _)| key == AUTHORITY) {
        return Err(TransferError::Empty);
    }
    let count = records.len();
    let text = serde_json::to_vec(&File { format: FORMAT.to_owned(), records });
    let text = text.map_err(|error| failed(path, &error))?;
    write_private_as_own(path, &text).map_err(|error| failed(path, &error))?;
    Ok(count)
}

/// Puts all records of `path` into an empty store. One that broke off may be run again. Returns how many there are.
///
/// # Errors
/// When the file is not an export, or the store holds a mesh or fails.
pub async fn import(store: &dyn Store, path: &Path) -> Result<usize, TransferError> {
    let records = read(path)?;
    begin(store).await?;
    let count = records.len();
    for batch in batches(records) {
        store.commit(Transaction { conditions: vec![], changes: batch }).await?;
    }
    let changes = vec![Change::Delete(UNFINISHED.to_owned())];
    store.commit(Transaction { conditions: vec![], changes }).await?;
    Ok(count)
}

/// # Errors
/// [`TransferError::Unfinished`] when an import broke off, or the store fails.
pub async fn ensure_finished(store: &dyn Store) -> Result<(), TransferError> {
    match store.get(UNFINISHED).await? {
        Some(_) => Err(TransferError::Unfinished),
        None => Ok(()),
    }
}

/// Marks the store, which must be empty or marked.
async fn begin(store: &dyn Store) -> Result<(), TransferError> {
    if store.get(UNFINISHED).await?.is_some() {
        return Ok(());
    }
    if !store.list("").await?.1.is_empty() {
        return Err(TransferError::NotEmpty);
    }
    let conditions = [UNFINISHED, AUTHORITY].map(|key| Condition::Absent(key.to_owned())).to_vec();
    let changes = vec![Change::Put(UNFINISHED.to_owned(), vec![])];
    match store.commit(Transaction { conditions, changes }).await? {
        Outcome::Applied(_) => Ok(()),
        Outcome::Conflict => Err(TransferError::NotEmpty),
    }
}

fn read(path: &Path) -> Result<Vec<Change>, TransferError> {
    let text = fs::read(path).map_err(|error| failed(path, &error))?;
    let file: File = serde_json::from_slice(&text).map_err(|error| failed(path, &error))?;
    if file.format != FORMAT {
        return Err(failed(path, &format!("it is not of the form {FORMAT}")));
    }
    let change = |(key, value): (String, String)| {
        let value = BASE64.decode(value.as_bytes()).map_err(|error| failed(path, &error))?;
        Ok(Change::Put(key, value))
    };
    file.records.into_iter().map(change).collect()
}

fn batches(changes: Vec<Change>) -> Vec<Vec<Change>> {
    let (mut batches, mut bytes) = (Vec::<Vec<Change>>::new(), 0);
    for change in changes {
        let size = if let Change::Put(key, value) = &change { key.len() + value.len() } else { 0 };
        bytes += size;
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH && bytes <= BATCH_BYTES => batch.push(change),
            _ => {
                batches.push(vec![change]);
                bytes = size;
            }
        }
    }
    batches
}

fn failed(path: &Path, reason: &dyn ToString) -> TransferError {
    TransferError::File(path.display().to_string(), reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;

    fn opened(directory: &Path, name: &str) -> EmbeddedStore {
        EmbeddedStore::open(&directory.join(name)).unwrap()
    }

    async fn fill(store: &dyn Store) {
        for number in 0..250 {
            let put = Change::Put(format!("hosts/{number:03}"), vec![number; 9]);
            store.commit(Transaction { conditions: vec![], changes: vec![put] }).await.unwrap();
        }
        let changes = vec![
            Change::Put(AUTHORITY.to_owned(), b"root".to_vec()),
            Change::Announce(format!("{ANNOUNCED}leader"), b"one".to_vec()),
        ];
        store.commit(Transaction { conditions: vec![], changes }).await.unwrap();
    }

    async fn records(store: &dyn Store) -> Vec<(String, Vec<u8>)> {
        let entries = store.list("").await.unwrap().1.into_iter();
        entries.map(|entry| (entry.key, entry.value)).collect()
    }

    #[tokio::test]
    async fn everything_but_what_was_announced_arrives() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (opened(directory.path(), "from"), opened(directory.path(), "to"));
        let file = directory.path().join("export.json");
        assert!(matches!(export(&from, &file).await, Err(TransferError::Empty)));
        fill(&from).await;
        assert_eq!(export(&from, &file).await.unwrap(), 251);
        assert_eq!(import(&to, &file).await.unwrap(), 251);
        let mut wanted = records(&from).await;
        wanted.retain(|(key, _)| !key.starts_with(ANNOUNCED));
        assert_eq!(records(&to).await, wanted);
        assert!(matches!(import(&to, &file).await, Err(TransferError::NotEmpty)));
    }

    #[tokio::test]
    async fn an_import_that_broke_off_is_completed_by_the_next_and_no_server_starts_before() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (opened(directory.path(), "from"), opened(directory.path(), "to"));
        let file = directory.path().join("export.json");
        fill(&from).await;
        export(&from, &file).await.unwrap();
        begin(&to).await.unwrap();
        let first = batches(read(&file).unwrap()).swap_remove(0);
        to.commit(Transaction { conditions: vec![], changes: first }).await.unwrap();
        assert!(matches!(ensure_finished(&to).await, Err(TransferError::Unfinished)));
        import(&to, &file).await.unwrap();
        ensure_finished(&to).await.unwrap();
        assert_eq!(records(&to).await.len(), 251);
    }
}
