//! Who connects to whom, from this host and to it, with the names that people know.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use crate::{
    api::{unix_seconds, v1},
    catalog::Catalog,
    flows::{Client, Seen},
    identity::{NodeName, Subject},
    policy::RuleId,
    proxy::Shared,
};

/// All flows that are remembered, with what open connections have moved so far.
pub async fn live(shared: &Shared, catalog: &Catalog) -> v1::LiveFlowsResponse {
    let (outgoing, incoming) = (shared.flows.seen(), shared.incoming.seen());
    let moved = shared.questions.moved().await;
    let names = Names { catalog, own: &shared.node, nodes: catalog.addresses() };
    let outgoing = outgoing.into_iter().map(|seen| {
        // Strangers whom the kernel half has refused are remembered with those of this host.
        let incoming = matches!(seen.key.client, Client::Elsewhere(_));
        names.told(seen.by_now(&moved), incoming)
    });
    let incoming = incoming.into_iter().map(|seen| names.told(seen.by_now(&moved), true));
    v1::LiveFlowsResponse { flows: outgoing.chain(incoming).collect() }
}

/// What destinations are called.
struct Names<'a> {
    catalog: &'a Catalog,
    own: &'a NodeName,
    nodes: BTreeMap<IpAddr, &'a NodeName>,
}

impl Names<'_> {
    fn told(&self, seen: Seen, incoming: bool) -> v1::LiveFlow {
        let destination = seen.key.destination;
        let node = if incoming { Some(self.own) } else { self.nodes.get(&destination.ip()).copied() };
        let idle = unix_seconds(SystemTime::now()).saturating_sub(seen.last_seen);
        v1::LiveFlow {
            incoming,
            caller: self.caller(&seen.key.client),
            destination: destination.to_string(),
            node: node.map(ToString::to_string).unwrap_or_default(),
            service: node.map(|node| self.service(node, destination)).unwrap_or_default(),
            outcome: seen.key.outcome.into(),
            rule: seen.rule.map(RuleId::number),
            connections: seen.connections,
            open: seen.open,
            failed: seen.failed,
            sent: seen.moved.sent,
            received: seen.moved.received,
            round_trip_us: seen.moved.round_trip.map(microseconds),
            idle_seconds: idle,
        }
    }

    fn caller(&self, client: &Client) -> String {
        match client {
            Client::Known(subject) => subject.to_string(),
            Client::Here => Subject::Host(self.own.clone()).to_string(),
            Client::Elsewhere(address) => address.to_string(),
        }
    }

    fn service(&self, node: &NodeName, destination: SocketAddr) -> String {
        let service = self.catalog.policy.service_at(node, destination.port());
        service.map(|service| service.name.to_string()).unwrap_or_default()
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
