//! What `connect4` and `connect6` share: read the call, decide, remember the original destination.

use murmesh_common::{Attempt, ConnectionRecord, Counter, Role, SocketAddress, Verdict, decide};

use crate::{
    context::{Caller, SocketCall},
    maps::{ENDPOINTS, count, settings},
};

/// Port 0 of loopback: nobody can listen there, so the connection is refused by the kernel as on a host where
/// nothing listens, whoever else may listen at the agent's port.
const NOBODY: u16 = 0;

/// What a hook is to do with the call.
pub enum Outcome {
    Allow,
    Refuse,
    /// Rewrite the destination to the agent's outbound listener: this port (network byte order) of loopback.
    Redirect(u16),
}

#[inline(always)]
pub fn intercept(call: &SocketCall<'_>, destination: SocketAddress) -> Outcome {
    let settings = settings();
    let attempt = Attempt {
        destination,
        tcp: call.is_tcp(),
        mark: call.mark(),
        netns_cookie: call.netns_cookie(),
        bound_interface: call.bound_interface(),
    };
    // SAFETY: the value is copied at once; the agent replaces values whole.
    let endpoint = |key: &SocketAddress| unsafe { ENDPOINTS.get(key) }.copied();
    let v4 = destination.as_v4().is_some();
    let agent_listens = || call.listener_mark(settings.outbound_port, v4) == settings.mark;
    match decide(&settings, &attempt, endpoint, agent_listens) {
        Verdict::Pass => {
            forget_earlier_redirect(call, attempt.tcp);
            Outcome::Allow
        }
        Verdict::RefuseBoundInterface => {
            count(Counter::RefusedBoundInterface);
            Outcome::Refuse
        }
        Verdict::RefuseWithoutAgent => {
            count(Counter::RefusedWithoutAgent);
            Outcome::Redirect(NOBODY)
        }
        Verdict::Redirect(endpoint) => {
            let caller = Caller::current();
            let record = ConnectionRecord {
                peer: destination,
                source: endpoint.source,
                role: Role::Client as u32,
                pid: caller.pid,
                uid: caller.uid,
                padding: 0,
                cgroup: caller.cgroup,
            };
            if !call.keep(&record) {
                count(Counter::RefusedUnrecorded);
                return Outcome::Refuse;
            }
            count(Counter::Redirected);
            Outcome::Redirect(settings.outbound_port)
        }
    }
}

/// A socket whose redirected connect failed may connect elsewhere, and must not be announced to the agent, or
/// show its application, as what it was. The agent's own record (`Role::Dialling`) stays: it is written before
/// its socket connects.
#[inline(always)]
fn forget_earlier_redirect(call: &SocketCall<'_>, tcp: bool) {
    if tcp && call.record().is_some_and(|record| record.role == Role::Client as u32) {
        call.forget();
    }
}
