//! A connection of an application on this host: original destination → route → tunnel → relay.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};
use tracing::warn;

use super::{
    access::{AccessRecord, Direction, Parties},
    carry::{Carried, CarryError, Stream, carry},
    ending::Ending,
    judge::{Connection, Judged},
    live::Forbidden,
    origin::Original,
    relay::{RelayError, Totals},
    routes::Route,
    worker::Worker,
};
use crate::{
    agent::canary,
    identity::SpiffeId,
    limited_log::LimitedLog,
    policy::Action,
    socket,
    tunnel::{DialError, frame::RefusalReason},
};

/// How long a service may go by different names on its own host and on this one.
const RENAMED_TIMEOUT: Duration = Duration::from_secs(3);

/// How long it takes at first until that is looked at again; later twice as long, each time.
const RENAMED_PAUSE: Duration = Duration::from_millis(5);

/// Anybody on this host can connect to what the hooks redirect.
static NO_ROUTE: LimitedLog = LimitedLog::new();

/// Processes end, and their cgroups with them.
static NOBODY: LimitedLog = LimitedLog::new();

/// Serves one connection. Whatever returns early drops `application`, which resets it: sockets of the outbound
/// listener do so until a clean end.
pub async fn serve(worker: Rc<Worker>, mut application: TcpStream, peer: SocketAddr) {
    let Some(original) = worker.origin.of(&application, peer, &worker.shared) else { return };
    if canary::is_canary(original.destination) {
        return canary::answer(application).await;
    }
    let Some(mut stream) = begin(&worker, original, peer.port()).await else { return };
    let mut carried = carry(&worker, &mut application, &stream).await;
    if is_renamed(&carried) {
        // Streams to services that keep their names have no room for this in their tasks.
        carried = Box::pin(carry_renamed(&worker, &mut application, &mut stream)).await;
    }
    let mut access = stream.access;
    access.reached(carried.instance);
    let Err(error) = carried.result else {
        let _ = socket::end_on_close(&application);
        drop(application);
        return access.relayed(carried.totals, &Ok(()));
    };
    drop(application);
    match *error {
        CarryError::Relay(error) => access.relayed(carried.totals, &Err(error)),
        error => access.failed((&error).into(), error.to_string()),
    }
}

/// The stream, if the rules allow it. `port` is the client's.
async fn begin(worker: &Worker, original: Original, port: u16) -> Option<Stream> {
    let destination = original.destination;
    let route = route(worker, destination)?;
    let client = original.client.unwrap_or_else(|| SocketAddr::new(source(&route, worker.shared.mark), port));
    let (caller, Judged { verdict, .. }) = judge(worker, &route, &original).await?;
    let parties = Parties { local: Some(caller.clone()), peer: route.peer.id.clone() };
    let shared = worker.shared.clone();
    let mut access = AccessRecord::open(
        shared,
        Direction::Outbound,
        client,
        destination,
        parties,
        original.caller,
        verdict,
    );
    let flow = access.count(worker.flows.of(&worker.shared.flows, &caller, destination, verdict.action));
    if verdict.action == Action::Deny {
        access.failed(Ending::Denied, format!("refused: {}", Forbidden::Rules(verdict.rule)));
        return None;
    }
    Some(Stream { caller, access, route, flow })
}

/// `None`, and logged, where there is none: the endpoint left the catalog between the redirect and now, or the hooks
/// redirect what an earlier agent knew and this one does not know yet.
fn route(worker: &Worker, destination: SocketAddr) -> Option<Route> {
    let routes = worker.shared.routes.load();
    let route = routes.get(destination).cloned();
    if route.is_none()
        && let Some(withheld) = NO_ROUTE.permit()
    {
        let why = if routes.revision() == 0 {
            "the catalog is not here yet: no server has answered since this agent started"
        } else {
            "not in the catalog any more"
        };
        warn!(%destination, withheld, "reset: {why}");
    }
    route
}

/// Who connects, and what the rules say of it: the kernel half has let it through if it knew the caller. `None`, and
/// logged, if nobody knows.
async fn judge(worker: &Worker, route: &Route, original: &Original) -> Option<(Arc<SpiffeId>, Judged)> {
    let judged = worker.callers.identity(original.caller).await.and_then(|caller| {
        let node = route.peer.node.clone();
        let connection = Connection { caller, node, destination: original.destination };
        let judged = worker.judge.judge(&connection)?;
        Some((connection.caller, judged))
    });
    if judged.is_none()
        && let Some(withheld) = NOBODY.permit()
    {
        let destination = original.destination;
        warn!(%destination, caller = ?original.caller, withheld, "reset: the caller cannot be told: its cgroup is gone, or its user cannot be looked up");
    }
    judged
}

/// The address from which this host dials a destination. Where the snapshot has none a route may have come since;
/// where there still is none the stream fails at the dial.
fn source(route: &Route, mark: Option<u32>) -> IpAddr {
    if route.source.is_unspecified() {
        return socket::source_for(route.peer.address, mark).unwrap_or(route.source);
    }
    route.source
}

/// Whether the service answered by another name than it was called by, before anything was carried.
fn is_renamed(carried: &Carried) -> bool {
    let Err(error) = &carried.result else { return false };
    match **error {
        CarryError::Dial(DialError::AnotherService(_)) => true,
        CarryError::Relay(RelayError::Refused(RefusalReason::AnotherService)) => {
            carried.totals == Totals::default()
        }
        _ => false,
    }
}

/// The news that a service has got, or lost, a name reach its own host and this one at different times: tries again
/// until they agree.
async fn carry_renamed(worker: &Worker, application: &mut TcpStream, stream: &mut Stream) -> Carried {
    let (begun, mut pause) = (Instant::now(), RENAMED_PAUSE);
    loop {
        sleep(pause).await;
        pause *= 2;
        // Each instance is judged anew before it is tried.
        if let Some(route) = worker.shared.routes.load().get(stream.access.destination()) {
            stream.route = route.clone();
        }
        let carried = carry(worker, application, stream).await;
        if !is_renamed(&carried) || begun.elapsed() > RENAMED_TIMEOUT {
            return carried;
        }
    }
}
