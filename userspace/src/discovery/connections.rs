//! Connections that services of this host have accepted, and their end by SOCK_DESTROY (`linux/sock_diag.h`), since
//! Linux 4.5 where it is built in (CONFIG_INET_DIAG_DESTROY).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::constants::IPPROTO_TCP;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, StateFlags};
use netlink_packet_sock_diag::{SOCK_DESTROY, SockDiagMessage};
use netlink_sys::Socket;
use nix::libc;

use super::DiscoveryError;
use super::sock_diag::{RECEIVE_BUFFER, dump, message, monitor};

/// Where a netlink message has its type (`struct nlmsghdr` of `linux/netlink.h`): after its length.
const TYPE: std::ops::Range<usize> = 4..6;

/// A TCP connection of this host, or one that is being made to it.
#[derive(Debug)]
pub struct Connection {
    /// The address of this host; IPv4-mapped addresses are given as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    response: InetResponse,
}

/// What became of connections that were to be reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resets {
    /// So many were.
    pub reset: usize,
    /// So many had ended by themselves meanwhile.
    pub ended: usize,
}

/// Lists the connections of the calling thread's network namespace whose local port is one of `ports`. It blocks: about
/// a millisecond for a thousand connections on the host.
///
/// # Errors
/// Any [`DiscoveryError`] but `Addresses`. Nothing is left out silently.
pub fn connections(ports: &BTreeSet<u16>) -> Result<Vec<Connection>, DiscoveryError> {
    let ended = StateFlags::LISTEN | StateFlags::TIME_WAIT | StateFlags::CLOSE;
    let mut connections = Vec::new();
    dump(StateFlags::all() - ended, |response| {
        let id = &response.header.socket_id;
        if ports.contains(&id.source_port) {
            let canonical = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
            connections.push(Connection {
                local: canonical(id.source_address, id.source_port),
                remote: canonical(id.destination_address, id.destination_port),
                response,
            });
        }
    })?;
    Ok(connections)
}

/// Resets connections: both programs see an error. Needs CAP_NET_ADMIN.
///
/// # Errors
/// The kernel cannot do that, or refuses it. Those before are reset.
pub fn reset<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> Result<Resets, DiscoveryError> {
    let (monitor, mut resets) = (monitor()?, Resets::default());
    for connection in connections {
        match destroy(&monitor, &connection.response)? {
            0 => resets.reset += 1,
            libc::ENOENT => resets.ended += 1,
            libc::EOPNOTSUPP => return Err(DiscoveryError::NoReset),
            error => return Err(DiscoveryError::Refused(io::Error::from_raw_os_error(error))),
        }
    }
    Ok(resets)
}

/// Returns the kernel's error number, or 0. The socket's cookie is part of the request: never another socket's end.
fn destroy(monitor: &Socket, found: &InetResponse) -> Result<i32, DiscoveryError> {
    let request = InetRequest {
        family: found.header.family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: found.header.socket_id.clone(),
    };
    let mut bytes = message(request, NLM_F_REQUEST | NLM_F_ACK);
    // The crate only writes requests to list.
    bytes[TYPE].copy_from_slice(&SOCK_DESTROY.to_ne_bytes());
    let failed = |action| move |error| DiscoveryError::Socket { action, error };
    monitor.send(&bytes, 0).map_err(failed("ask"))?;
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    monitor.recv(&mut buffer, 0).map_err(failed("hear from"))?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&buffer);
    match answer.map_err(|error| DiscoveryError::Malformed(error.to_string()))?.payload {
        NetlinkPayload::Error(error) => Ok(error.code.map_or(0, |code| code.get().saturating_neg())),
        other => Err(DiscoveryError::Malformed(format!("unexpected message {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_listed_by_the_port_of_its_service_and_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(address).expect("connected");
        let (_served, _) = listener.accept().expect("accepted");
        let found = connections(&[address.port()].into()).expect("a dump");
        assert_eq!(found.len(), 1, "neither the listener nor the client's end: {found:?}");
        assert_eq!((found[0].local, found[0].remote), (address, client.local_addr().expect("an address")));
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: resetting needs root");
        }
        match reset(&found) {
            Err(DiscoveryError::NoReset) => {
                return eprintln!("skipped: this kernel cannot reset connections");
            }
            resets => assert_eq!(resets.expect("reset"), Resets { reset: 1, ended: 0 }),
        }
        let error = client.read(&mut [0]).expect_err("a reset, and no clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(reset(&found).expect("nothing to do"), Resets { reset: 0, ended: 1 });
    }
}
