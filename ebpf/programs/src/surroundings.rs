//! What the decisions about connections from other hosts ask, answered by the maps.

use aya_ebpf::btf_maps::lpm_trie::Key;
use murmesh_common::{
    Arrival, DenialKey, Group, NetworkKey, PolicyState, Protocol, RuleNumber, Sender, SocketAddress,
    Surroundings, VerdictEvent, VerdictKind,
};

use crate::{
    context::now,
    maps::{self, ADDRESSES, DENIALS, EXCEPTIONS, PORTS},
};

/// One connection from another host.
pub struct Asked(pub Arrival);

impl Asked {
    /// Counts it as one that was let in, in clear.
    #[inline(always)]
    pub fn count(&self, sender: Sender) {
        maps::count_plaintext(&self.0, sender, now());
    }

    /// Tells the agent what became of it.
    #[inline(always)]
    pub fn report(&self, kind: VerdictKind, rule: RuleNumber) {
        maps::report(&VerdictEvent {
            time: now(),
            cgroup: 0,
            kind: kind as u32,
            rule,
            pid: 0,
            uid: 0,
            command: [0; 16],
            destination: self.0.local,
            protocol: Protocol::Tcp as u32,
            origin: self.0.remote,
            gid: 0,
        });
    }
}

/// Whose address it is: an `Owner` as a number.
#[inline(always)]
pub fn owner(address: &SocketAddress) -> Option<u32> {
    // SAFETY: copied at once.
    unsafe { ADDRESSES.get(address.ip) }.copied()
}

/// The agent replaces values whole, and each is copied at once.
impl Surroundings for Asked {
    #[inline(always)]
    fn policy(&self) -> PolicyState {
        maps::policy()
    }

    #[inline(always)]
    fn port_mode(&self, port: u16) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { PORTS.get(port) }.copied()
    }

    #[inline(always)]
    fn owner(&self, address: &SocketAddress) -> Option<u32> {
        owner(address)
    }

    #[inline(always)]
    fn is_denied(&self, group: Group, port: u16) -> bool {
        // While a group is replaced by another its entries may be gone.
        match denial(group, port) {
            Some(denied) => denied != 0,
            None => !matches!(denial(group, 0), Some(0)),
        }
    }

    #[inline(always)]
    fn is_excepted(&self, arrival: &Arrival) -> bool {
        EXCEPTIONS.get(&Key::new(NetworkKey::BITS, arrival.exception())).is_some()
    }
}

#[inline(always)]
fn denial(group: Group, port: u16) -> Option<u32> {
    // SAFETY: copied at once.
    unsafe { DENIALS.get(DenialKey { group, port, padding: 0 }) }.copied()
}
