//! Buffers of the data path. A thread keeps the ones that nobody holds, so that an idle connection holds none and
//! a busy one allocates none.

use std::cell::RefCell;

use super::frame::{Frame, HEADER_LENGTH, MAX_CONTROL, MAX_DATA, write_data_header};

/// Bytes of a buffer: one whole DATA frame.
const SIZE: usize = HEADER_LENGTH + MAX_DATA;

/// Buffers that a thread keeps for reuse, 64 KiB each; more are given back to the allocator.
const KEPT: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer with a filled part that is consumed from its front. Given back when it is dropped.
#[derive(Debug)]
pub struct Chunk {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Chunk {
    /// An empty chunk.
    pub fn take() -> Self {
        let kept = FREE.with_borrow_mut(Vec::pop);
        Self { buffer: kept.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()), start: 0, end: 0 }
    }

    /// A chunk that holds one control frame.
    pub fn control(frame: &Frame) -> Self {
        let mut chunk = Self::take();
        let mut encoded = [0; MAX_CONTROL];
        let encoded = frame.encode(&mut encoded);
        chunk.buffer[..encoded.len()].copy_from_slice(encoded);
        chunk.end = encoded.len();
        chunk
    }

    /// The whole buffer, to be read into; then [`Self::filled`].
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// `length` bytes were read into [`Self::space`].
    pub fn filled(&mut self, length: usize) {
        (self.start, self.end) = (0, length);
    }

    /// Where the payload of a DATA frame is read to; then [`Self::filled_payload`].
    pub fn payload_space(&mut self) -> &mut [u8] {
        &mut self.buffer[HEADER_LENGTH..]
    }

    /// `length` bytes, at least one, were read into [`Self::payload_space`]: the chunk is now a DATA frame.
    pub fn filled_payload(&mut self, length: usize) {
        self.filled(HEADER_LENGTH + length);
        write_data_header(&mut self.buffer[..HEADER_LENGTH + length]);
    }

    /// Drops `length` bytes from the front.
    pub fn consume(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end);
    }

    /// What is filled and not consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether everything is consumed.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
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
        let chunk = Chunk::take();
        let address = chunk.buffer.as_ptr();
        drop(chunk);
        assert_eq!(Chunk::take().buffer.as_ptr(), address);
    }

    #[test]
    fn a_payload_becomes_a_whole_frame() {
        let mut chunk = Chunk::take();
        chunk.payload_space()[..3].copy_from_slice(b"abc");
        chunk.filled_payload(3);
        assert_eq!(chunk.bytes(), b"\x04\x00\x00\x03abc");
        chunk.consume(6);
        assert_eq!(chunk.bytes(), b"c");
    }
}
