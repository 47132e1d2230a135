//! Peers that do not keep to the rules: what a stranger on the network, or a host of the mesh that was taken
//! over, can do to an agent.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use murmesh::control::{self, ControlOptions, Membership};
use murmesh::identity::authority::VerifiedRequest;
use murmesh::identity::{Authority, HostKey, Identity, SpiffeId, Subject, tls};
use murmesh::seal::{KeySource, Sealer};
use murmesh::tunnel::frame::{Frame, Open, RefusalReason};
use murmesh::tunnel::{Received, Tunnel, dial};
use murmesh_lab::{Host, TUNNEL_PORT};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConnection;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// Longer than any time-out of the agent that is tried here.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The identity that `host` got when it joined, with its key: what root on that host can use.
pub fn stolen(host: &Host) -> Result<Identity> {
    let sealer = Sealer::new(&seal(host).load(None)?)?;
    let membership = Membership::load(&host.data_directory(), &sealer)?.context("the host has joined")?;
    Arc::into_inner(membership.identity()?).context("nobody else holds it")
}

/// Root on a host has the key that seals the others, too.
fn seal(host: &Host) -> KeySource {
    KeySource::choose(None, None, &host.data_directory())
}

/// The same name and trust bundle, with a certificate of an authority that the attacker made.
pub fn forged(genuine: &Identity) -> Result<Identity> {
    let authority = Authority::create(genuine.id.trust_domain.clone())?;
    let key = HostKey::generate()?;
    let request = VerifiedRequest::parse(&key.certificate_request()?)?;
    let leaf = authority.sign(&request, &genuine.id, Duration::from_secs(3600))?;
    let forged = Identity::new(&key, vec![leaf], vec![authority.root().clone()])?;
    Ok(Identity { bundle: genuine.bundle.clone(), ..forged })
}

/// Asks the server for a certificate, with all that root on `host` has; returns who it is for, or the refusal.
pub fn ask_to_be(host: &Host, subject: &Subject) -> Result<Result<SpiffeId, String>> {
    on(host, async {
        let (data_dir, node) = (host.data_directory(), host.name().parse()?);
        let options =
            ControlOptions { data_dir, seal: seal(host), join: None, node, mark: None, remembered_from: 0 };
        let control = control::start(options, CancellationToken::new()).await?;
        let issued = control.issuer().issue(subject).await;
        Ok(issued.map(|identity| identity.id).map_err(|error| error.to_string()))
    })
}

/// The agent of another host of the same mesh.
pub struct Target {
    /// Where it accepts tunnels.
    pub address: SocketAddr,
    /// Who it is.
    pub id: SpiffeId,
    /// The port of the service that is wanted; `None` for the agent itself.
    pub service: Option<u16>,
}

impl Target {
    /// The agent of `host`, in the mesh of `identity`.
    pub fn agent_of(host: &Host, identity: &Identity) -> Result<Self> {
        let id = SpiffeId::host(identity.id.trust_domain.clone(), host.name().parse()?);
        Ok(Self { address: (host.ipv4(), TUNNEL_PORT).into(), id, service: None })
    }

    /// The service `subject` at `port` of `host`, in the mesh of `identity`.
    pub fn service_of(host: &Host, identity: &Identity, subject: Subject, port: u16) -> Self {
        let id = SpiffeId { trust_domain: identity.id.trust_domain.clone(), subject };
        Self { address: (host.ipv4(), TUNNEL_PORT).into(), id, service: Some(port) }
    }
}

/// Opens a tunnel as `identity` and asks for a stream; `None` when it is accepted.
pub fn refusal(
    from: &Host,
    identity: &Identity,
    target: &Target,
    open: Open,
) -> Result<Option<RefusalReason>> {
    on(from, async {
        let config = tls::tunnel_client(identity, &target.id)?;
        let mut tunnel: Box<Tunnel> = dial(target.address, config, target.service, None).await?;
        tunnel.send(&Frame::Open(open)).await?;
        match timeout(PATIENCE, tunnel.receive()).await?? {
            Received::Frame(Frame::Refused(reason)) => Ok(Some(reason)),
            Received::Frame(Frame::Accepted) => Ok(None),
            other => bail!("an answer to OPEN was expected, not {other:?}"),
        }
    })
}

/// Sends `bytes` over a good TLS session and returns how long the agent keeps the connection after it.
pub fn say_after_handshake(
    from: &Host,
    identity: &Identity,
    target: &Target,
    bytes: &[u8],
) -> Result<Duration> {
    on(from, async {
        let config = tls::tunnel_client(identity, &target.id)?;
        let stream = TcpStream::connect(target.address).await?;
        let mut stream = TlsConnector::from(config).connect(target.address.ip().into(), stream).await?;
        stream.write_all(bytes).await?;
        stream.flush().await?;
        until_closed(&mut stream).await
    })
}

/// Tries a TLS session as `identity` and returns the agent's objection.
pub fn handshake_error(from: &Host, identity: &Identity, target: &Target) -> Result<String> {
    on(from, async {
        let config = tls::tunnel_client(identity, &target.id)?;
        let stream = TcpStream::connect(target.address).await?;
        let mut stream = TlsConnector::from(config).connect(target.address.ip().into(), stream).await?;
        // In TLS 1.3 the client has finished before the server looks at its certificate.
        match timeout(PATIENCE, stream.read_u8()).await? {
            Ok(byte) => bail!("the agent took the certificate and sent {byte}"),
            Err(error) => Ok(error.to_string()),
        }
    })
}

/// Sends `bytes` on `count` bare connections at the same time, and returns the longest time that the agent
/// keeps one.
pub fn say_at_once(from: &Host, target: SocketAddr, bytes: &[u8], count: usize) -> Result<Duration> {
    on(from, async {
        let mut attempts = JoinSet::new();
        for _ in 0..count {
            let bytes = bytes.to_vec();
            attempts.spawn(async move {
                let Some(mut stream) = connect(target).await? else { return Ok(Duration::ZERO) };
                // It may be closed while we write.
                let _ = stream.write_all(&bytes).await;
                until_closed(&mut stream).await
            });
        }
        longest(attempts).await
    })
}

/// Opens `count` connections on which `bytes` are said and then nothing, calls `connected` when all are there, and
/// returns the longest time that the agent keeps one.
pub fn hold(
    from: &Host,
    target: SocketAddr,
    bytes: &[u8],
    count: usize,
    connected: impl FnOnce() + Send,
) -> Result<Duration> {
    on(from, async {
        let mut attempts = JoinSet::new();
        for _ in 0..count {
            let Some(mut stream) = connect(target).await? else { continue };
            // It may be refused by now.
            let _ = stream.write_all(bytes).await;
            attempts.spawn(async move { until_closed(&mut stream).await });
        }
        connected();
        longest(attempts).await
    })
}

/// Says `bytes` one by one, with a `pause` after each, and returns how long the agent listens.
pub fn drip(from: &Host, target: SocketAddr, bytes: &[u8], pause: Duration) -> Result<Duration> {
    on(from, async {
        let started = Instant::now();
        let Some(mut stream) = connect(target).await? else { return Ok(Duration::ZERO) };
        let (mut reading, mut writing) = stream.split();
        let drip = async {
            let mut ticks = tokio::time::interval(pause);
            for byte in bytes.chunks(1) {
                ticks.tick().await;
                if writing.write_all(byte).await.is_err() {
                    return;
                }
            }
        };
        let (closed, ()) = tokio::join!(until_closed(&mut reading), drip);
        closed?;
        Ok(started.elapsed())
    })
}

/// The first thing that an agent with `identity` says to `target`.
pub fn hello(identity: &Identity, target: &Target) -> Result<Vec<u8>> {
    let config = tls::tunnel_client(identity, &target.id)?;
    let mut client = ClientConnection::new(config, target.address.ip().into())?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}

/// Opens tunnels, of which some may be refused, calls `opened` when it has tried to open `count`, and keeps them until
/// `release` is dropped.
pub fn hold_tunnels(
    from: &Host,
    identity: &Identity,
    target: &Target,
    count: usize,
    opened: impl FnOnce() + Send,
    release: Receiver<()>,
) -> Result<()> {
    on(from, async move {
        let config = tls::tunnel_client(identity, &target.id)?;
        let mut tunnels = Vec::new();
        for _ in 0..count {
            tunnels.extend(dial(target.address, config.clone(), target.service, None).await);
        }
        opened();
        // The sender sends nothing.
        let _ = release.recv();
        Ok(())
    })
}

/// Takes the place of an agent on `host` with somebody else's `identity` for one connection; returns what came of
/// its handshake.
pub fn impersonate(
    host: &Host,
    identity: &Identity,
    listening: impl FnOnce() + Send,
) -> Result<Result<(), String>> {
    on(host, async {
        let listener = TcpListener::bind((host.ipv4(), TUNNEL_PORT)).await?;
        listening();
        let (stream, _) = timeout(PATIENCE, listener.accept()).await??;
        let acceptor = TlsAcceptor::from(tls::tunnel_server(identity)?);
        Ok(timeout(PATIENCE, acceptor.accept(stream)).await?.map(drop).map_err(|error| error.to_string()))
    })
}

/// `None` if it was reset before we knew that it was made.
pub(super) async fn connect(target: SocketAddr) -> Result<Option<TcpStream>> {
    match TcpStream::connect(target).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if is_end(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn longest(attempts: JoinSet<Result<Duration>>) -> Result<Duration> {
    let times: Result<Vec<Duration>> = attempts.join_all().await.into_iter().collect();
    times?.into_iter().max().context("at least one attempt")
}

async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> Result<Duration> {
    let started = Instant::now();
    let mut said = Vec::new();
    match timeout(PATIENCE, stream.read_to_end(&mut said)).await {
        Ok(Ok(_)) => Ok(started.elapsed()),
        Ok(Err(error)) if is_end(&error) => Ok(started.elapsed()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => bail!("the agent still holds the connection after {PATIENCE:?}"),
    }
}

/// A reset, and the end of a TLS session without a farewell.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
    )
}

/// Runs `work` in the network of `host`.
pub(super) fn on<T: Send>(host: &Host, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    host.in_namespace(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}
