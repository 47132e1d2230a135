//! The generated gRPC interface of `proto/murmesh.proto`, and how its plain fields are read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::admission::{Refusals, Refused};

/// Messages, clients and servers of package `murmesh.v1`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::large_enum_variant,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("murmesh.v1");
}

/// The largest request that a server reads, in bytes: a report of about 50 000 listeners.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// The largest message that an agent or the command line reads from its own server or daemon, in bytes.
pub const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// Connections that were refused, by reason, without those reasons for which there were none.
pub fn refused(refusals: &Refusals) -> Vec<v1::Refused> {
    let refused = |(reason, count): (Refused, u64)| v1::Refused { reason: reason.name().to_owned(), count };
    refusals.all().filter(|(_, count)| *count > 0).map(refused).collect()
}

/// Seconds since the Unix epoch, rounded down; 0 for anything before it.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// The time that `seconds` since the Unix epoch name; 0 stands for "never".
pub fn time_from_unix(seconds: u64) -> Option<SystemTime> {
    if seconds == 0 { None } else { UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) }
}
