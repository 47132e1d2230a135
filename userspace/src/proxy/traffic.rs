//! What the data path counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Streams open now.
    StreamsActive,
    /// Streams since the start.
    StreamsTotal,
    /// Streams that were refused, reset or lost.
    StreamsFailed,
    /// Bytes from applications on this host into tunnels.
    BytesSent,
    /// Bytes from tunnels to applications on this host.
    BytesReceived,
    /// Tunnels at rest that this host opened.
    TunnelsIdle,
    /// TLS handshakes begun by this host.
    TunnelHandshakes,
    /// Intercepted connections without a record of their original destination: reset.
    MissingRecords,
}

const COUNT: usize = Counter::MissingRecords as usize + 1;

/// All figures. Touched when streams begin and end, not for each chunk.
#[derive(Debug, Default)]
pub struct Traffic([AtomicU64; COUNT]);

impl Traffic {
    /// Adds to a figure.
    pub fn add(&self, counter: Counter, amount: u64) {
        self.0[counter as usize].fetch_add(amount, Relaxed);
    }

    /// Takes from a figure that goes both ways.
    pub fn subtract(&self, counter: Counter, amount: u64) {
        self.0[counter as usize].fetch_sub(amount, Relaxed);
    }

    /// A figure now.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Relaxed)
    }
}
