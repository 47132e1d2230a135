use crate::{Destination, SocketAddress};

/// Value of the `ENDPOINTS` map, keyed by [`SocketAddress`]: a destination that is reached through the mesh, or a
/// service of this host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The address from which the plain connection would have been made: what `getsockname` answers on a
    /// redirected socket. Unspecified while no route tells it. Port is unused and zero.
    pub source: SocketAddress,
    /// What the rules say of it.
    pub destination: Destination,
}

const _: () = assert!(size_of::<Endpoint>() == 40);

/// Which end of an intercepted connection a socket is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A workload's socket, redirected to the agent's outbound listener.
    Client = 1,
    /// The agent's socket accepted from a `Client`.
    Intercepted = 2,
    /// The agent's socket that dials a local service for a remote client.
    Dialling = 3,
    /// The service's socket accepted from a `Dialling`.
    Served = 4,
}

/// Value of the `CONNECTIONS` socket storage, and of `HANDSHAKES` while it travels from the connecting socket
/// to the accepted one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// The peer as the application should see it: the original destination for a client, the real client
    /// for a service.
    pub peer: SocketAddress,
    /// The address that a client's `getsockname` answers, unless unspecified; its port is unused and zero.
    pub source: SocketAddress,
    /// A [`Role`] as a number.
    pub role: u32,
    /// Thread group that called `connect`; for logs, not for decisions.
    pub pid: u32,
    /// User of the caller of `connect`.
    pub uid: u32,
    /// Group of the caller of `connect`.
    pub gid: u32,
    /// cgroup v2 id (inode number) of the caller of `connect`.
    pub cgroup: u64,
}

const _: () = assert!(size_of::<ConnectionRecord>() == 64);

impl ConnectionRecord {
    /// What the agent stores on a socket before it dials a service for `client`.
    pub fn dialling(client: SocketAddress) -> Self {
        Self { peer: client, role: Role::Dialling as u32, ..Self::default() }
    }
}

/// Key of the `HANDSHAKES` map: the connection as its connecting end names it. An entry lives from the SYN to
/// the last packet of the handshake, in which time the four values cannot be reused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HandshakeKey {
    /// Local address of the connecting socket.
    pub connecting: SocketAddress,
    /// Local address of the accepting socket.
    pub accepting: SocketAddress,
}

const _: () = assert!(size_of::<HandshakeKey>() == 40);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, no implicit padding (asserted by their sizes), every bit pattern is a value.
    unsafe impl aya::Pod for super::Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ConnectionRecord {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::HandshakeKey {}
}
