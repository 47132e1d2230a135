//! `sockops`: carries the record of an intercepted connection from the connecting socket to the accepted one,
//! and tells the agent of listeners that open and close. On any error the accepted socket has no record, and
//! the agent resets the connection.
//!
//! Since Linux 4.13; the listen callback since 4.19, socket storage here since 5.8, the namespace cookie here
//! since 5.15.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE,
        BPF_TCP_LISTEN, BPF_TCP_SYN_SENT,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use murmesh_common::{ConnectionRecord, Counter, HandshakeKey, ListenerChange, ListenerEvent, Role};

use crate::{
    context::SocketEvent,
    maps::{HANDSHAKES, count, emit, settings},
};

#[sock_ops]
pub fn murmesh_sockops(context: SockOpsContext) -> u32 {
    let event = SocketEvent::new(&context);
    if event.netns_cookie() != settings().netns_cookie {
        return 0;
    }
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&event),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&event),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&event),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&event),
        BPF_SOCK_OPS_STATE_CB => state_changed(&event),
        _ => {}
    }
    0
}

/// Before the SYN leaves, with all four addresses chosen.
#[inline(always)]
fn connecting(event: &SocketEvent<'_>) {
    let Some(record) = event.record() else { return };
    let key = HandshakeKey { connecting: event.local(), accepting: event.remote() };
    if HANDSHAKES.insert(key, record, 0).is_err() {
        count(Counter::HandshakeLost);
    }
    event.set_callbacks(BPF_SOCK_OPS_STATE_CB_FLAG);
}

/// The handshake is over: no need to be told of this connection's end.
#[inline(always)]
fn connected(event: &SocketEvent<'_>) {
    if event.record().is_some() {
        event.set_callbacks(0);
    }
}

/// Runs before `accept(2)` can return the socket: until the handshake's last packet is processed the kernel
/// holds the new socket's lock, which `inet_accept` takes.
#[inline(always)]
fn accepted(event: &SocketEvent<'_>) {
    // Accepted sockets inherit the listener's wish for state callbacks.
    event.set_callbacks(0);
    let key = HandshakeKey { connecting: event.remote(), accepting: event.local() };
    // SAFETY: copied at once; nobody else uses the key of a handshake in flight.
    let Some(record) = unsafe { HANDSHAKES.get(key) }.copied() else { return };
    let _ = HANDSHAKES.remove(key);
    let role = if record.role == Role::Client as u32 { Role::Intercepted } else { Role::Served };
    if !event.keep(&ConnectionRecord { role: role as u32, ..record }) {
        count(Counter::HandshakeLost);
    }
}

#[inline(always)]
fn listening(event: &SocketEvent<'_>) {
    event.set_callbacks(BPF_SOCK_OPS_STATE_CB_FLAG);
    tell(event, ListenerChange::Opened);
}

/// A listener that closed, or a connection that failed before it was established.
#[inline(always)]
fn state_changed(event: &SocketEvent<'_>) {
    match event.states() {
        (BPF_TCP_LISTEN, BPF_TCP_CLOSE) => tell(event, ListenerChange::Closed),
        (BPF_TCP_SYN_SENT, BPF_TCP_CLOSE) => {
            let _ = HANDSHAKES.remove(HandshakeKey { connecting: event.local(), accepting: event.remote() });
        }
        _ => {}
    }
}

#[inline(always)]
fn tell(event: &SocketEvent<'_>, change: ListenerChange) {
    emit(ListenerEvent { cookie: event.socket_cookie(), change: change as u32, padding: 0 });
}
