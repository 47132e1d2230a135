use crate::{NetworkKey, PolicyState, Protocol, SocketAddress};

/// What becomes of a plain connection to a service of this host that comes from another. As a number it is the value
/// of the `PORTS` map, keyed by port, for those ports where something else holds than [`PolicyState::mode`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortMode {
    /// It is none of our business.
    Exempt = 0,
    /// It is let in and reported.
    Open = 1,
    /// It is refused.
    Strict = 2,
    /// It is refused unless its source is in `EXCEPTIONS`.
    StrictWithExceptions = 3,
}

/// Value of the `ADDRESSES` map, keyed by address in its IPv6 form: whose it is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This host.
    Here = 1,
    /// Another host of the mesh. That of one in a group is higher by the group's number.
    Mesh = 2,
}

impl Owner {
    /// The value for an address of another host of the mesh, which is in `group`.
    #[inline(always)]
    pub const fn mesh(group: Group) -> u32 {
        (Self::Mesh as u32).saturating_add(group)
    }

    /// The group of a host of the mesh; `None` for every other owner.
    #[inline(always)]
    pub const fn group(owner: u32) -> Option<Group> {
        owner.checked_sub(Self::Mesh as u32)
    }
}

/// Hosts that rules could refuse the same ports of this host, as a number. 0 are those that they refuse nothing.
pub type Group = u32;

/// Key of the `DENIALS` map, whose values are not 0 where a rule could refuse some workload of the group's hosts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DenialKey {
    /// Never 0.
    pub group: Group,
    /// A port of this host, network byte order; 0 for all that have no entry of their own.
    pub port: u16,
    /// Always zero: every byte of a key counts.
    pub padding: u16,
}

const _: () = assert!(size_of::<DenialKey>() == 8);

#[cfg(feature = "user")]
// SAFETY: `repr(C)`, no implicit padding (asserted by its size), every bit pattern is a value.
unsafe impl aya::Pod for DenialKey {}

/// What becomes of a plain connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is let in.
    Admitted,
    /// The service is strict.
    Strict,
    /// It comes from a host some of whose workloads a rule could refuse the service, and in clear nobody can tell which
    /// this is.
    Denied,
}

/// A plain connection that comes to a listener of this host.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Where to.
    pub local: SocketAddress,
    /// Where from.
    pub remote: SocketAddress,
}

impl Arrival {
    /// Key in `PLAINTEXT_CLIENTS`.
    #[inline(always)]
    pub const fn client(&self) -> PlaintextClient {
        PlaintextClient { ip: self.remote.ip, port: self.local.port, padding: 0 }
    }

    /// Key in `EXCEPTIONS`.
    #[inline(always)]
    pub const fn exception(&self) -> NetworkKey {
        NetworkKey::new(&self.remote, self.local.port, Protocol::Tcp)
    }
}

/// What there is to ask about an arrival.
pub trait Surroundings {
    /// `POLICY`.
    fn policy(&self) -> PolicyState;
    /// `PORTS`, by a port in network byte order.
    fn port_mode(&self, port: u16) -> Option<u32>;
    /// `ADDRESSES`: an [`Owner`] as a number.
    fn owner(&self, address: &SocketAddress) -> Option<u32>;
    /// Whether a rule could refuse some workload of the hosts in `group` the port (network byte order): `DENIALS`.
    fn is_denied(&self, group: Group, port: u16) -> bool;
    /// Whether there is a prefix for the remote address in `EXCEPTIONS`.
    fn is_excepted(&self, arrival: &Arrival) -> bool;
}

/// Whether a connection in clear may reach its listener.
#[inline(always)]
pub fn admission(arrival: &Arrival, surroundings: &impl Surroundings) -> Admission {
    if is_local(arrival) {
        return Admission::Admitted;
    }
    let (mode, neighbours) = (mode(arrival, surroundings), surroundings.policy().neighbours);
    let is_strict = mode >= PortMode::Strict as u32;
    if mode == PortMode::Exempt as u32 || !is_strict && neighbours == 0 {
        return Admission::Admitted;
    }
    let owner = surroundings.owner(&arrival.remote).unwrap_or(0);
    if owner == Owner::Here as u32 {
        return Admission::Admitted;
    }
    let group = match Owner::group(owner) {
        Some(group) => group,
        None if arrival.remote.is_link_local() => neighbours,
        None => 0,
    };
    if group != 0 && surroundings.is_denied(group, arrival.local.port) {
        return Admission::Denied;
    }
    if !is_strict || mode == PortMode::StrictWithExceptions as u32 && surroundings.is_excepted(arrival) {
        Admission::Admitted
    } else {
        Admission::Strict
    }
}

/// Whose connection in clear this is, if that is to be reported: `None` for this host's own and to exempt ports.
#[inline(always)]
pub fn plaintext(arrival: &Arrival, surroundings: &impl Surroundings) -> Option<Sender> {
    if mode(arrival, surroundings) == PortMode::Exempt as u32 || is_local(arrival) {
        return None;
    }
    match surroundings.owner(&arrival.remote) {
        Some(owner) if owner == Owner::Here as u32 => None,
        Some(owner) if Owner::group(owner).is_some() => Some(Sender::Mesh),
        _ => Some(Sender::Outside),
    }
}

/// Key of the `PLAINTEXT_CLIENTS` map: who connects in clear, and where to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlaintextClient {
    /// Address of the client, as in [`SocketAddress`].
    pub ip: [u32; 4],
    /// Port of the service, network byte order.
    pub port: u16,
    /// Always zero.
    pub padding: u16,
}

const _: () = assert!(size_of::<PlaintextClient>() == 20);

/// What is counted of connections in clear from other hosts. Value of `PLAINTEXT_CLIENTS`, and of `PLAINTEXT_PORTS`,
/// whose key is the port of the service in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaintextCount {
    /// From hosts of the mesh.
    pub from_mesh: u64,
    /// From elsewhere.
    pub from_outside: u64,
    /// The last one, in nanoseconds since boot, time asleep included (`CLOCK_BOOTTIME`).
    pub last: u64,
}

const _: () = assert!(size_of::<PlaintextCount>() == 24);

impl PlaintextCount {
    /// Those from anywhere.
    #[must_use]
    pub const fn connections(&self) -> u64 {
        self.from_mesh + self.from_outside
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, no implicit padding (asserted by its size), every bit pattern is a value.
    unsafe impl aya::Pod for super::PlaintextClient {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PlaintextCount {}
}

/// Who connects in clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A host of the mesh.
    Mesh,
    /// Anybody else.
    Outside,
}

#[inline(always)]
fn mode(arrival: &Arrival, surroundings: &impl Surroundings) -> u32 {
    match surroundings.port_mode(arrival.local.port) {
        Some(mode) => mode,
        None => surroundings.policy().mode,
    }
}

/// Whoever dials one of a host's addresses from that host has the same, unless it chose another.
#[inline(always)]
fn is_local(arrival: &Arrival) -> bool {
    arrival.remote.is_loopback() || arrival.remote.ip_equals(&arrival.local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESSES: [[u8; 4]; 7] = [
        [10, 0, 0, 1],
        [10, 0, 0, 2],
        [10, 0, 0, 3],
        [10, 0, 0, 4],
        [192, 0, 2, 1],
        [169, 254, 7, 7],
        [127, 0, 0, 1],
    ];

    /// Rules could refuse the hosts in this group the service.
    const REFUSED: Group = 5;

    #[derive(Clone, Debug)]
    struct Host {
        mode: u32,
        port: Option<u32>,
        excepted: bool,
        rules: bool,
    }

    impl Surroundings for Host {
        fn policy(&self) -> PolicyState {
            let neighbours = if self.rules { REFUSED } else { 0 };
            PolicyState { mode: self.mode, neighbours, ..PolicyState::default() }
        }
        fn port_mode(&self, _: u16) -> Option<u32> {
            self.port
        }
        fn owner(&self, address: &SocketAddress) -> Option<u32> {
            match address.as_v4()?.to_ne_bytes() {
                [10, 0, 0, 1 | 2] => Some(Owner::Here as u32),
                [10, 0, 0, 3] => Some(Owner::mesh(0)),
                [10, 0, 0, 4] => Some(Owner::mesh(if self.rules { REFUSED } else { 0 })),
                _ => None,
            }
        }
        fn is_denied(&self, group: Group, _: u16) -> bool {
            group == REFUSED
        }
        fn is_excepted(&self, _: &Arrival) -> bool {
            self.excepted
        }
    }

    proptest! {
        #[test]
        fn only_others_are_refused_or_reported(
            local in prop::sample::select(ADDRESSES[..2].to_vec()),
            remote in prop::sample::select(ADDRESSES.to_vec()),
            mode in 0_u32..3,
            port in prop::option::of(0_u32..4),
            excepted: bool,
            rules: bool,
        ) {
            let address = |ip: [u8; 4]| SocketAddress::from_v4(u32::from_ne_bytes(ip), 80_u16.to_be());
            let arrival = Arrival { local: address(local), remote: address(remote) };
            let host = Host { mode, port, excepted, rules };
            let other = !matches!(remote, [10, 0, 0, 1 | 2] | [127, ..]);
            let mode = port.unwrap_or(mode);
            let denied = rules && matches!(remote, [10, 0, 0, 4] | [169, 254, ..]) && mode != 0;
            let strict = mode == 2 || mode == 3 && !excepted;
            let expected = match other {
                true if denied => Admission::Denied,
                true if strict => Admission::Strict,
                _ => Admission::Admitted,
            };
            prop_assert_eq!(admission(&arrival, &host), expected);
            let sender = if matches!(remote, [10, 0, 0, 3 | 4]) { Sender::Mesh } else { Sender::Outside };
            let reported = other && mode != PortMode::Exempt as u32;
            prop_assert_eq!(plaintext(&arrival, &host), reported.then_some(sender));
        }
    }
}
