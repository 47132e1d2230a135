//! `sockops`: carries the record of an intercepted connection from the connecting socket to the accepted one,
//! tells the agent of listeners that open and close, and of connections in clear, and counts these. On any error the
//! accepted socket has no record, and the agent resets the connection.
//!
//! Since Linux 4.13; the listen callback since 4.19, socket storage here since 5.8, the namespace cookie here
//! since 5.15.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, BPF_TCP_LISTEN,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use murmesh_common::{
    Arrival, ConnectionRecord, Counter, HandshakeKey, ListenerChange, ListenerEvent, Owner, Role, Sender,
    VerdictKind, plaintext,
};

use crate::{
    context::SocketEvent,
    maps::{HANDSHAKES, count, emit, settings},
    surroundings::{Asked, owner},
};

/// 0 would make the kernel drop the replies of other people's programs on the same cgroup (`tcp_call_bpf`).
const LEAVE_REPLY: u32 = 1;

#[sock_ops]
pub fn murmesh_sockops(context: SockOpsContext) -> u32 {
    let (event, kind) = (SocketEvent::new(&context), context.op());
    // Two thirds of all calls are questions about timeouts and windows.
    if !is_handled(kind) || event.netns_cookie() != settings().netns_cookie {
        return LEAVE_REPLY;
    }
    match kind {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&event),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&event),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&event),
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&event),
        BPF_SOCK_OPS_STATE_CB => state_changed(&event),
        _ => {}
    }
    LEAVE_REPLY
}

#[inline(always)]
fn is_handled(kind: u32) -> bool {
    matches!(
        kind,
        BPF_SOCK_OPS_TCP_CONNECT_CB
            | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
            | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB
            | BPF_SOCK_OPS_TCP_LISTEN_CB
            | BPF_SOCK_OPS_STATE_CB
    )
}

/// Before the SYN leaves, with all four addresses chosen.
#[inline(always)]
fn connecting(event: &SocketEvent<'_>) {
    let key = HandshakeKey { connecting: event.local(), accepting: event.remote() };
    let Some(record) = event.record() else {
        // Nobody may be taken for an earlier owner of the same addresses.
        let _ = HANDSHAKES.remove(key);
        return;
    };
    if HANDSHAKES.insert(key, record, 0).is_err() {
        count(Counter::HandshakeLost);
    }
    event.want_state_changes();
}

/// A connection that this host made, and that is no redirected one: is it in clear, to a host of the mesh? The agents'
/// own are not: they are encrypted.
#[inline(always)]
fn connected(event: &SocketEvent<'_>) {
    let remote = event.remote();
    if remote.is_loopback() || event.record().is_some() || event.mark() == settings().mark {
        return;
    }
    if owner(&remote).and_then(Owner::group).is_some() {
        count(Counter::PlaintextToMesh);
    }
}

/// Runs before `accept(2)` can return the socket: until the handshake's last packet is processed the kernel
/// holds the new socket's lock, which `inet_accept` takes.
#[inline(always)]
fn accepted(event: &SocketEvent<'_>) {
    let key = HandshakeKey { connecting: event.remote(), accepting: event.local() };
    // SAFETY: copied at once; nobody else uses the key of a handshake in flight.
    let Some(record) = unsafe { HANDSHAKES.get(key) }.copied() else { return accepted_in_clear(event) };
    let _ = HANDSHAKES.remove(key);
    let role = if record.role == Role::Client as u32 { Role::Intercepted } else { Role::Served };
    if matches!(role, Role::Served) {
        count(Counter::Served);
    }
    if !event.keep(&ConnectionRecord { role: role as u32, ..record }) {
        count(Counter::HandshakeLost);
    }
}

#[inline(always)]
fn accepted_in_clear(event: &SocketEvent<'_>) {
    let asked = Asked(Arrival { local: event.local(), remote: event.remote() });
    let Some(sender) = plaintext(&asked.0, &asked) else { return };
    count(match sender {
        Sender::Mesh => Counter::PlaintextFromMesh,
        Sender::Outside => Counter::PlaintextFromOutside,
    });
    asked.count(sender);
    asked.report(VerdictKind::Plaintext, 0);
}

#[inline(always)]
fn listening(event: &SocketEvent<'_>) {
    event.want_state_changes();
    tell(event, ListenerChange::Opened);
}

/// A listener or a connecting socket that is closed. Nobody may have taken the record of the latter: its handshake
/// failed, or the accepting socket is outside of our cgroup, or was reset before it was accepted. It must not outlive
/// the connection, after which the same addresses can be somebody else's. Not earlier: an application may close its
/// side before the last packet of the handshake has been processed on the other.
#[inline(always)]
fn state_changed(event: &SocketEvent<'_>) {
    match event.states() {
        (BPF_TCP_LISTEN, BPF_TCP_CLOSE) => tell(event, ListenerChange::Closed),
        (_, BPF_TCP_CLOSE) if event.record().is_some_and(is_connecting) => {
            let _ = HANDSHAKES.remove(HandshakeKey { connecting: event.local(), accepting: event.remote() });
        }
        _ => {}
    }
}

#[inline(always)]
fn is_connecting(record: &ConnectionRecord) -> bool {
    record.role == Role::Client as u32 || record.role == Role::Dialling as u32
}

#[inline(always)]
fn tell(event: &SocketEvent<'_>, change: ListenerChange) {
    emit(ListenerEvent { cookie: event.socket_cookie(), change: change as u32, padding: 0 });
}
