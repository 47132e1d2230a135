//! What `connect4` and `connect6` share: read the call, decide, remember the original destination.

use murmesh_common::{Attempt, ConnectionRecord, Counter, Role, SocketAddress, Verdict, decide};

use crate::{
    context::{Caller, SocketCall},
    maps::{ENDPOINTS, count, settings},
};

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
    let verdict = decide(&settings, &attempt, |key| unsafe { ENDPOINTS.get(key) }.copied());
    match verdict {
        Verdict::Pass => {
            forget_earlier_redirect(call, attempt.tcp);
            Outcome::Allow
        }
        Verdict::RefuseBoundInterface => {
            count(Counter::RefusedBoundInterface);
            Outcome::Refuse
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
