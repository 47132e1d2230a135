use crate::{
    CLASS_CHANGES, Destination, Endpoint, PolicyState, Protocol, RuleNumber, SocketAddress, SourceClass,
    UNKNOWN_SOURCE, Verdict, VerdictKey, WorkloadEntry,
};

/// What the agent tells the programs when it loads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The agent's network namespace (`SO_NETNS_COOKIE`). In any other, 127.0.0.1 is not the agent's.
    pub netns_cookie: u64,
    /// `SO_MARK` of the agent's own sockets. Setting it takes CAP_NET_ADMIN, or CAP_NET_RAW since
    /// Linux 5.17, so an unprivileged workload cannot forge it.
    pub mark: u32,
    /// Port of the agent's outbound listener on 127.0.0.1 and ::1, network byte order.
    pub outbound_port: u16,
    /// Not 0: while no agent listens, connections to services that are not strict go on in clear.
    pub fail_open: u16,
}

const _: () = assert!(size_of::<Settings>() == 16);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, no implicit padding (asserted by its size), every bit pattern is a value.
unsafe impl aya::Pod for Settings {}

/// One call of `connect(2)`, or of `sendmsg(2)` with an address.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Where to.
    pub destination: SocketAddress,
    /// What the socket carries; `None` for what no rule speaks of.
    pub protocol: Option<Protocol>,
    /// `SO_MARK` of the socket.
    pub mark: u32,
    /// Network namespace of the socket.
    pub netns_cookie: u64,
    /// Interface index of `SO_BINDTODEVICE`, 0 if unbound.
    pub bound_interface: u32,
}

/// What the decision has to ask; each at most twice, and only when the answer matters.
pub trait Knowledge {
    /// Whether the caller is in the agent's cgroup, `AGENT`. What is not in it may be free to set any mark: a container
    /// in the agent's network namespace has CAP_NET_RAW more often than not.
    fn is_in_agents_cgroup(&self) -> bool;
    /// `POLICY`.
    fn policy(&self) -> PolicyState;
    /// `ENDPOINTS`.
    fn endpoint(&self, destination: &SocketAddress) -> Option<Endpoint>;
    /// `WORKLOADS`, by the cgroup of the caller.
    fn workload(&self) -> Option<WorkloadEntry>;
    /// `USERS`, by the user id of the caller.
    fn user(&self, scope: u32) -> Option<SourceClass>;
    /// `USERS`, by the group id of the caller.
    fn group(&self, scope: u32) -> Option<SourceClass>;
    /// `VERDICTS`.
    fn verdict(&self, key: &VerdictKey) -> Option<Verdict>;
    /// The longest prefix in `EGRESS` for the address of `destination`, with `port` (network byte order) in place
    /// of its own.
    fn egress(&self, destination: &SocketAddress, port: u16, protocol: Protocol) -> Option<Destination>;
    /// Whether our agent, and nobody else, listens at the outbound port.
    fn agent_listens(&self) -> bool;
}

/// What to do with a call of `connect(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel goes on as if we were not there.
    Pass,
    /// To the agent's outbound listener; the application sees the addresses of the plain connection, of which this
    /// is its own.
    Redirect(SocketAddress),
    /// Forbidden by the rules.
    Deny,
    /// To a mesh endpoint, but the socket is bound to an interface: the redirect over loopback would leave
    /// through that interface instead. Refused, so that it never travels in clear.
    RefuseBoundInterface,
    /// To a mesh endpoint while no agent listens, or somebody else listens at its port: refused, so that it neither
    /// travels in clear nor reaches a stranger on this host.
    RefuseWithoutAgent,
    /// To a named service of the mesh that no instance serves now: refused, so that it never travels in clear.
    RefuseUnavailable,
}

/// The decision on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The rule that the agent is to be told of: the one that denied, or one that only reports and would have.
    pub report: Option<RuleNumber>,
}

impl Decision {
    const PASS: Self = Self { action: Action::Pass, report: None };

    const fn denied(rule: RuleNumber) -> Self {
        Self { action: Action::Deny, report: Some(rule) }
    }
}

/// What the rules say of a caller and a destination.
enum Judgement {
    /// With the dry-run rule to be reported.
    Allowed(Option<RuleNumber>),
    /// By this rule.
    Denied(RuleNumber),
    /// It depends on who the caller is, and that is not known.
    Unknown,
}

/// The `connect` hooks' decision. Cheap questions come first; nobody asks for the caller unless the verdict depends on
/// it.
#[inline(always)]
pub fn decide(settings: &Settings, attempt: &Attempt, knowledge: &impl Knowledge) -> Decision {
    let Some(protocol) = attempt.protocol else { return Decision::PASS };
    let is_ours = attempt.netns_cookie == settings.netns_cookie;
    let is_loopback = attempt.destination.is_on_this_host();
    // Loopback of another namespace is another host's, whatever its addresses are here.
    if is_agents(settings, attempt, knowledge) || is_loopback && !is_ours {
        return Decision::PASS;
    }
    let policy = knowledge.policy();
    if matches!(protocol, Protocol::Tcp)
        && let Some(endpoint) = endpoint(attempt, is_loopback && policy.loopback != 0, knowledge)
    {
        return to_endpoint(settings, &endpoint, is_ours, attempt.bound_interface, knowledge);
    }
    if policy.egress == 0 || is_loopback { Decision::PASS } else { to_outside(attempt, protocol, knowledge) }
}

/// The `sendmsg` hooks' decision on a datagram to an address: only egress rules speak of these.
#[inline(always)]
pub fn decide_datagram(settings: &Settings, attempt: &Attempt, knowledge: &impl Knowledge) -> Decision {
    let is_agents = is_agents(settings, attempt, knowledge);
    if is_agents || attempt.destination.is_on_this_host() || knowledge.policy().egress == 0 {
        return Decision::PASS;
    }
    match attempt.protocol {
        Some(protocol) => to_outside(attempt, protocol, knowledge),
        None => Decision::PASS,
    }
}

/// Whether the agent itself calls, on a socket that is exempt.
#[inline(always)]
fn is_agents(settings: &Settings, attempt: &Attempt, knowledge: &impl Knowledge) -> bool {
    attempt.mark == settings.mark
        && attempt.netns_cookie == settings.netns_cookie
        && knowledge.is_in_agents_cgroup()
}

/// A service of this host has one entry for each family's loopback, where it has 2^24 addresses in one of them.
#[inline(always)]
fn endpoint(attempt: &Attempt, or_loopback: bool, knowledge: &impl Knowledge) -> Option<Endpoint> {
    let exact = knowledge.endpoint(&attempt.destination);
    if exact.is_none() && or_loopback {
        return knowledge.endpoint(&attempt.destination.canonical_loopback());
    }
    exact
}

#[inline(always)]
fn to_endpoint(
    settings: &Settings,
    endpoint: &Endpoint,
    is_ours: bool,
    bound_interface: u32,
    knowledge: &impl Knowledge,
) -> Decision {
    let carried = is_ours && !endpoint.destination.has(Destination::OWN);
    let (report, is_judged) = match judge(&endpoint.destination, knowledge) {
        Judgement::Denied(rule) => return Decision::denied(rule),
        // The agent finds out who the caller is, and judges itself.
        Judgement::Unknown if carried => (None, false),
        Judgement::Unknown => return Decision::denied(UNKNOWN_SOURCE),
        Judgement::Allowed(dry_run) => (dry_run, true),
    };
    let action = if !carried {
        Action::Pass
    } else if endpoint.destination.has(Destination::UNAVAILABLE) {
        Action::RefuseUnavailable
    } else if bound_interface != 0 {
        Action::RefuseBoundInterface
    } else if knowledge.agent_listens() {
        Action::Redirect(endpoint.source)
    } else if settings.fail_open != 0 && is_judged && !endpoint.destination.has(Destination::STRICT) {
        Action::Pass
    } else {
        Action::RefuseWithoutAgent
    };
    Decision { action, report }
}

#[inline(always)]
fn to_outside(attempt: &Attempt, protocol: Protocol, knowledge: &impl Knowledge) -> Decision {
    const ANY_PORT: u16 = 0;
    let mut destination = knowledge.egress(&attempt.destination, attempt.destination.port, protocol);
    if destination.is_none() {
        destination = knowledge.egress(&attempt.destination, ANY_PORT, protocol);
    }
    let Some(destination) = destination else { return Decision::PASS };
    match judge(&destination, knowledge) {
        Judgement::Denied(rule) => Decision::denied(rule),
        Judgement::Unknown => Decision::denied(UNKNOWN_SOURCE),
        Judgement::Allowed(report) => Decision { action: Action::Pass, report },
    }
}

#[inline(always)]
fn judge(destination: &Destination, knowledge: &impl Knowledge) -> Judgement {
    let mut verdict = destination.verdict;
    if destination.has(Destination::BY_SOURCE) {
        let Some(source) = source(knowledge) else { return Judgement::Unknown };
        if source != 0
            && let Some(own) = knowledge.verdict(&VerdictKey { source, destination: destination.class })
        {
            verdict = own;
        }
    }
    if verdict.denied != 0 {
        return Judgement::Denied(verdict.rule);
    }
    Judgement::Allowed(if verdict.dry_run == 0 { None } else { Some(verdict.dry_run) })
}

/// Who calls; `None` while the agent has not seen the cgroup, or has seen new rules and not told all of them.
#[inline(always)]
fn source(knowledge: &impl Knowledge) -> Option<SourceClass> {
    let workload = knowledge.workload()?;
    let mut class = workload.class;
    if workload.by_group != 0
        && let Some(group) = knowledge.group(workload.by_group)
    {
        class = group;
    } else if workload.by_user != 0
        && let Some(user) = knowledge.user(workload.by_user)
    {
        class = user;
    }
    if class == CLASS_CHANGES { None } else { Some(class) }
}

#[cfg(test)]
mod tests;
