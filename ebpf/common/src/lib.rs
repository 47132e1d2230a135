//! The only interface between Murmesh's kernel half and its agent: the types that cross in maps, and the
//! decision that the `connect` hooks take.
//!
//! Every type is `#[repr(C)]` with explicit padding, a size assertion and a stated byte order. Nothing here
//! touches a kernel, so all of it is tested on the host.
#![cfg_attr(not(test), no_std)]

mod address;
mod connection;
mod counter;
mod decide;
mod event;

pub use address::SocketAddress;
pub use connection::{ConnectionRecord, Endpoint, HandshakeKey, Role};
pub use counter::Counter;
pub use decide::{Attempt, Settings, Verdict, decide};
pub use event::{ListenerChange, ListenerEvent};
