//! The key that the secrets in the store are sealed with: which one it is, and how another takes its place.
//!
//! Key of the store: `seal`, which names the key and keeps what a passphrase needs to become it. Sealing happens above
//! the store, so that every store gets sealed records, and every server with the same key reads them.

use serde::{Deserialize, Serialize};

use super::records::{put, read};
use super::registry::RegistryError;
use super::roots;
use crate::seal::{KeyId, KeySource, PassphraseParameters, SealError, SealKey, Sealer};
use crate::store::{Condition, Outcome, Store, Transaction};

const SEAL: &str = "seal";
const DATABASE: &str = "the server's database";

#[derive(Serialize, Deserialize)]
struct StoredSeal {
    /// [`KeyId`].
    key: String,
    passphrase: Option<PassphraseParameters>,
}

/// What seals the secrets of `store`, by the key from `source`, which becomes its key if it has none yet.
///
/// # Errors
/// The key cannot be had, or is not the one.
pub async fn open(store: &dyn Store, source: &KeySource) -> Result<Sealer, RegistryError> {
    loop {
        if let Some((_, stored)) = read::<StoredSeal>(store, SEAL).await? {
            return Ok(unlock(&stored, source)?);
        }
        let (sealer, stored) = new_key(source)?;
        let conditions = vec![Condition::Absent(SEAL.to_owned())];
        let transaction = Transaction { conditions, changes: vec![put(SEAL, &stored)?] };
        if let Outcome::Applied(_) = store.commit(transaction).await? {
            return Ok(sealer);
        }
    }
}

/// Seals every secret anew, with the key from `new`; all or none. The key of a data directory is replaced by another
/// there if `new` is `None`.
///
/// # Errors
/// As [`open`], or `new` cannot be had.
pub async fn reseal(
    store: &dyn Store,
    old: &KeySource,
    new: Option<&KeySource>,
) -> Result<KeyId, RegistryError> {
    let before = open(store, old).await?;
    let next = old.next();
    let source = new.or(next.as_ref()).ok_or_else(|| SealError::Key {
        origin: old.path().display().to_string(),
        reason: "it is not Murmesh's to replace: name the new one with --new-seal-key-file or --new-seal-passphrase-file"
            .to_owned(),
    })?;
    let (after, stored) = new_key(source)?;
    loop {
        let (entry, _) =
            read::<StoredSeal>(store, SEAL).await?.ok_or(RegistryError::Damaged(SEAL.to_owned()))?;
        let mut transaction = Transaction {
            conditions: vec![Condition::Unchanged(SEAL.to_owned(), entry.revision)],
            changes: vec![put(SEAL, &stored)?],
        };
        roots::reseal(store, &before, &after, &mut transaction).await?;
        if let Outcome::Applied(_) = store.commit(transaction).await? {
            break;
        }
    }
    if new.is_none() {
        old.take_next()?;
    }
    Ok(after.id())
}

fn unlock(stored: &StoredSeal, source: &KeySource) -> Result<Sealer, SealError> {
    let sealer = Sealer::new(&source.load_existing(stored.passphrase.as_ref())?)?;
    if sealer.id().to_string() == stored.key {
        return Ok(sealer);
    }
    // A change of the key that was cut short when the database had it already.
    let next = source.next().and_then(|next| Sealer::new(&next.load_existing(None).ok()?).ok());
    if let Some(next) = next.filter(|next| next.id().to_string() == stored.key) {
        source.take_next()?;
        return Ok(next);
    }
    let sealed_with = stored.key.parse().map_err(|()| SealError::Damaged(SEAL.to_owned()))?;
    Err(SealError::WrongKey { name: DATABASE.to_owned(), sealed_with, at_hand: sealer.id() })
}

fn new_key(source: &KeySource) -> Result<(Sealer, StoredSeal), SealError> {
    let passphrase = source.is_passphrase().then(PassphraseParameters::generate).transpose()?;
    let key: SealKey = source.load(passphrase.as_ref())?;
    let sealer = Sealer::new(&key)?;
    let stored = StoredSeal { key: sealer.id().to_string(), passphrase };
    Ok((sealer, stored))
}
