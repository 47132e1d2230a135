//! How tunnels begin: TCP, then mutual TLS with exactly the agent that is expected, or with any agent of the mesh.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{CertificateError, ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};

use super::{Tunnel, frame::Side, tls, tls::Agreed};
use crate::{
    identity::{IdentityError, SpiffeId, peer_identity, tls::service_name},
    socket,
};

/// How long the TCP connection to another agent may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a TLS handshake may take, on either side.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No TCP connection to the other agent.
    #[error("no connection to the agent at {0}: {1}")]
    Connect(SocketAddr, io::Error),
    /// The TLS handshake failed: one of the two does not accept the other's certificate, or it is no agent.
    #[error("no TLS session with the agent at {0}: {1}")]
    Handshake(SocketAddr, io::Error),
    /// The certificate is a good one of the mesh, and not that of the service that was wanted.
    #[error("the agent at {0} answered as another service than the one that the catalog has there")]
    AnotherService(SocketAddr),
    /// The workload that wants one has no certificate.
    #[error("no certificate for {0}, or it has ended: is a server reachable?")]
    NoCertificate(Arc<SpiffeId>),
    /// What answers has a certificate from before its host was removed from the mesh.
    #[error("the host of {0} was removed from the mesh")]
    Removed(Arc<SpiffeId>),
    /// This host's own identity, or the verified one of the peer, is unusable.
    #[error("no TLS session with the agent at {0}: {1}")]
    Identity(SocketAddr, IdentityError),
}

/// Opens a tunnel to the agent at `address`, for the service on one of its ports or for the agent itself; `config`
/// decides who it must be. `mark` goes on the socket.
///
/// # Errors
/// The agent cannot be reached, or it is not the expected one, or it does not accept us; each within five seconds.
pub async fn dial(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    service: Option<u16>,
    mark: Option<u32>,
) -> Result<Box<Tunnel>, DialError> {
    dial_timed(address, config, service, mark).await.map(|(tunnel, _)| tunnel)
}

/// How a tunnel was opened.
#[derive(Debug, Clone, Copy)]
pub struct Timed {
    /// How long the TCP connection took.
    pub connect: Duration,
    /// How long TLS took after it.
    pub handshake: Duration,
    /// What the two ends agreed on.
    pub agreed: Agreed,
}

/// As [`dial`], and tells how that went.
///
/// # Errors
/// As those of [`dial`].
pub async fn dial_timed(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    service: Option<u16>,
    mark: Option<u32>,
) -> Result<(Box<Tunnel>, Timed), DialError> {
    let begun = Instant::now();
    let mut stream = connect(address, mark).await.map_err(|error| DialError::Connect(address, error))?;
    let connected = Instant::now();
    // An address is not sent, and the verifier compares SPIFFE ids: it is only a form to fill in.
    let name = service.map_or(ServerName::IpAddress(address.ip().into()), service_name);
    let established = within(HANDSHAKE_TIMEOUT, tls::connect(&mut stream, config, name)).await;
    let established = established.map_err(|error| match is_about_name(&error) {
        true => DialError::AnotherService(address),
        false => DialError::Handshake(address, error),
    })?;
    let peer = peer_identity(&established.chain).map_err(|error| DialError::Identity(address, error))?;
    let timed =
        Timed { connect: connected - begun, handshake: connected.elapsed(), agreed: established.agreed };
    Ok((Box::new(Tunnel::new(stream, established, Side::Opener, peer)), timed))
}

/// Whether everything about the other end's certificate is right but whose it is.
fn is_about_name(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    cause == Some(&rustls::Error::InvalidCertificate(CertificateError::NotValidForName))
}

/// Answers the agent that has connected by `stream`. `choose` is told which server name it asks for, once it has said
/// something that needs an answer, and decides who it may be and whom it meets. It gives a permit that is held during
/// the handshake, and is waited for within the same time.
///
/// # Errors
/// It is no agent of the mesh, or does not accept us, or takes more than five seconds.
pub async fn answer<Permit>(
    mut stream: TcpStream,
    choose: impl AsyncFnOnce(Option<&str>) -> io::Result<(Permit, Arc<ServerConfig>)>,
) -> io::Result<Box<Tunnel>> {
    socket::tune_tunnel(&stream)?;
    let established = within(HANDSHAKE_TIMEOUT, tls::accept(&mut stream, choose)).await;
    if established.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
        // Who does not answer would have the kernel keep what is left of the connection.
        socket::reset_on_close(&stream)?;
    }
    let established = established?;
    let peer = peer_identity(&established.chain).map_err(io::Error::other)?;
    Ok(Box::new(Tunnel::new(stream, established, Side::Acceptor, peer)))
}

async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let unconnected = socket::outgoing(address, mark)?;
    let connected = within(CONNECT_TIMEOUT, unconnected.connect(address)).await;
    let stream = connected.map_err(|error| socket::explain_ports(error, address))?;
    socket::tune_tunnel(&stream)?;
    Ok(stream)
}

async fn within<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
