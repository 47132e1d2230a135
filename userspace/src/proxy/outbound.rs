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
    judge::{Connection, Judged},
    live::{Forbidden, Place},
    origin::Original,
    pool::{Ends, Lease},
    relay::{self, RelayError, relay},
    routes::Route,
    worker::Worker,
};
use crate::{
    agent::canary,
    identity::SpiffeId,
    limited_log::LimitedLog,
    policy::Action,
    socket,
    tunnel::{
        DialError, TunnelError,
        frame::{Frame, Open, RefusalReason},
    },
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
    let destination = original.destination;
    if canary::is_canary(destination) {
        return canary::answer(application).await;
    }
    let Some(route) = route(&worker, destination) else { return };
    let client =
        original.client.unwrap_or_else(|| SocketAddr::new(source(&route, worker.shared.mark), peer.port()));
    let Some((caller, Judged { verdict, found })) = judge(&worker, &route, &original).await else { return };
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
    if verdict.action == Action::Deny {
        return access.failed(format!("refused: {}", Forbidden::Rules(verdict.rule)));
    }
    let ends = Ends { caller, peer: route.peer };
    let place = worker.live.enter(found);
    let open = Open { destination, client };
    let mut carried = carry(&worker, &mut application, &ends, open, &place).await;
    if is_renamed(&carried) {
        // Streams to services that keep their names have no room for this in their tasks.
        carried = Box::pin(carry_renamed(&worker, &mut application, ends, open, &place)).await;
    }
    match carried {
        Ok((totals, result)) => {
            if result.is_ok() {
                let _ = socket::end_on_close(&application);
            }
            drop(application);
            access.relayed(totals, &place.explained(result).await);
        }
        Err(error) => access.failed(error.to_string()),
    }
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

type Relayed = (relay::Totals, Result<(), RelayError>);

/// Whether the service answered by another name than it was called by, before anything was carried.
fn is_renamed(carried: &Result<Relayed, DialError>) -> bool {
    match carried {
        Err(DialError::AnotherService(_)) => true,
        Ok((totals, Err(RelayError::Refused(RefusalReason::AnotherService)))) => {
            *totals == relay::Totals::default()
        }
        _ => false,
    }
}

/// The news that a service has got, or lost, a name reach its own host and this one at different times: tries again
/// until they agree.
async fn carry_renamed(
    worker: &Worker,
    application: &mut TcpStream,
    mut ends: Ends,
    open: Open,
    place: &Place<'_>,
) -> Result<Relayed, DialError> {
    let (begun, mut pause) = (Instant::now(), RENAMED_PAUSE);
    loop {
        sleep(pause).await;
        pause *= 2;
        // What was judged is this service on this host, by whatever name.
        if let Some(route) = worker.shared.routes.load().get(open.destination)
            && (&route.peer.node, &route.peer.workload) == (&ends.peer.node, &ends.peer.workload)
        {
            ends.peer = route.peer.clone();
        }
        let carried = carry(worker, application, &ends, open, place).await;
        if !is_renamed(&carried) || begun.elapsed() > RENAMED_TIMEOUT {
            return carried;
        }
    }
}

/// Carries the stream over a tunnel at rest, and over a new one if that one turns out to have died at rest: until
/// the far agent has answered or a byte was carried, nothing has happened that could happen twice.
async fn carry(
    worker: &Worker,
    application: &mut TcpStream,
    ends: &Ends,
    open: Open,
    place: &Place<'_>,
) -> Result<Relayed, DialError> {
    let port = open.destination.port();
    let lease = worker.pool.lease(ends, port).await?;
    if !lease.recycled {
        return Ok(stream(worker, application, ends, open, place, lease).await.relayed);
    }
    let attempt = stream(worker, application, ends, open, place, lease).await;
    if !attempt.may_retry {
        return Ok(attempt.relayed);
    }
    let lease = worker.pool.dial(ends, port).await?;
    Ok(stream(worker, application, ends, open, place, lease).await.relayed)
}

struct Attempt {
    relayed: Relayed,
    may_retry: bool,
}

/// One stream on one tunnel, which goes back to the pool if it came to rest.
async fn stream(
    worker: &Worker,
    application: &mut TcpStream,
    ends: &Ends,
    open: Open,
    place: &Place<'_>,
    mut lease: Lease,
) -> Attempt {
    if let Err(error) = lease.tunnel.send(&Frame::Open(open)).await {
        return Attempt { relayed: (relay::Totals::default(), Err(error.into())), may_retry: true };
    }
    let (totals, result) = relay(application, &mut lease.tunnel, &worker.watchdog, place).await;
    let lost = matches!(&result, Err(RelayError::Tunnel(TunnelError::Broken(_) | TunnelError::Closed)));
    let may_retry = lost && totals == relay::Totals::default() && !lease.tunnel.is_answered();
    // The other host may wait for the rule that has cut the stream, and keep what follows on the tunnel waiting.
    if !matches!(result, Err(RelayError::Forbidden(_))) {
        worker.pool.put_back(ends, lease);
    }
    Attempt { relayed: (totals, result), may_retry }
}
