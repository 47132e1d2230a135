//! Long streams whose every byte is known to both ends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};

/// A prime, so that a piece that is lost, repeated or misplaced does not line up with the next period.
const PERIOD: usize = 1_048_573;

/// What one end sends: a pseudo-random period, repeated.
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// Each seed gives another stream (xorshift64; Marsaglia, 2003).
    pub fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        Self(std::iter::repeat_with(next).flatten().take(PERIOD).collect())
    }

    /// The longest run of the stream from `offset` on, up to `most` bytes, that is in one piece.
    fn at(&self, offset: u64, most: u64) -> &[u8] {
        let start = (offset % PERIOD as u64) as usize;
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(PERIOD - start);
        &self.0[start..start + length]
    }

    /// Sends `length` bytes.
    pub fn send(&self, mut to: impl Write, length: u64) -> Result<()> {
        let mut sent = 0;
        while sent < length {
            let piece = self.at(sent, length - sent);
            to.write_all(piece).with_context(|| format!("sending after byte {sent}"))?;
            sent += piece.len() as u64;
        }
        Ok(())
    }

    /// Receives up to the end, and checks that it was exactly `length` bytes of this stream.
    pub fn receive(&self, mut from: impl Read, length: u64) -> Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        let mut received = 0;
        loop {
            let count = from.read(&mut buffer).with_context(|| format!("receiving after byte {received}"))?;
            if count == 0 {
                break;
            }
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let expected = self.at(received, rest.len() as u64);
                ensure!(rest.starts_with(expected), "wrong bytes between {received} and the next {count}");
                rest = &rest[expected.len()..];
                received += expected.len() as u64;
            }
        }
        ensure!(received == length, "the stream ended after {received} bytes, not {length}");
        Ok(())
    }
}

/// Sends `sends` and receives `receives`, at once, `length` bytes each, and ends its own direction.
pub fn exchange(stream: &TcpStream, sends: &Bytes, receives: &Bytes, length: u64) -> Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            sends.send(stream, length)?;
            Ok(stream.shutdown(Shutdown::Write)?)
        });
        let received = receives.receive(stream, length);
        received.and(sender.join().unwrap_or_else(|_| Err(anyhow!("the sender panicked"))))
    })
}
