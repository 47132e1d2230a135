//! A key for one direction of a session. What makes it fast, tables of ten times its own size, is kept for those keys
//! that were used last: a connection at rest needs none.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicU64, Ordering},
};

use aws_lc_rs::{
    aead::{Algorithm, LessSafeKey, UnboundKey},
    error::Unspecified,
};
use rustls::crypto::cipher::AeadKey;

/// Keys that a thread keeps ready, about 0.6 KiB each. Making one ready costs about as much as sealing 64 bytes.
const READY: usize = 128;

thread_local! {
    static KEYS: RefCell<Ready> = const { RefCell::new(Ready { slots: Vec::new(), next: 0 }) };
}

/// Tells keys apart, for as long as the process runs.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// A key, whose tables a thread may have.
pub struct Key {
    algorithm: &'static Algorithm,
    secret: AeadKey,
    number: u64,
    /// Where the tables were when they were last used.
    slot: usize,
}

struct Ready {
    slots: Vec<Option<Slot>>,
    /// Whose place is taken next.
    next: usize,
}

struct Slot {
    number: u64,
    key: LessSafeKey,
}

impl Key {
    /// `secret` for use with `algorithm`.
    pub fn new(algorithm: &'static Algorithm, secret: AeadKey) -> Self {
        Self { algorithm, secret, number: NUMBERS.fetch_add(1, Ordering::Relaxed), slot: usize::MAX }
    }

    /// Uses the key.
    ///
    /// # Errors
    /// What `act` returns, or the secret is none for the algorithm.
    #[inline]
    pub fn with<T>(
        &mut self,
        act: impl FnOnce(&LessSafeKey) -> Result<T, Unspecified>,
    ) -> Result<T, Unspecified> {
        KEYS.with_borrow_mut(|keys| {
            if let Some(key) = keys.find(self.slot, self.number) {
                return act(key);
            }
            let key = LessSafeKey::new(UnboundKey::new(self.algorithm, self.secret.as_ref())?);
            let result = act(&key);
            self.slot = keys.keep(Slot { number: self.number, key });
            result
        })
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // While the thread ends there is nothing left that could hold the key.
        let _ = KEYS.try_with(|keys| keys.borrow_mut().forget(self.slot, self.number));
    }
}

impl Ready {
    #[inline]
    fn find(&self, slot: usize, number: u64) -> Option<&LessSafeKey> {
        let slot = self.slots.get(slot)?.as_ref()?;
        (slot.number == number).then_some(&slot.key)
    }

    fn keep(&mut self, slot: Slot) -> usize {
        let place = self.next;
        match self.slots.get_mut(place) {
            Some(taken) => *taken = Some(slot),
            None => self.slots.push(Some(slot)),
        }
        self.next = (place + 1) % READY;
        place
    }

    fn forget(&mut self, slot: usize, number: u64) {
        if let Some(taken) = self.slots.get_mut(slot) {
            taken.take_if(|taken| taken.number == number);
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Nonce};

    use super::*;

    /// The tag of nothing, which tells keys apart.
    fn tag(key: &mut Key) -> Vec<u8> {
        let nonce = || Nonce::assume_unique_for_key([0; 12]);
        let tag = key.with(|key| key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut []));
        tag.expect("a tag").as_ref().to_vec()
    }

    fn key(secret: usize) -> Key {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&secret.to_be_bytes());
        Key::new(&AES_256_GCM, AeadKey::from(bytes))
    }

    fn ready() -> usize {
        KEYS.with_borrow(|keys| keys.slots.iter().flatten().count())
    }

    #[test]
    fn more_keys_than_are_kept_ready_are_each_used_as_themselves() {
        let mut keys: Vec<Key> = (0..3 * READY).map(key).collect();
        let first: Vec<_> = keys.iter_mut().map(tag).collect();
        assert_eq!(ready(), READY);
        for (key, tag_before) in keys.iter_mut().zip(&first).rev() {
            assert_eq!(&tag(key), tag_before);
        }
        let distinct: std::collections::HashSet<_> = first.iter().collect();
        assert_eq!(distinct.len(), first.len());
    }

    #[test]
    fn a_dropped_key_is_not_kept() {
        let mut used = key(1);
        let other = key(2);
        tag(&mut used);
        drop(other);
        assert_eq!(ready(), 1);
        drop(used);
        assert_eq!(ready(), 0);
    }

    fn refused() -> Key {
        Key::new(&AES_128_GCM, AeadKey::from([0; 32]))
    }

    #[test]
    fn a_secret_of_the_wrong_length_is_an_error() {
        assert!(refused().with(|_| Ok(())).is_err());
    }
}
