//! The only interface between Murmesh's kernel half and its agent: the types that cross in maps, and the
//! decisions that the hooks take.
//!
//! Every type is `#[repr(C)]` with explicit padding, a size assertion and a stated byte order. Nothing here
//! touches a kernel, so all of it is tested on the host.
#![cfg_attr(not(test), no_std)]

mod address;
mod arrival;
mod connection;
mod counter;
mod decide;
mod event;
mod policy;
mod verdict_event;

pub use address::SocketAddress;
pub use arrival::{
    Admission, Arrival, DenialKey, Group, Owner, PlaintextClient, PlaintextCount, PortMode, Sender,
    Surroundings, admission, plaintext,
};
pub use connection::{ConnectionRecord, Endpoint, HandshakeKey, Role};
pub use counter::Counter;
pub use decide::{Action, Attempt, Decision, Knowledge, Settings, decide, decide_datagram};
pub use event::{ListenerChange, ListenerEvent};
pub use policy::{
    CLASS_CHANGES, Destination, NO_ROOM, NetworkKey, PolicyState, Protocol, RuleNumber, SourceClass,
    UNKNOWN_SOURCE, UserKey, Verdict, VerdictKey, WorkloadEntry,
};
pub use verdict_event::{VerdictEvent, VerdictKind};

/// The layout of the maps that an agent goes on with, or reads, when it follows another one: those of connections, of
/// what was counted and of rules. To be raised whenever one of them, or a type in it, is not what it was.
pub const LAYOUT: u32 = 1;
