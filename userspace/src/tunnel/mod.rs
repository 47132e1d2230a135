//! The tunnel between two agents: one stream at a time over mutual TLS 1.3. See `docs/tunnel.md`.

mod chunk;
mod connection;
mod dial;
pub mod frame;
#[cfg(test)]
mod tests;

pub use chunk::Chunk;
pub use connection::{Received, Tunnel, TunnelError};
pub use dial::{DialError, HANDSHAKE_TIMEOUT, dial};
pub use frame::PROTOCOL;
