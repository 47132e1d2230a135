//! The tunnel between two agents: one stream at a time over mutual TLS 1.3. See `docs/tunnel.md`.

mod buffer;
mod connection;
mod dial;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod incoming;
mod outgoing;
#[cfg(test)]
pub(crate) mod tests;
mod tls;

pub use connection::{Received, Tunnel, TunnelError};
pub use dial::{DialError, HANDSHAKE_TIMEOUT, Timed, answer, dial, dial_timed};
pub use frame::PROTOCOL;
pub use incoming::MAX_PIECES;
pub use outgoing::{Outgoing, Payload};
