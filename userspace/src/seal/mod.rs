//! Secrets at rest: sealed with AES-256-GCM under a key that is kept elsewhere.
//!
//! Form of what is sealed: `MMS1`, the id of the key (8 bytes), a random nonce (12), ciphertext with its tag (16).
//! What is in front of the nonce, and the name of the record, are authenticated with it: a sealed record that is put
//! in another's place does not open.

mod key;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

pub use key::{DEFAULT_KEY_FILE, KeySource, PassphraseParameters, SealKey};

const MAGIC: &[u8; 4] = b"MMS1";
const KEY_ID_LENGTH: usize = 8;
const HEADER: usize = MAGIC.len() + KEY_ID_LENGTH;
/// What the id of a key is derived by; it tells nothing of the key.
const KEY_ID_LABEL: &[u8] = b"murmesh seal key id";

/// Which key sealed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; KEY_ID_LENGTH]);

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Another key sealed it.
    #[error(
        "{name} is sealed with key {sealed_with}, and the key at hand is {at_hand}: name the right one with --seal-key-file or --seal-passphrase-file"
    )]
    WrongKey {
        /// What was to be opened.
        name: String,
        /// The key that it takes.
        sealed_with: KeyId,
        /// The key that there is.
        at_hand: KeyId,
    },
    /// It is not what was sealed.
    #[error("{0} is damaged: it is not what was sealed under this name")]
    Damaged(String),
    /// Sealing failed.
    #[error("sealing {0} failed")]
    Failed(String),
    /// The key cannot be had.
    #[error("the key that seals secrets cannot be read from {origin}: {reason}")]
    Key {
        /// Where it was looked for.
        origin: String,
        /// What went wrong, and what to do.
        reason: String,
    },
}

/// Seals and opens with one key.
pub struct Sealer {
    key: RandomizedNonceKey,
    id: KeyId,
}

impl Sealer {
    /// With `key`.
    ///
    /// # Errors
    /// The cryptographic library does not take it.
    pub fn new(key: &SealKey) -> Result<Self, SealError> {
        let mut id = [0; KEY_ID_LENGTH];
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.bytes()), KEY_ID_LABEL);
        id.copy_from_slice(&tag.as_ref()[..KEY_ID_LENGTH]);
        let key = RandomizedNonceKey::new(&AES_256_GCM, key.bytes());
        let key = key.map_err(|_| SealError::Failed("anything".to_owned()))?;
        Ok(Self { key, id: KeyId(id) })
    }

    /// Seals `secret`, which is called `name`.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn seal(&self, name: &str, secret: &[u8]) -> Result<Vec<u8>, SealError> {
        let header = header(self.id);
        // With room for the tag: nothing is moved, and left behind, while it is not sealed yet.
        let mut content = Vec::with_capacity(secret.len() + AES_256_GCM.tag_len());
        content.extend_from_slice(secret);
        let nonce = self.key.seal_in_place_append_tag(authenticated(&header, name), &mut content);
        let nonce = nonce.map_err(|_| SealError::Failed(name.to_owned()))?;
        Ok([&header[..], nonce.as_ref(), &content].concat())
    }

    /// Opens what was sealed under `name`. It is overwritten when it is dropped.
    ///
    /// # Errors
    /// [`SealError::WrongKey`], or [`SealError::Damaged`].
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let damaged = || SealError::Damaged(name.to_owned());
        let sealed_with = key_of(sealed).ok_or_else(damaged)?;
        if sealed_with != self.id {
            return Err(SealError::WrongKey { name: name.to_owned(), sealed_with, at_hand: self.id });
        }
        let (nonce, content) = sealed[HEADER..].split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut content = Zeroizing::new(content.to_vec());
        let opened = self.key.open_in_place(nonce, authenticated(&header(self.id), name), &mut content);
        let length = opened.map_err(|_| damaged())?.len();
        content.truncate(length);
        Ok(content)
    }

    /// The id of its key.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// The key that sealed this, if it is sealed at all.
pub fn key_of(sealed: &[u8]) -> Option<KeyId> {
    let id = sealed.strip_prefix(MAGIC)?.first_chunk()?;
    Some(KeyId(*id))
}

fn header(id: KeyId) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..MAGIC.len()].copy_from_slice(MAGIC);
    header[MAGIC.len()..].copy_from_slice(&id.0);
    header
}

fn authenticated(header: &[u8; HEADER], name: &str) -> Aad<Vec<u8>> {
    Aad::from([header, name.as_bytes()].concat())
}

impl std::str::FromStr for KeyId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(|_| ())?;
        bytes.try_into().map(Self).map_err(|_| ())
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&HEXLOWER.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(&SealKey::from_bytes([byte; 32])).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_under_its_name_only() {
        let sealed = sealer(1).seal("authority", b"a secret").unwrap();
        assert!(!sealed.windows(8).any(|bytes| bytes == b"a secret"));
        assert_eq!(sealer(1).open("authority", &sealed).unwrap().as_slice(), b"a secret");
        assert!(matches!(sealer(1).open("another", &sealed), Err(SealError::Damaged(_))));
    }

    #[test]
    fn equal_secrets_look_different() {
        let sealer = sealer(1);
        assert_ne!(sealer.seal("a", b"x").unwrap(), sealer.seal("a", b"x").unwrap());
    }

    #[test]
    fn another_key_is_told_from_damage() {
        let sealed = sealer(1).seal("a", b"x").unwrap();
        let error = sealer(2).open("a", &sealed).unwrap_err();
        assert!(matches!(error, SealError::WrongKey { .. }));
        assert!(error.to_string().contains("--seal-key-file"), "{error}");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(sealer(1).open("a", &changed).is_err(), "byte {at}");
            assert!(sealer(1).open("a", &sealed[..at]).is_err(), "cut at {at}");
        }
    }
}
