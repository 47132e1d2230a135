//! Sockets as the agent makes them.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Connections waiting for `accept`, per listener.
const BACKLOG: i32 = 4096;

/// After how long without an acknowledgement a tunnel's connection is given up, so that a host that is gone is
/// an error in bounded time.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Makes a tunnel's connection notice within ten seconds that the other host is gone.
///
/// # Errors
/// The socket is closed.
pub fn tune_tunnel(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(TUNNEL_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(TUNNEL_TIMEOUT).with_interval(TUNNEL_TIMEOUT / 4))
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
    let flags = nix::libc::MSG_PEEK | nix::libc::MSG_DONTWAIT;
    match SockRef::from(stream).recv_with_flags(&mut byte, flags) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// The address from which this host would dial `destination`, by the kernel's own routes. Nothing is sent.
///
/// # Errors
/// There is no route.
pub fn source_for(destination: SocketAddr) -> io::Result<std::net::IpAddr> {
    let any: SocketAddr =
        if destination.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(destination)?;
    Ok(socket.local_addr()?.ip())
}
