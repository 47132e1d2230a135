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
    /// Another host of the mesh.
    Mesh = 2,
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

/// What there is to ask about an arrival; each at most once.
pub trait Surroundings {
    /// `POLICY`.
    fn policy(&self) -> PolicyState;
    /// `PORTS`, by a port in network byte order.
    fn port_mode(&self, port: u16) -> Option<u32>;
    /// `ADDRESSES`: an [`Owner`] as a number.
    fn owner(&self, address: &SocketAddress) -> Option<u32>;
    /// Whether there is a prefix for the remote address in `EXCEPTIONS`.
    fn is_excepted(&self, arrival: &Arrival) -> bool;
}

/// Whether a connection from outside may reach its listener.
#[inline(always)]
pub fn admits(arrival: &Arrival, surroundings: &impl Surroundings) -> bool {
    let mode = mode(arrival, surroundings);
    mode < PortMode::Strict as u32
        || is_from_here(arrival, surroundings)
        || mode == PortMode::StrictWithExceptions as u32 && surroundings.is_excepted(arrival)
}

/// Whose connection in clear this is, if that is to be reported: `None` for this host's own and to exempt ports.
#[inline(always)]
pub fn plaintext(arrival: &Arrival, surroundings: &impl Surroundings) -> Option<Sender> {
    if mode(arrival, surroundings) == PortMode::Exempt as u32 || is_local(arrival) {
        return None;
    }
    match surroundings.owner(&arrival.remote) {
        Some(owner) if owner == Owner::Here as u32 => None,
        Some(owner) if owner == Owner::Mesh as u32 => Some(Sender::Mesh),
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

#[inline(always)]
fn is_from_here(arrival: &Arrival, surroundings: &impl Surroundings) -> bool {
    is_local(arrival) || surroundings.owner(&arrival.remote) == Some(Owner::Here as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESSES: [[u8; 4]; 5] =
        [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3], [192, 0, 2, 1], [127, 0, 0, 1]];

    #[derive(Clone, Debug)]
    struct Host {
        mode: u32,
        port: Option<u32>,
        excepted: bool,
    }

    impl Surroundings for Host {
        fn policy(&self) -> PolicyState {
            PolicyState { mode: self.mode, ..PolicyState::default() }
        }
        fn port_mode(&self, _: u16) -> Option<u32> {
            self.port
        }
        fn owner(&self, address: &SocketAddress) -> Option<u32> {
            match address.as_v4()?.to_ne_bytes() {
                [10, 0, 0, 1 | 2] => Some(Owner::Here as u32),
                [10, 0, 0, 3] => Some(Owner::Mesh as u32),
                _ => None,
            }
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
        ) {
            let address = |ip: [u8; 4]| SocketAddress::from_v4(u32::from_ne_bytes(ip), 80_u16.to_be());
            let arrival = Arrival { local: address(local), remote: address(remote) };
            let host = Host { mode, port, excepted };
            let other = !matches!(remote, [10, 0, 0, 1 | 2] | [127, ..]);
            let mode = port.unwrap_or(mode);
            let strict = mode == 2 || mode == 3 && !excepted;
            prop_assert_eq!(admits(&arrival, &host), !(other && strict));
            let sender = if remote == [10, 0, 0, 3] { Sender::Mesh } else { Sender::Outside };
            let reported = other && mode != PortMode::Exempt as u32;
            prop_assert_eq!(plaintext(&arrival, &host), reported.then_some(sender));
        }
    }
}
