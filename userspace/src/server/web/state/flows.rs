//! Who connects to whom: what hosts count, as they tell it this server or another one, and, from the records of all
//! servers, who reaches services in clear.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::super::super::flows::{ByHost, MAX_FLOWS};
use super::super::super::plaintext::MEMORY;
use crate::api::v1;
use crate::catalog::{Catalog, Endpoint};
use crate::identity::NodeName;

/// All connections of one client to one service that became the same.
#[derive(Debug, Serialize)]
pub struct Flow {
    #[serde(flatten)]
    key: Key,
    /// `None` where connections are only counted for all clients together.
    connections: Option<u64>,
    open: u64,
    failed: u64,
    sent: u64,
    received: u64,
    last_seen: u64,
    /// The rule that decided last.
    rule: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Key {
    /// Host of the client; `None` for one that is not of the mesh.
    host: Option<String>,
    /// "" where that is not known.
    workload: String,
    /// Of a client that is not of the mesh, or is not known by anything else.
    address: String,
    /// Id of a service of the mesh, or an address outside.
    to: String,
    /// Host of the service, as it was dialled; `None` outside.
    to_host: Option<String>,
    /// "encrypted", "plaintext", "denied" or "unavailable".
    kind: &'static str,
}

/// What is at an address.
pub struct Places<'a> {
    catalog: &'a Catalog,
    endpoints: BTreeMap<SocketAddr, Endpoint>,
    addresses: BTreeMap<IpAddr, &'a NodeName>,
}

impl<'a> Places<'a> {
    pub fn new(catalog: &'a Catalog) -> Self {
        Self { catalog, endpoints: catalog.endpoints(), addresses: catalog.addresses() }
    }

    fn node(&self, address: IpAddr) -> Option<&NodeName> {
        self.addresses.get(&address.to_canonical()).copied()
    }

    /// Id and host of the service at an address.
    fn service(&self, address: SocketAddr) -> (String, Option<String>) {
        let endpoint = self.endpoints.get(&address).map(|endpoint| &endpoint.host.node);
        match endpoint.or_else(|| self.node(address.ip())) {
            Some(node) => (self.service_of(node, address.port()), Some(node.to_string())),
            None => (address.to_string(), None),
        }
    }

    fn service_of(&self, node: &NodeName, port: u16) -> String {
        let named = self.catalog.policy.service_at(node, port);
        named.map_or_else(|| format!("{node}:{port}"), |service| service.name.to_string())
    }
}

/// All flows, and how many more there are that are not shown.
pub fn all(
    places: &Places<'_>,
    told: &ByHost,
    plaintext: &BTreeMap<String, v1::PlaintextReport>,
    now: u64,
) -> (Vec<Flow>, u64) {
    let mut flows = BTreeMap::new();
    let known = |node: &String| places.catalog.hosts.keys().find(|known| known.as_str() == node);
    let mut left_out = 0_u64;
    for (node, told) in told.iter().filter(|(node, _)| known(node).is_some()) {
        told.report.flows.iter().for_each(|flow| add(&mut flows, counted(places, node, flow)));
        left_out = left_out.saturating_add(told.report.left_out);
    }
    for (node, report) in plaintext {
        let Some(node) = known(node) else { continue };
        report.ports.iter().for_each(|port| {
            in_clear(places, node, port, now).for_each(|flow| add(&mut flows, Some(flow)));
        });
    }
    let mut flows: Vec<_> = flows.into_iter().map(|(key, flow)| Flow { key, ..flow }).collect();
    flows.sort_by_key(|flow| (flow.open == 0, Reverse(flow.last_seen)));
    left_out = left_out.saturating_add(flows.len().saturating_sub(MAX_FLOWS) as u64);
    flows.truncate(MAX_FLOWS);
    (flows, left_out)
}

/// Adds to what is there already: a service is known by several addresses.
fn add(flows: &mut BTreeMap<Key, Flow>, flow: Option<Flow>) {
    let Some(flow) = flow else { return };
    match flows.entry(flow.key.clone()) {
        Entry::Vacant(place) => _ = place.insert(flow),
        Entry::Occupied(mut place) => {
            let known = place.get_mut();
            known.connections = known.connections.zip(flow.connections).map(|(one, other)| one + other);
            known.open += flow.open;
            known.failed += flow.failed;
            known.sent += flow.sent;
            known.received += flow.received;
            if flow.last_seen > known.last_seen {
                (known.last_seen, known.rule) = (flow.last_seen, flow.rule);
            }
        }
    }
}

/// `None` for what this version does not know.
fn counted(places: &Places<'_>, node: &str, flow: &v1::Flow) -> Option<Flow> {
    let (to, to_host) = places.service(flow.destination.parse().ok()?);
    let host = match flow.source.parse() {
        Ok(address) => places.node(address).map(ToString::to_string),
        Err(_) => Some(node.to_owned()),
    };
    Some(Flow {
        key: Key {
            host,
            workload: flow.workload.clone(),
            address: flow.source.clone(),
            to,
            to_host,
            kind: super::kind(flow.outcome())?,
        },
        connections: Some(flow.connections),
        open: flow.open,
        failed: flow.failed,
        sent: flow.sent,
        received: flow.received,
        last_seen: flow.last_seen,
        rule: Some(flow.rule).filter(|rule| *rule != 0),
    })
}

/// Those who reached a port in clear in the last hour.
fn in_clear<'a>(
    places: &'a Places<'_>,
    node: &'a NodeName,
    port: &'a v1::PlaintextPort,
    now: u64,
) -> impl Iterator<Item = Flow> + 'a {
    let to = u16::try_from(port.port).ok().map(|number| places.service_of(node, number));
    let is_recent = move |client: &&v1::PlaintextClient| client.last_seen + MEMORY.as_secs() > now;
    let alone = port.clients.len() == 1 && port.others_last_seen == 0;
    let clients = port.clients.iter().filter(is_recent);
    to.into_iter().flat_map(move |to| {
        clients.clone().map(move |client| {
            let host = client.address.parse().ok().and_then(|address| places.node(address));
            Flow {
                key: Key {
                    host: host.map(ToString::to_string),
                    workload: String::new(),
                    address: client.address.clone(),
                    to: to.clone(),
                    to_host: Some(node.to_string()),
                    kind: "plaintext",
                },
                connections: alone.then_some(port.connections),
                open: 0,
                failed: 0,
                sent: 0,
                received: 0,
                last_seen: client.last_seen,
                rule: None,
            }
        })
    })
}
