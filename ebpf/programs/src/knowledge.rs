//! What the decision asks, answered by the maps and the context of the call.

use aya_ebpf::btf_maps::lpm_trie::Key;
use murmesh_common::{
    Attempt, Destination, Endpoint, Knowledge, NetworkKey, PolicyState, Protocol, RuleNumber, Settings,
    SocketAddress, SourceClass, UserKey, Verdict, VerdictEvent, VerdictKey, VerdictKind, WorkloadEntry,
};

use crate::{
    context::{Caller, SocketCall, now},
    maps::{self, EGRESS, ENDPOINTS, USERS, VERDICTS, WORKLOADS},
};

/// One call, and whoever makes it.
pub struct Asked<'a> {
    pub call: &'a SocketCall<'a>,
    pub settings: Settings,
    pub attempt: Attempt,
}

impl<'a> Asked<'a> {
    #[inline(always)]
    pub fn new(call: &'a SocketCall<'a>, destination: SocketAddress) -> Self {
        let attempt = Attempt {
            destination,
            protocol: call.protocol(),
            mark: call.mark(),
            netns_cookie: call.netns_cookie(),
            bound_interface: call.bound_interface(),
        };
        Self { call, settings: maps::settings(), attempt }
    }

    /// Tells the agent what a rule said of this call.
    #[inline(always)]
    pub fn report(&self, kind: VerdictKind, rule: RuleNumber) {
        maps::report(&VerdictEvent {
            time: now(),
            cgroup: Caller::cgroup(),
            kind: kind as u32,
            rule,
            pid: Caller::pid(),
            uid: Caller::uid(),
            command: Caller::command(),
            destination: self.attempt.destination,
            protocol: self.attempt.protocol.map_or(0, |protocol| protocol as u32),
            origin: SocketAddress::default(),
            gid: Caller::gid(),
        });
    }
}

/// The agent replaces values whole, and each is copied at once.
impl Knowledge for Asked<'_> {
    #[inline(always)]
    fn is_in_agents_cgroup(&self) -> bool {
        Caller::cgroup() == maps::agents_cgroup()
    }

    #[inline(always)]
    fn policy(&self) -> PolicyState {
        maps::policy()
    }

    #[inline(always)]
    fn endpoint(&self, destination: &SocketAddress) -> Option<Endpoint> {
        // SAFETY: copied at once.
        unsafe { ENDPOINTS.get(destination) }.copied()
    }

    #[inline(always)]
    fn workload(&self) -> Option<WorkloadEntry> {
        // SAFETY: copied at once.
        unsafe { WORKLOADS.get(Caller::cgroup()) }.copied()
    }

    #[inline(always)]
    fn user(&self, scope: u32) -> Option<SourceClass> {
        // SAFETY: copied at once.
        unsafe { USERS.get(UserKey { scope, id: Caller::uid() }) }.copied()
    }

    #[inline(always)]
    fn group(&self, scope: u32) -> Option<SourceClass> {
        // SAFETY: copied at once.
        unsafe { USERS.get(UserKey { scope, id: Caller::gid() }) }.copied()
    }

    #[inline(always)]
    fn verdict(&self, key: &VerdictKey) -> Option<Verdict> {
        // SAFETY: copied at once.
        unsafe { VERDICTS.get(key) }.copied()
    }

    #[inline(always)]
    fn egress(&self, destination: &SocketAddress, port: u16, protocol: Protocol) -> Option<Destination> {
        EGRESS.get(&Key::new(NetworkKey::BITS, NetworkKey::new(destination, port, protocol))).copied()
    }

    #[inline(always)]
    fn agent_listens(&self) -> bool {
        let v4 = self.attempt.destination.as_v4().is_some();
        self.call.listener_mark(self.settings.outbound_port, v4) == self.settings.mark
    }
}
