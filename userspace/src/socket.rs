//! Sockets as the agent makes them.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Connections waiting for `accept`, per listener.
const BACKLOG: i32 = 4096;

/// After how long at rest a tunnel's connection is probed, how often, and how many probes without an answer are its
/// end: 17.5 s after a host is gone.
const KEEPALIVE_TIME: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(2500);
const KEEPALIVE_PROBES: u32 = 3;

/// The same for the connection of a host to a server, which must know within two seconds.
const HOST_KEEPALIVE: Duration = Duration::from_secs(1);
/// How long what was sent there may be without an answer. Kernels answer, however busy their programs are.
const HOST_UNANSWERED: Duration = Duration::from_millis(1500);

/// How many times in a row data, or a probe of a window that is closed, may be sent without an answer. The kernel
/// doubles the time between them, from 200 ms where the round trip is short: five are lost after six seconds.
const MAX_UNANSWERED: u8 = 5;

/// The same where there is somewhere else to go.
const FEW_UNANSWERED: u8 = 2;

/// `TCP_CLOSE` of linux/net/tcp_states.h, which is in no header for programs.
const STATE_CLOSED: u8 = 7;

/// A listener that several threads may have at the same address (`SO_REUSEPORT`): the kernel spreads connections
/// over them. An IPv6 wildcard address accepts IPv4 too.
///
/// # Errors
/// The address is in use by another process, or may not be used.
pub fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = listening_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether nobody listens at `address`: sharing it among our own threads would otherwise share it with another
/// process of the same user.
///
/// # Errors
/// The address is in use, or may not be used.
pub fn ensure_free(address: SocketAddr) -> io::Result<()> {
    let socket = listening_socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

fn listening_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// A socket to dial `address` with, not yet connected. `mark` exempts it from the agent's own hooks.
///
/// # Errors
/// No descriptor is left, or the mark may not be set (CAP_NET_ADMIN).
pub fn outgoing(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.set_tcp_nodelay(true)?;
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Says of a connection to `destination` what to do about a lack of ports, if that is what `error` is about.
pub fn explain_ports(error: io::Error, destination: SocketAddr) -> io::Error {
    if error.kind() != io::ErrorKind::AddrNotAvailable {
        return error;
    }
    let full = format!(
        "no local port is left for one more connection to {destination}: end some, or raise net.ipv4.ip_local_port_range"
    );
    io::Error::new(error.kind(), full)
}

/// Has `socket` connect from `address`, with a port that is only taken for the same destination.
///
/// # Errors
/// The address is none of this host's.
pub fn bind_address(socket: &TcpSocket, address: IpAddr) -> io::Result<()> {
    setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind((address, 0).into())
}

/// Makes a tunnel's connection notice that the other host is gone while nothing is sent; [`check`] tells when
/// something is.
///
/// `TCP_USER_TIMEOUT` would tell of both, but since Linux 5.11 it also ends the connection to a host that answers
/// every probe while its program reads nothing for that long.
///
/// # Errors
/// The socket is closed.
pub fn tune_tunnel(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))
}

/// Whether the other end has acknowledged everything. `impatient` does not wait long for that.
///
/// # Errors
/// The connection is broken, or the other end answers no more.
pub fn check(stream: &TcpStream, impatient: bool) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    let info = information(stream.as_raw_fd())?;
    if info.tcpi_state == STATE_CLOSED {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let most = if impatient { FEW_UNANSWERED } else { MAX_UNANSWERED };
    if info.tcpi_retransmits >= most || info.tcpi_probes >= MAX_UNANSWERED {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut unacknowledged = 0;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel writes one int (tcp(7), SIOCOUTQ).
    unsafe { unacknowledged_bytes(stream.as_raw_fd(), &raw mut unacknowledged) }?;
    Ok(unacknowledged == 0)
}

/// The round trip to the other end, as the kernel has measured it.
///
/// # Errors
/// The socket is closed.
pub fn round_trip(stream: &TcpStream) -> io::Result<Duration> {
    round_trip_of(stream.as_raw_fd())
}

/// The same, of a socket that somebody else keeps open.
///
/// # Errors
/// It is closed, or no TCP connection.
pub fn round_trip_of(socket: RawFd) -> io::Result<Duration> {
    Ok(Duration::from_micros(information(socket)?.tcpi_rtt.into()))
}

/// tcp(7), `TCP_INFO`. Not by nix's `sockopt_impl!`, which panics when the kernel fills in less than the whole
/// structure: each version appends fields, 6.1 answers 232 bytes and 6.12 248. What is missing stays zero.
fn information(socket: RawFd) -> io::Result<libc::tcp_info> {
    // SAFETY: plain numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel looks at the descriptor, and writes no more than `length` bytes.
    let result = unsafe {
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length)
    };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

nix::ioctl_read_bad!(
    /// tcp(7), `SIOCOUTQ`: bytes sent and not acknowledged, and not sent.
    unacknowledged_bytes,
    libc::TIOCOUTQ,
    libc::c_int
);

/// From here on, the connection ends about two seconds after the other side's host is gone.
///
/// # Errors
/// The socket is closed.
pub fn notice_death(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(HOST_KEEPALIVE).with_interval(HOST_KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(HOST_UNANSWERED))
}

/// From here on, closing the socket resets the connection, also when the process is killed: an application never
/// takes a broken stream for one that ended. Sockets accepted from a listener inherit this.
///
/// # Errors
/// The socket is closed.
pub fn reset_on_close<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    socket.into().set_linger(Some(Duration::ZERO))
}

/// Both directions have ended: closing is clean again, and delivers what is still on its way.
///
/// # Errors
/// The socket is closed.
pub fn end_on_close(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(None)
}

/// Whether the other side of an idle connection has closed it or sent something, by a look that consumes nothing.
pub fn has_input(stream: &TcpStream) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    match SockRef::from(stream).recv_with_flags(&mut byte, flags) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// The address from which the agent dials `destination`, by the kernel's own routes. Nothing is sent. `mark` keeps the
/// agent's own hooks from refusing it: rules about the outside of the mesh are not about tunnels.
///
/// # Errors
/// There is no route, or the mark may not be set (CAP_NET_ADMIN).
pub fn source_for(destination: SocketAddr, mark: Option<u32>) -> io::Result<IpAddr> {
    let socket = Socket::new(Domain::for_address(destination), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect(&destination.into())?;
    let local = socket.local_addr()?.as_socket();
    local.map(|local| local.ip()).ok_or_else(|| io::ErrorKind::Unsupported.into())
}
