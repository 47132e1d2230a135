//! Buffers of the data path. A thread keeps the ones that nobody holds, so that an idle connection holds none and
//! a busy one allocates none.

use std::cell::RefCell;

use super::{
    frame::HEADER_LENGTH,
    tls::{KEY_UPDATE_MESSAGE, MAX_PLAINTEXT, OVERHEAD},
};

/// Bytes of a full TLS record.
pub(super) const RECORD: usize = MAX_PLAINTEXT + OVERHEAD;

/// Full records that a buffer holds. More of them make bulk transfers cheaper by fewer system calls, until the
/// buffers of busy connections do not fit into the processor's cache.
pub(super) const RECORDS: usize = 8;

/// A record with a key update.
pub(super) const KEY_UPDATE: usize = KEY_UPDATE_MESSAGE.len() + OVERHEAD;

/// A record with a frame that is only a header, as ACCEPTED and END are.
pub(super) const BARE_FRAME: usize = HEADER_LENGTH + OVERHEAD;

/// Room in front of the records for a key update and ACCEPTED.
pub(super) const PREFIX: usize = KEY_UPDATE + BARE_FRAME;

/// Room behind them for END.
const SIZE: usize = PREFIX + RECORDS * RECORD + BARE_FRAME;

/// Buffers that a thread keeps for reuse, 128 KiB each; more are given back to the allocator.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer(Box<[u8]>);

impl Buffer {
    /// Its content is whatever was there before.
    pub fn take() -> Self {
        let kept = FREE.with_borrow_mut(Vec::pop);
        Self(kept.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // While the thread ends there is no list any more: the buffer is simply freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_the_next_one_taken() {
        let buffer = Buffer::take();
        let address = buffer.as_ptr();
        drop(buffer);
        assert_eq!(Buffer::take().as_ptr(), address);
    }
}
