//! Accepts TLS connections, with bounds on how many there are and how long a handshake may take.
//!
//! Threats: anybody may connect. A peer without a certificate can only join or renew, and is cut off after
//! a few seconds, or a few kilobytes; a peer with one is cut off when it expires, so that nothing outlives it, and one
//! host, or server, has no more than a few connections. Who is refused does not keep the next one waiting.

use std::fmt::Display;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{info, warn};

use super::credentials::Credentials;
use super::metered::Metered;
use super::{DEFAULT_PORT, ServerError};
use crate::admission::{Admission, Refusals, Refused, Seat, Unproved};
use crate::clock::sleep_until;
use crate::identity::token::ServerAddress;
use crate::identity::{PeerIdentity, peer_identity};
use crate::limited_log::LimitedLog;
use crate::socket;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection without a client certificate may last: joining is one call.
const ANONYMOUS_LIFETIME: Duration = Duration::from_secs(15);
/// What it may send: a call of some hundred bytes, and what HTTP/2 needs.
const ANONYMOUS_BYTES: usize = 32 * 1024;
/// Pause after a failed accept, for instance when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 1024;

/// Anybody who reaches the port can be refused.
static NOT_A_CALLER: LimitedLog = LimitedLog::new();

/// Binds every address, or port 9190 of all addresses when there is none.
///
/// # Errors
/// When an address cannot be bound.
pub fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, ServerError> {
    if !addresses.is_empty() {
        return addresses.iter().map(|address| bind_one(*address)).collect();
    }
    let any = |ip: IpAddr| SocketAddr::new(ip, DEFAULT_PORT);
    // Where IPv6 is switched off, IPv4 alone has to do.
    let listener = bind_one(any(Ipv6Addr::UNSPECIFIED.into()))
        .or_else(|_| bind_one(any(Ipv4Addr::UNSPECIFIED.into())))?;
    Ok(vec![listener])
}

fn bind_one(address: SocketAddr) -> Result<TcpListener, ServerError> {
    listen(address).map_err(|error| ServerError::Listen { address, reason: error.to_string() })
}

/// Listens on an address; on that for any of IPv6 also for IPv4.
///
/// # Errors
/// What the operating system says.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The addresses to give to agents: those asked for, else this machine's [first one](first_address).
///
/// # Errors
/// When the machine has no address that other machines could use.
pub fn advertised(
    asked: Vec<ServerAddress>,
    listeners: &[TcpListener],
) -> Result<Vec<ServerAddress>, ServerError> {
    if !asked.is_empty() {
        return Ok(asked);
    }
    let bound = listeners.first().and_then(|listener| listener.local_addr().ok());
    let bound = bound.ok_or(ServerError::NothingToAdvertise)?;
    let ip = if bound.ip().is_unspecified() { first_address() } else { Some(bound.ip()) };
    let address = SocketAddr::new(ip.ok_or(ServerError::NothingToAdvertise)?, bound.port());
    Ok(vec![address.to_string().parse()?])
}

/// The first address of an interface that is up, IPv4 before IPv6, those of the interface with the default route before
/// others, such as a bridge of containers; no loopback and no link-local.
fn first_address() -> Option<IpAddr> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let outward = outward_interface(&routes);
    let usable = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    let addresses = getifaddrs().ok()?.filter(|interface| usable(interface.flags)).filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))?;
        Some((ip, Some(&*interface.interface_name) == outward))
    });
    let reachable = |(ip, _): &(IpAddr, bool)| match ip {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let first = addresses.filter(reachable).min_by_key(|(ip, is_outward)| (ip.is_ipv6(), !is_outward));
    first.map(|(ip, _)| ip)
}

/// The interface of the default route, of several that of the smallest metric. Source: `fib_route_seq_show` of
/// net/ipv4/fib_trie.c, whose columns are name, destination, gateway, flags, references, use, metric and mask.
fn outward_interface(routes: &str) -> Option<&str> {
    let defaults = routes.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let is_default = columns.get(1) == Some(&"00000000") && columns.get(7) == Some(&"00000000");
        let metric: u32 = columns.get(6)?.parse().ok()?;
        is_default.then_some((metric, columns[0]))
    });
    defaults.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

/// What all listeners of a server share.
pub struct Entrance {
    /// The server's certificate, and whom it trusts.
    pub credentials: Arc<Credentials>,
    /// How many connections there may be.
    pub admission: Arc<Admission>,
    /// Connections that were refused.
    pub refusals: Arc<Refusals>,
    /// Takes those whose handshake succeeded.
    pub connections: mpsc::Sender<io::Result<TlsConnection>>,
}

/// Accepts connections for as long as it is run, and hands over those whose handshake succeeded.
pub async fn accept(listener: TcpListener, entrance: Arc<Entrance>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match entrance.admission.admit(peer.ip().into()) {
            Ok(place) => {
                let entrance = entrance.clone();
                tokio::spawn(async move { entrance.shake_hands(stream, peer, place).await });
            }
            Err(reason) => {
                // Nothing of it is left, here or in the kernel.
                let _ = socket::reset_on_close(&stream);
                entrance.refused(peer, reason, &reason);
            }
        }
    }
}

impl Entrance {
    async fn shake_hands(&self, stream: TcpStream, peer: SocketAddr, place: Unproved) {
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.handshake(stream, peer, place)).await;
        match handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            // Fails only when the server is stopping.
            Ok(connection) => _ = self.connections.send(Ok(connection)).await,
            Err(error) => self.refused(peer, Refused::of(&error), &error),
        }
    }

    fn refused(&self, peer: SocketAddr, reason: Refused, error: &dyn Display) {
        self.refusals.add(reason);
        if let Some(withheld) = NOT_A_CALLER.permit() {
            info!(%peer, withheld, reason = reason.name(), "refused on the server's port: {error}");
        }
    }

    /// A caller without a certificate keeps the place of one that has not proved who it is, for as long as it is here.
    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        place: Unproved,
    ) -> io::Result<TlsConnection> {
        stream.set_nodelay(true)?;
        socket::notice_death(&stream)?;
        let mut stream = TlsAcceptor::from(self.credentials.tls()).accept(Metered::new(stream)).await?;
        let session = stream.get_ref().1;
        if session.alpn_protocol().is_none() {
            return Err(io::Error::other(Refused::OtherProtocol));
        }
        let identity = match session.peer_certificates() {
            Some(chain) => Some(peer_identity(chain).map_err(io::Error::other)?),
            None => None,
        };
        let (place, budget, deadline): (_, _, BoxFuture<'static, ()>) = match &identity {
            Some(peer) => {
                let node = peer.id.node().ok_or_else(|| io::Error::other(Refused::Certificate))?;
                let seat = self.admission.seat(node).map_err(io::Error::other)?;
                (Place::Member(seat), usize::MAX, Box::pin(sleep_until(peer.not_after)))
            }
            None => {
                (Place::Unproved(place), ANONYMOUS_BYTES, Box::pin(tokio::time::sleep(ANONYMOUS_LIFETIME)))
            }
        };
        stream.get_mut().0.limit(budget);
        let (peer, refusals) = (Peer { address, identity }, self.refusals.clone());
        Ok(TlsConnection { stream, peer, deadline: Some(deadline), refusals, _place: place })
    }
}

/// Who is at the other end of a connection. Calls find it among their request's extensions.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Who it has proved to be; `None` without a certificate.
    pub identity: Option<PeerIdentity>,
}

/// An accepted connection, which fails at its deadline, and when it has sent more than it may.
pub struct TlsConnection {
    stream: TlsStream<Metered<TcpStream>>,
    peer: Peer,
    /// `None` once it is past.
    deadline: Option<BoxFuture<'static, ()>>,
    refusals: Arc<Refusals>,
    _place: Place,
}

/// What counts a connection among the others.
enum Place {
    Unproved(#[expect(dead_code, reason = "held until the connection ends")] Unproved),
    Member(#[expect(dead_code, reason = "held until the connection ends")] Seat),
}

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl TlsConnection {
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let is_past = |deadline: &mut BoxFuture<'static, ()>| deadline.as_mut().poll(context).is_ready();
        if self.deadline.as_mut().is_some_and(is_past) {
            self.deadline = None;
        }
        self.deadline.is_none()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        match &read {
            Ok(()) if buffer.filled().len() > before => self.stream.get_mut().0.carried(),
            Ok(()) => {}
            Err(error) => {
                if let Some(reason) = Refused::after_acceptance(error) {
                    self.refusals.add(reason);
                }
            }
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_default_routes_the_one_of_the_smallest_metric_leads_outward() {
        let heading = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let line = |name: &str, destination: &str, metric: u32, mask: &str| {
            format!("{name}\t{destination}\t0100000A\t0003\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let bridge = line("docker0", "000011AC", 0, "0000FFFF");
        assert_eq!(outward_interface(&(heading.to_owned() + &bridge)), None);
        let wireless = line("wlan0", "00000000", 600, "00000000");
        let wire = line("eth1", "00000000", 100, "00000000");
        // Half of all addresses, as some tunnels have it.
        let half = line("tun0", "00000000", 0, "00000080");
        let routes = [heading, &bridge, &wireless, &wire, &half].concat();
        assert_eq!(outward_interface(&routes), Some("eth1"));
    }
}
