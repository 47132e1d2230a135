//! What the hooks of `connect` and `sendmsg` share: read the call, decide, remember the original destination.

use murmesh_common::{
    Action, ConnectionRecord, Counter, Decision, Protocol, Role, SocketAddress, VerdictKind, decide,
    decide_datagram,
};

use crate::{
    context::{Caller, SocketCall},
    knowledge::Asked,
    maps::count,
};

/// Port 0 of loopback: nobody can listen there, so the connection is refused by the kernel as on a host where
/// nothing listens, whoever else may listen at the agent's port.
const NOBODY: u16 = 0;

/// What a hook is to do with the call.
pub enum Outcome {
    Allow,
    /// The rules forbid it, and the agent has been told.
    Deny,
    /// It could not be carried as it must be.
    Refuse,
    /// Rewrite the destination to the agent's outbound listener: this port (network byte order) of loopback.
    Redirect(u16),
}

#[inline(always)]
pub fn intercept(call: &SocketCall<'_>, destination: SocketAddress) -> Outcome {
    let asked = Asked::new(call, destination);
    let decision = decide(&asked.settings, &asked.attempt, &asked);
    report(&asked, &decision);
    match decision.action {
        Action::Pass => {
            if !is_redirected(&asked) {
                forget_earlier_redirect(&asked);
            }
            Outcome::Allow
        }
        Action::Deny => Outcome::Deny,
        Action::RefuseBoundInterface => {
            count(Counter::RefusedBoundInterface);
            Outcome::Refuse
        }
        Action::RefuseWithoutAgent => {
            count(Counter::RefusedWithoutAgent);
            Outcome::Redirect(NOBODY)
        }
        Action::RefuseUnavailable => {
            count(Counter::RefusedUnavailable);
            forget_earlier_redirect(&asked);
            Outcome::Redirect(NOBODY)
        }
        Action::Redirect(source) => redirect(&asked, source),
    }
}

/// Whether a datagram may go to an address that is given with it.
#[inline(always)]
pub fn may_send(call: &SocketCall<'_>, destination: SocketAddress) -> bool {
    let asked = Asked::new(call, destination);
    let decision = decide_datagram(&asked.settings, &asked.attempt, &asked);
    report(&asked, &decision);
    !matches!(decision.action, Action::Deny)
}

#[inline(always)]
fn report(asked: &Asked<'_>, decision: &Decision) {
    let denied = matches!(decision.action, Action::Deny);
    if denied {
        count(Counter::Denied);
    }
    // One event for each call; a rule that only reports says nothing about what nobody serves.
    let (kind, rule) = match (decision.action, decision.report) {
        (Action::RefuseUnavailable, _) => (VerdictKind::Unavailable, 0),
        (Action::Deny, Some(rule)) => (VerdictKind::Denied, rule),
        (_, Some(rule)) => (VerdictKind::DryRun, rule),
        (_, None) => return,
    };
    asked.report(kind, rule);
}

#[inline(always)]
fn redirect(asked: &Asked<'_>, source: SocketAddress) -> Outcome {
    let record = ConnectionRecord {
        peer: asked.attempt.destination,
        source,
        role: Role::Client as u32,
        pid: Caller::pid(),
        uid: Caller::uid(),
        gid: Caller::gid(),
        cgroup: Caller::cgroup(),
    };
    if !asked.call.keep(&record) {
        count(Counter::RefusedUnrecorded);
        return Outcome::Refuse;
    }
    // The agent's canaries are loopback.
    if !asked.attempt.destination.is_loopback() {
        count(Counter::Redirected);
    }
    Outcome::Redirect(asked.settings.outbound_port)
}

/// Whether other programs of ours have sent the call to the agent already: for a moment two sets of them may be attached.
#[inline(always)]
fn is_redirected(asked: &Asked<'_>) -> bool {
    let (destination, outbound_port) = (asked.attempt.destination, asked.settings.outbound_port);
    destination.is_loopback() && destination.port == outbound_port
}

/// A socket whose redirected connect failed may connect elsewhere, and must not be announced to the agent, or
/// show its application, as what it was. The agent's own record (`Role::Dialling`) stays: it is written before
/// its socket connects.
#[inline(always)]
fn forget_earlier_redirect(asked: &Asked<'_>) {
    if asked.attempt.protocol == Some(Protocol::Tcp)
        && asked.call.record().is_some_and(|record| record.role == Role::Client as u32)
    {
        asked.call.forget();
    }
}
