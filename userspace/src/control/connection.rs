//! One connection to one server: TCP, TLS and HTTP/2, with bounded time for each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::api::MAX_RESPONSE_BYTES;
use crate::api::v1::mesh_client::MeshClient;
use crate::identity::token::ServerAddress;
use crate::socket;

/// For TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// A server that answers neither calls nor pings is given up after interval and timeout together.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing answers there.
    #[error(
        "server {server} cannot be reached: {reason}; check that `murmesh server` runs there and the port is open"
    )]
    Unreachable {
        /// The server.
        server: ServerAddress,
        /// What the operating system said.
        reason: String,
    },
    /// The socket cannot have the agent's mark.
    #[error("this process may not mark sockets: run the agent as root (CAP_BPF and CAP_NET_ADMIN)")]
    NotPermitted,
    /// What answers is not a server of the mesh, or does not trust us.
    #[error(
        "server {server} is not trusted: {reason}; if the mesh was made anew, make a new token and join again"
    )]
    Untrusted {
        /// The server.
        server: ServerAddress,
        /// What TLS said.
        reason: String,
    },
}

/// Connects to `server`. The connection is not re-established by itself: when it breaks, calls fail. `mark` goes on
/// the socket: whatever the catalog says, the way to the server never leads through the mesh that it describes.
///
/// # Errors
/// [`DialError`], within four seconds.
pub async fn dial(
    server: &ServerAddress,
    tls: Arc<ClientConfig>,
    mark: Option<u32>,
) -> Result<MeshClient<Channel>, DialError> {
    let unreachable =
        |reason: &dyn ToString| DialError::Unreachable { server: server.clone(), reason: reason.to_string() };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, establish(server, tls, mark))
        .await
        .map_err(|_| unreachable(&"no answer in 4 seconds"))??;
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_static("http://server.murmesh")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| unreachable(&error))?;
    Ok(MeshClient::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES))
}

async fn establish(
    server: &ServerAddress,
    tls: Arc<ClientConfig>,
    mark: Option<u32>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let unreachable =
        |error: io::Error| DialError::Unreachable { server: server.clone(), reason: error.to_string() };
    let tcp = connect(server, mark).await?;
    // Not sent and not checked: the verifier asks for a SPIFFE id instead.
    let name = ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into());
    TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            DialError::Untrusted { server: server.clone(), reason: error.to_string() }
        }
        _ => unreachable(error),
    })
}

/// To the first of the name's addresses that answers.
async fn connect(server: &ServerAddress, mark: Option<u32>) -> Result<TcpStream, DialError> {
    let unreachable =
        |error: io::Error| DialError::Unreachable { server: server.clone(), reason: error.to_string() };
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host(server.as_str()).await.map_err(unreachable)? {
        let socket = socket::outgoing(address, mark).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => DialError::NotPermitted,
            _ => unreachable(error),
        })?;
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(unreachable(failure))
}
