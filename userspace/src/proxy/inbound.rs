//! A tunnel from another host: handshake → for each stream: authorise → dial the service → relay.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};
use tracing::{debug, info};

use super::{
    CurrentIdentity,
    access::{AccessRecord, Direction, Parties},
    ending::Ending,
    judge::{Connection, Judged},
    live::{Forbidden, Place},
    relay::relay,
    rules::ALLOWED,
    worker::Worker,
};
use crate::{
    admission::{Refusal, Refused, Seat, Source, Unproved},
    discovery::{ListeningSocket, listening_sockets},
    identity::{NodeName, SpiffeId, tls},
    limited_log::LimitedLog,
    policy::Action,
    socket,
    tunnel::{
        Received, Tunnel, TunnelError, answer,
        frame::{Frame, Open, RefusalReason},
    },
};

/// How long a tunnel may be at rest on the accepting side: longer than its opener keeps it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(180);

/// How long a new tunnel may wait for its stream when it cannot wait any longer.
const FIRST_STREAM_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the opener of a tunnel may take to close it once it was asked for no more streams: longer than it takes to
/// look after its tunnels at rest.
const RETIRED_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a local service may take to complete a handshake.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the caller may take to end a stream that was refused.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Anybody who reaches the tunnel port can fail at the handshake.
static NOT_A_TUNNEL: LimitedLog = LimitedLog::new();

/// Any host of the mesh can break the protocol, again and again.
static BROKEN: LimitedLog = LimitedLog::new();

/// Serves one connection to the tunnel port.
pub async fn serve(worker: Rc<Worker>, connection: TcpStream, from: SocketAddr) {
    // What a handshake needs is given back after it, and tunnels are many.
    let Some(mut accepted) = Box::pin(accept(&worker, connection, from)).await else { return };
    let end = streams(&worker, &mut accepted).await;
    if let Err(error @ (TunnelError::Protocol(_) | TunnelError::Tls(_))) = &end {
        worker.shared.refusals.add(Refused::BrokeProtocol);
        if let Some(withheld) = BROKEN.permit() {
            info!(from = %accepted.from, peer = %accepted.tunnel.peer().id, withheld, "tunnel closed: {error}");
        }
    }
}

/// A tunnel, who is at this end of it, and where it comes from.
struct Accepted {
    tunnel: Box<Tunnel>,
    presented: Arc<SpiffeId>,
    from: SocketAddr,
    _seat: Seat,
}

/// The place of a connection during its handshake: one of the host whose address it comes from, or one of a stranger.
enum Room {
    Host(Seat),
    Stranger(#[expect(dead_code, reason = "held during the handshake")] Unproved),
}

impl Room {
    fn take(worker: &Worker, from: IpAddr) -> Result<Self, Refused> {
        let (admission, services) = (&worker.shared.admission, worker.shared.services.load());
        match services.hosts.get(&from.to_canonical()) {
            Some(node) => admission.seat(node).map(Self::Host),
            None => admission.admit(from.into()).map(Self::Stranger),
        }
    }

    /// That of the host who it turned out to be.
    fn proved(self, worker: &Worker, node: Option<&NodeName>) -> Result<Seat, Refused> {
        match (self, node) {
            (Self::Host(seat), Some(node)) if seat.node() == node => Ok(seat),
            (_, Some(node)) => worker.shared.admission.seat(node),
            (_, None) => Err(Refused::Certificate),
        }
    }
}

/// The tunnel; `None`, counted and logged, if the handshake fails.
async fn accept(worker: &Worker, connection: TcpStream, from: SocketAddr) -> Option<Accepted> {
    match handshake(worker, connection, from).await {
        Ok(accepted) => {
            debug!(%from, peer = %accepted.tunnel.peer().id, "tunnel accepted");
            Some(accepted)
        }
        Err(error) => {
            let reason = Refused::of(&error);
            worker.shared.refusals.add(reason);
            if let Some(withheld) = NOT_A_TUNNEL.permit() {
                info!(%from, withheld, reason = reason.name(), "refused on the tunnel port: {error}");
            }
            None
        }
    }
}

/// TLS with any caller of the mesh, as the service that it asks for. Bounded in time, and in number: those beyond the
/// limit are reset at once. Once a whole ClientHello is here, those beyond another limit wait in order for a permit,
/// within the same time. Whoever says nothing takes no permit from those who do.
async fn handshake(worker: &Worker, connection: TcpStream, from: SocketAddr) -> io::Result<Accepted> {
    let room = match Room::take(worker, from.ip()) {
        Ok(room) => room,
        Err(reason) => {
            // Nothing of it is left, here or in the kernel.
            let _ = socket::reset_on_close(&connection);
            return Err(io::Error::other(reason));
        }
    };
    let (source, is_host) = (Source::from(from.ip()), matches!(room, Room::Host(_)));
    let own = connection.local_addr()?.ip().to_canonical();
    let mut presented = None;
    let choose = async |name: Option<&str>| {
        let identity = identity(worker, own, name).await?;
        presented = Some(identity.id.clone());
        Ok((worker.handshakes.permit(source, is_host).await, identity.acceptor.clone()))
    };
    let tunnel = answer(connection, choose).await?;
    if worker.shared.refuses(tunnel.peer()) {
        let detail = format!("the host of {} was removed from the mesh", tunnel.peer().id);
        return Err(io::Error::other(Refusal { reason: Refused::Removed, detail }));
    }
    let seat = room.proved(worker, tunnel.peer().host()).map_err(io::Error::other)?;
    let presented = presented.unwrap_or_else(|| worker.shared.identities.host().id.clone());
    Ok(Accepted { tunnel, presented, from, _seat: seat })
}

/// Whom a caller meets that dialled the address `own` and asks for `name`: the service on a port, or else this host.
async fn identity(worker: &Worker, own: IpAddr, name: Option<&str>) -> io::Result<Arc<CurrentIdentity>> {
    let identities = &worker.shared.identities;
    let services = worker.shared.services.load_full();
    let destination = name.and_then(tls::service_port).map(|port| SocketAddr::new(own, port));
    let subject = destination.and_then(|destination| services.subject(&worker.shared.node, destination));
    let host = identities.host();
    let Some(subject) = subject else { return Ok(host) };
    let id = Arc::new(SpiffeId { trust_domain: host.id.trust_domain.clone(), subject });
    let missing = || io::Error::other(format!("no certificate for {id}: is a server reachable?"));
    identities.get(&id).await.ok_or_else(missing)
}

/// One stream after the other, until the opener closes the tunnel or leaves it at rest for too long. Once another process
/// accepts tunnels, the opener is asked to open no more streams on this one, and has some time to do so.
async fn streams(worker: &Worker, accepted: &mut Accepted) -> Result<(), TunnelError> {
    let mut is_used = false;
    loop {
        let Ok(received) = next(worker, &mut accepted.tunnel, is_used).await else { return Ok(()) };
        is_used = true;
        let Received::Frame(Frame::Open(open)) = received? else { return Ok(()) };
        let Accepted { tunnel, from, .. } = &*accepted;
        if !tunnel.is_valid_at(SystemTime::now()) {
            info!(%from, peer = %tunnel.peer().id, "tunnel closed: the certificate of its opener has expired");
            return Ok(());
        }
        if worker.shared.refuses(tunnel.peer()) {
            info!(%from, peer = %tunnel.peer().id, "tunnel closed: the host of its opener was removed from the mesh");
            return Ok(());
        }
        let (mut access, place) = begin(worker, accepted, open);
        stream(worker, &mut accepted.tunnel, &mut access, place).await?;
        if !accepted.tunnel.is_idle() {
            return Ok(());
        }
    }
}

/// What comes on a tunnel at rest. One that carried nothing yet is not retired at once: its opener has only just dialled
/// it for a stream.
async fn next(
    worker: &Worker,
    tunnel: &mut Tunnel,
    is_used: bool,
) -> Result<Result<Received, TunnelError>, Elapsed> {
    tokio::select! {
        biased;
        received = timeout(IDLE_TIMEOUT, tunnel.receive()) => return received,
        () = worker.handed_over.cancelled() => {}
    }
    if !is_used && let Ok(received) = timeout(FIRST_STREAM_TIMEOUT, tunnel.receive()).await {
        return Ok(received);
    }
    if let Err(error) = tunnel.retire().await {
        return Ok(Err(error));
    }
    timeout(RETIRED_TIMEOUT, tunnel.receive()).await
}

async fn stream(
    worker: &Worker,
    tunnel: &mut Tunnel,
    access: &mut AccessRecord,
    place: Result<Place<'_>, NotCarried>,
) -> Result<(), TunnelError> {
    // Streams that are relayed have no room for this in their tasks.
    let (mut service, place) = match Box::pin(reach(worker, access, place)).await {
        Ok(reached) => reached,
        Err((reason, detail)) => {
            access.failed(Ending::Refused(reason), format!("refused, {}: {detail}", reason.name()));
            return Box::pin(refuse(tunnel, reason)).await;
        }
    };
    tunnel.accept()?;
    // Where there may be another instance, the caller goes there instead.
    let is_named = worker.shared.services.load().named.contains_key(&access.destination().port());
    let is_gone = || is_gone(access.destination());
    let is_gone: Option<&dyn Fn() -> bool> = if is_named { Some(&is_gone) } else { None };
    let (totals, result) = relay(&mut service, tunnel, &worker.watchdog, &place, None, is_gone).await;
    if result.is_ok() {
        let _ = socket::end_on_close(&service);
    }
    drop(service);
    access.relayed(totals, &place.explained(result).await);
    Ok(())
}

/// Why a stream is not carried, for its caller and for the log.
type NotCarried = (RefusalReason, Box<str>);

/// The record of a stream that the opener asks for, and its place if it is allowed.
fn begin<'a>(
    worker: &'a Worker,
    accepted: &Accepted,
    Open { destination, client }: Open,
) -> (AccessRecord, Result<Place<'a>, NotCarried>) {
    let id = accepted.tunnel.peer().id.clone();
    let connection = Connection { caller: id.clone(), node: worker.shared.node.clone(), destination };
    let authorised = authorise(worker, &connection, accepted, client.ip());
    let verdict = authorised.as_ref().map_or(ALLOWED, |judged| judged.verdict);
    let parties = Parties { local: Some(accepted.presented.clone()), peer: id.clone() };
    let shared = worker.shared.clone();
    let mut access =
        AccessRecord::open(shared, Direction::Inbound, client, destination, parties, None, verdict);
    let place = match authorised {
        Ok(Judged { verdict, found }) => {
            let flow = worker.incoming.of(&worker.shared.incoming, &id, destination, verdict.action);
            let flow = access.count(flow);
            match verdict.action {
                Action::Allow => Ok(worker.live.enter(found, flow)),
                Action::Deny => {
                    Err((RefusalReason::Denied, Forbidden::Rules(verdict.rule).to_string().into()))
                }
            }
        }
        Err(reason) => Err((reason, "not allowed".into())),
    };
    (access, place)
}

/// The caller is known from its certificate; it may reach services of this host, for clients of its own, unless this
/// agent is stopping. Returns what the rules say of it.
fn authorise(
    worker: &Worker,
    connection: &Connection,
    Accepted { presented, from, .. }: &Accepted,
    client: IpAddr,
) -> Result<Judged, RefusalReason> {
    if worker.stop.is_cancelled() {
        return Err(RefusalReason::Draining);
    }
    // Without a catalog there are no rules yet, which would allow everything.
    if worker.shared.routes.load().revision() == 0 {
        return Err(RefusalReason::Internal);
    }
    let services = worker.shared.services.load();
    if !services.serves(connection.destination) {
        return Err(RefusalReason::NotAService);
    }
    if !services.is_served_by(connection.destination, &presented.subject) {
        return Err(RefusalReason::AnotherService);
    }
    let speaks = |node| services.may_speak_for(node, from.ip(), client);
    if !connection.caller.node().is_some_and(speaks) {
        return Err(RefusalReason::SourceNotAllowed);
    }
    worker.judge.judge(connection).ok_or(RefusalReason::SourceNotAllowed)
}

/// Dials the service of a stream that is allowed, at the address that the client dialled. It is an address of this host, so
/// this goes over the loopback interface.
async fn reach<'a>(
    worker: &Worker,
    access: &AccessRecord,
    place: Result<Place<'a>, NotCarried>,
) -> Result<(TcpStream, Place<'a>), NotCarried> {
    let (place, destination) = (place?, access.destination());
    let make = || {
        let socket = socket::outgoing(destination, worker.shared.mark)?;
        socket::reset_on_close(&socket)?;
        worker.origin.announce(&socket, access.client()).map_err(io::Error::other)?;
        Ok(socket)
    };
    let service = timeout(SERVICE_TIMEOUT, worker.sources.connect(destination, make))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| (refusal(&error), error.to_string().into()))?;
    Ok((service, place))
}

fn refusal(error: &io::Error) -> RefusalReason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => RefusalReason::ConnectionRefused,
        io::ErrorKind::TimedOut => RefusalReason::TimedOut,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => RefusalReason::Unreachable,
        _ => RefusalReason::Internal,
    }
}

/// Whether nobody listens at `destination` any more. A process that dies closes its listener, which usually is the older
/// one, before its connections.
fn is_gone(destination: SocketAddr) -> bool {
    let is_there = |socket: &ListeningSocket| {
        socket.address.port() == destination.port()
            && (socket.address.ip().is_unspecified() || socket.address.ip() == destination.ip())
    };
    listening_sockets().is_ok_and(|sockets| !sockets.iter().any(is_there))
}

/// Answers REFUSED and waits for the opener's direction to end, so that the tunnel can carry the next stream.
async fn refuse(tunnel: &mut Tunnel, reason: RefusalReason) -> Result<(), TunnelError> {
    tunnel.send(&Frame::Refused(reason)).await?;
    // A tunnel that does not come to rest in time is not idle, and is closed.
    timeout(REFUSAL_TIMEOUT, tunnel.drain()).await.unwrap_or(Ok(()))
}
