//! Dialling another agent: TCP, then mutual TLS with exactly the agent that is expected.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, TlsStream};

use super::{Tunnel, frame::Side};
use crate::{
    identity::{IdentityError, peer_identity},
    socket,
};

/// How long the TCP connection to another agent may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// This host's own identity, or the verified one of the peer, is unusable.
    #[error("no TLS session with the agent at {0}: {1}")]
    Identity(SocketAddr, IdentityError),
}

/// Opens a tunnel to the agent at `address`; `config` decides who it must be. `mark` goes on the socket.
///
/// # Errors
/// The agent cannot be reached, or it is not the expected one, or it does not accept us; each within
/// five seconds.
pub async fn dial(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    mark: Option<u32>,
) -> Result<Tunnel, DialError> {
    let stream = connect(address, mark).await.map_err(|error| DialError::Connect(address, error))?;
    // The verifier compares SPIFFE ids and no server name is sent, so the name is only a form to fill in.
    let name = ServerName::IpAddress(address.ip().into());
    let stream = timeout(HANDSHAKE_TIMEOUT, TlsConnector::from(config).connect(name, stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| DialError::Handshake(address, error))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = peer_identity(chain).map_err(|error| DialError::Identity(address, error))?;
    Ok(Tunnel::new(TlsStream::Client(stream), Side::Opener, peer))
}

async fn connect(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = socket::outgoing(address, mark)?;
    let stream = timeout(CONNECT_TIMEOUT, socket.connect(address)).await??;
    socket::tune_tunnel(&stream)?;
    Ok(stream)
}
