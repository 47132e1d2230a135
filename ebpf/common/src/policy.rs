use crate::SocketAddress;

/// A rule, as the kernel half names it in events: the agent numbers the rules. 0 is the default.
pub type RuleNumber = u32;

/// Instead of a rule: who connects is not known (yet), and the verdict depends on it.
pub const UNKNOWN_SOURCE: RuleNumber = u32::MAX;

/// Instead of a rule: what the rules say of the destination did not fit into the maps.
pub const NO_ROOM: RuleNumber = u32::MAX - 1;

/// Sources of which the same rules speak, as a number. 0 are those of which no rule speaks in particular.
pub type SourceClass = u32;

/// In place of a source's class while that changes: who it is counts as not known.
pub const CLASS_CHANGES: SourceClass = u32::MAX;

/// What the rules say of one connection. Value of the `VERDICTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// 0 lets the connection happen; anything else forbids it.
    pub denied: u32,
    /// The rule that decides.
    pub rule: RuleNumber,
    /// Of an allowed connection: the rule that only reports, and would forbid it; 0 if there is none.
    pub dry_run: RuleNumber,
}

const _: () = assert!(size_of::<Verdict>() == 12);

/// Key of the `VERDICTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerdictKey {
    /// Who connects; never 0.
    pub source: SourceClass,
    /// Where to: a [`Destination::class`].
    pub destination: u32,
}

const _: () = assert!(size_of::<VerdictKey>() == 8);

/// What the rules say of a destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Destinations of which the same rules speak, as a number.
    pub class: u32,
    /// Bits: [`Destination::BY_SOURCE`], [`Destination::OWN`], [`Destination::UNAVAILABLE`].
    pub flags: u32,
    /// For the sources that have none of their own in `VERDICTS`.
    pub verdict: Verdict,
}

const _: () = assert!(size_of::<Destination>() == 20);

impl Destination {
    /// Some sources have a verdict of their own in `VERDICTS`.
    pub const BY_SOURCE: u32 = 1;
    /// A service of this host, or one whose mode is to observe: never redirected.
    pub const OWN: u32 = 2;
    /// A named service that nobody serves now: who may connect is refused as where nobody listens.
    pub const UNAVAILABLE: u32 = 4;

    /// A destination that anybody may connect to.
    pub const OPEN: Self = Self { class: 0, flags: 0, verdict: Verdict { denied: 0, rule: 0, dry_run: 0 } };

    #[inline(always)]
    pub(crate) const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Value of the `WORKLOADS` map, keyed by cgroup id: who the processes of a cgroup are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WorkloadEntry {
    /// The class of the workload, or of the users that are not in `USERS`.
    pub class: SourceClass,
    /// Not 0: some users are not this workload; their classes are in `USERS`, by this number and the user id.
    pub by_user: u32,
    /// Not 0: some groups are not this workload, whoever the user is; likewise, by this number and the group id.
    pub by_group: u32,
}

const _: () = assert!(size_of::<WorkloadEntry>() == 12);

/// Key of the `USERS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserKey {
    /// A [`WorkloadEntry::by_user`] or [`WorkloadEntry::by_group`]: cgroups in which users, or groups, are told apart in
    /// the same way.
    pub scope: u32,
    /// The user or the group.
    pub id: u32,
}

const _: () = assert!(size_of::<UserKey>() == 8);

/// The one value of the `POLICY` map: what rules there are. Nothing is asked about that there are none of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyState {
    /// Not 0: destinations outside the mesh are looked up in `EGRESS`.
    pub egress: u32,
    /// Not 0: services of this host are in `ENDPOINTS` by their loopback addresses, too.
    pub loopback: u32,
    /// A [`PortMode`](crate::PortMode) as a number, of this host's ports that are not in `PORTS`.
    pub mode: u32,
    /// The [`Group`](crate::Group) of link-local addresses, behind which any host of the mesh may be. 0: no rule refuses
    /// a host of the mesh anything here.
    pub neighbours: u32,
}

const _: () = assert!(size_of::<PolicyState>() == 16);

/// Protocols of which egress rules speak, by their IP protocol numbers.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, and MPTCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// Data of the keys of the tries `EGRESS` and `EXCEPTIONS`: an exact port (or 0, for any), protocol and version, then a prefix of the address.
///
/// The kernel finds the longest prefix: it compares the bits in the order of the fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkKey {
    /// Network byte order. In `EGRESS` 0 stands for every port that has no entry of its own for the address; in
    /// `EXCEPTIONS` it is that of this host's service.
    pub port: u16,
    /// A [`Protocol`] as a number.
    pub protocol: u8,
    /// 4 or 6: `::/0` is not about IPv4, whose addresses are among those of IPv6 in their mapped form.
    pub version: u8,
    /// As in [`SocketAddress`].
    pub ip: [u32; 4],
}

const _: () = assert!(size_of::<NetworkKey>() == 20);

impl NetworkKey {
    /// Bits before the address.
    pub const EXACT_BITS: u32 = 32;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::EXACT_BITS + 128;

    /// For an address; the port as given, in network byte order.
    #[inline(always)]
    pub const fn new(address: &SocketAddress, port: u16, protocol: Protocol) -> Self {
        let version = if address.as_v4().is_some() { 4 } else { 6 };
        Self { port, protocol: protocol as u8, version, ip: address.ip }
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, no implicit padding (asserted by their sizes), every bit pattern is a value.
    unsafe impl aya::Pod for super::Verdict {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VerdictKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::WorkloadEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::UserKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PolicyState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::NetworkKey {}
}
