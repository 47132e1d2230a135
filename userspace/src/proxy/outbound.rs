//! A connection of an application on this host: original destination → route → tunnel → relay.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use tokio::net::TcpStream;
use tracing::warn;

use super::{
    access::{AccessRecord, Direction, Parties},
    carry::{Carried, CarryError, Stream, carry},
    judge::Connection,
    live::Forbidden,
    origin::Original,
    routes::Route,
    worker::Worker,
};
use crate::{
    agent::canary,
    limited_log::LimitedLog,
    policy::{Action, Verdict},
    socket,
};

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
    let client = original.client.unwrap_or_else(|| SocketAddr::new(source(&route), peer.port()));
    let Some((connection, verdict)) = judge(&worker, &route, &original).await else { return };
    let parties = Parties { local: Some(connection.caller.clone()), peer: route.peer.id.clone() };
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
        return access.failed(format!("refused: {}", Forbidden(verdict.rule)));
    }
    let caller = connection.caller;
    let stream = Stream { caller, client, destination, route: &route };
    let Carried { instance, totals, result } = carry(&worker, &mut application, &stream).await;
    access.reached(instance);
    match result {
        Ok(()) => {
            let _ = socket::end_on_close(&application);
            drop(application);
            access.relayed(totals, &Ok(()));
        }
        Err(CarryError::Relay(error)) => {
            drop(application);
            access.relayed(totals, &Err(error));
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
async fn judge(worker: &Worker, route: &Route, original: &Original) -> Option<(Connection, Verdict)> {
    let judged = worker.callers.identity(original.caller).await.and_then(|caller| {
        let node = route.peer.node.clone();
        let connection = Connection { caller, node, destination: original.destination };
        let verdict = worker.judge.judge(&connection)?;
        Some((connection, verdict))
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
fn source(route: &Route) -> IpAddr {
    if route.source.is_unspecified() {
        return socket::source_for(route.peer.address).unwrap_or(route.source);
    }
    route.source
}
