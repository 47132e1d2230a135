//! The addresses that applications are shown in place of the redirected ones.

use murmesh_common::{ConnectionRecord, Role, SocketAddress};

use crate::context::SocketCall;

/// The peer that `getpeername(2)` and `accept(2)` answer, if it is not the socket's own.
#[inline(always)]
pub fn peer<'a>(call: &'a SocketCall<'_>) -> Option<&'a SocketAddress> {
    let record = call.record()?;
    let shown = record.role == Role::Client as u32 || record.role == Role::Served as u32;
    shown.then_some(&record.peer)
}

/// The local address that `getsockname(2)` answers, if it is not the socket's own. A socket that its
/// application bound to an address keeps that one, and where no route told the address nothing is made up.
#[inline(always)]
pub fn source<'a>(call: &'a SocketCall<'_>, own: SocketAddress) -> Option<&'a SocketAddress> {
    let record: &ConnectionRecord = call.record()?;
    let shown = record.role == Role::Client as u32 && own.is_loopback() && !record.source.is_unspecified();
    shown.then_some(&record.source)
}
