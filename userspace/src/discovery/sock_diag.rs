//! Lists listening TCP sockets by NETLINK_SOCK_DIAG (`linux/inet_diag.h`), since Linux 3.3.

use std::io;
use std::net::SocketAddr;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use super::DiscoveryError;

/// The kernel fills a reply as far as the reader's buffer goes, up to 32 KiB: about 300 sockets at a time.
pub(super) const RECEIVE_BUFFER: usize = 32 * 1024;

/// A TCP socket in the LISTEN state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListeningSocket {
    /// The kernel's name for the socket (`SO_COOKIE`), unique until reboot: the same that the kernel half
    /// reports.
    pub cookie: u64,
    /// Where it listens; IPv4-mapped addresses are given as IPv4.
    pub address: SocketAddr,
    /// An IPv6 socket that takes no IPv4 connections (`IPV6_V6ONLY`).
    pub ipv6_only: bool,
    /// Index of the interface that the socket is bound to (`SO_BINDTODEVICE`, or the zone of its address).
    pub bound_interface: Option<u32>,
    /// Number of the socket's inode, by which `/proc/PID/fd` names it.
    pub inode: u32,
    /// The cgroup v2 (by its inode number) in which it was made; `None` before Linux 5.8.
    pub cgroup: Option<u64>,
    /// The user who owns it.
    pub uid: u32,
}

/// `INET_DIAG_CGROUP_ID` of `linux/inet_diag.h`: a number of 64 bits in host order.
const CGROUP_ID: u16 = 21;

/// Lists the listening TCP sockets of the calling thread's network namespace. It blocks, for well under a
/// millisecond with a thousand sockets: the kernel answers without waiting.
///
/// # Errors
/// Any [`DiscoveryError`] but `Addresses`. Nothing is left out silently.
pub fn listening_sockets() -> Result<Vec<ListeningSocket>, DiscoveryError> {
    let mut sockets = Vec::new();
    dump(StateFlags::LISTEN, |response| sockets.push(listening_socket(&response)))?;
    Ok(sockets)
}

/// Calls `take` for every TCP socket of the namespace that is in one of `states`.
pub(super) fn dump(states: StateFlags, mut take: impl FnMut(InetResponse)) -> Result<(), DiscoveryError> {
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let extensions = ExtensionFlags::empty();
        let request =
            InetRequest { family, protocol: IPPROTO_TCP, extensions, states: states.clone(), socket_id };
        let monitor = monitor()?;
        let asked = monitor.send(&message(request, NLM_F_REQUEST | NLM_F_DUMP), 0);
        asked.map_err(|error| DiscoveryError::Socket { action: "ask", error })?;
        while !receive(&monitor, &mut take)? {}
    }
    Ok(())
}

/// A socket to the kernel's socket monitor.
pub(super) fn monitor() -> Result<Socket, DiscoveryError> {
    Socket::new(NETLINK_SOCK_DIAG).map_err(|error| DiscoveryError::Socket { action: "open", error })
}

/// The request as it is sent.
pub(super) fn message(request: InetRequest, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Receives one datagram of the dump, and says whether it was the last one.
fn receive(monitor: &Socket, take: &mut impl FnMut(InetResponse)) -> Result<bool, DiscoveryError> {
    let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
    let length = monitor
        .recv(&mut buffer, 0)
        .map_err(|error| DiscoveryError::Socket { action: "hear from", error })?;
    if length == 0 {
        return Err(DiscoveryError::Malformed("the dump has no end".into()));
    }
    let mut rest = buffer.as_slice();
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(malformed)?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                take(*response);
            }
            other => return Err(DiscoveryError::Malformed(format!("unexpected message {other:?}"))),
        }
        // NLMSG_ALIGN of `linux/netlink.h`; the header that was just read is the least there is.
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length.max(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn listening_socket(response: &InetResponse) -> ListeningSocket {
    let id = &response.header.socket_id;
    ListeningSocket {
        cookie: cookie(id.cookie),
        address: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        ipv6_only: response.nlas.iter().any(|attribute| matches!(attribute, Nla::SkV6Only(true))),
        bound_interface: (id.interface_id != 0).then_some(id.interface_id),
        inode: response.header.inode,
        cgroup: response.nlas.iter().find_map(cgroup),
        uid: response.header.uid,
    }
}

fn cgroup(attribute: &Nla) -> Option<u64> {
    match attribute {
        Nla::Other(attribute) if attribute.kind() == CGROUP_ID => {
            let mut value = [0; 8];
            (attribute.value_len() == value.len()).then(|| attribute.emit_value(&mut value))?;
            Some(u64::from_ne_bytes(value))
        }
        _ => None,
    }
}

/// `sock_diag_save_cookie` of the kernel: two 32-bit words in host order, the low one first.
fn cookie([a, b, c, d, e, f, g, h]: [u8; 8]) -> u64 {
    let (low, high) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    u64::from(high) << 32 | u64::from(low)
}

fn refused(error: io::Error) -> DiscoveryError {
    if error.kind() == io::ErrorKind::NotFound {
        DiscoveryError::Unsupported
    } else {
        DiscoveryError::Refused(error)
    }
}

fn malformed(error: impl std::fmt::Display) -> DiscoveryError {
    DiscoveryError::Malformed(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use socket2::{Domain, Type};

    use super::*;

    fn find(socket: &impl std::os::fd::AsFd) -> Option<ListeningSocket> {
        let cookie = socket2::SockRef::from(socket).cookie().expect("SO_COOKIE, since Linux 4.12");
        listening_sockets().expect("a dump").into_iter().find(|listed| listed.cookie == cookie)
    }

    fn listen_v6(ipv6_only: bool) -> socket2::Socket {
        let socket = socket2::Socket::new(Domain::IPV6, Type::STREAM, None).expect("an IPv6 socket");
        socket.set_only_v6(ipv6_only).expect("IPV6_V6ONLY");
        let any: SocketAddr = "[::]:0".parse().expect("an address");
        socket.bind(&any.into()).expect("a free port");
        socket.listen(1).expect("listening");
        socket
    }

    #[test]
    fn a_listener_is_listed_by_its_cookie_until_it_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let listed = find(&listener).expect("listed");
        assert_eq!(listed.address, listener.local_addr().expect("an address"));
        assert!(!listed.ipv6_only);
        let descriptor = format!("/proc/self/fd/{}", listener.as_raw_fd());
        assert_eq!(u64::from(listed.inode), std::fs::metadata(descriptor).expect("an inode").ino());
        assert_eq!(listed.uid, nix::unistd::getuid().as_raw());
        assert!(listed.cgroup.is_some());

        drop(listener);
        let still_there = listening_sockets().expect("a dump").contains(&listed);
        assert!(!still_there);
    }

    #[test]
    fn an_ipv6_socket_says_whether_it_takes_ipv4() {
        for ipv6_only in [false, true] {
            let socket = listen_v6(ipv6_only);
            let listed = find(&socket).expect("listed");
            assert_eq!(listed.ipv6_only, ipv6_only);
            assert_eq!(listed.address.ip(), "::".parse::<std::net::IpAddr>().expect("an address"));
        }
    }

    #[test]
    fn connected_sockets_are_not_listed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client =
            std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (served, _) = listener.accept().expect("accepted");
        assert_eq!((find(&client), find(&served)), (None, None));
    }

    #[test]
    fn several_datagrams_make_one_list() {
        let listeners: Vec<_> =
            (0..800).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let listed = listening_sockets().expect("a dump");
        for listener in &listeners {
            let address = listener.local_addr().expect("an address");
            assert_eq!(listed.iter().filter(|socket| socket.address == address).count(), 1, "{address}");
        }
    }
}
