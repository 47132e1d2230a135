//! Services and their instances: those with a name, and every other listener by its host and port.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::catalog::{Catalog, Unavailable};
use crate::identity::NodeName;

/// One service.
#[derive(Debug, Serialize)]
pub struct Service {
    /// Its name, or `HOST:PORT`.
    id: String,
    named: bool,
    port: u16,
    mode: String,
    /// The mode goes back by itself then, unless it is confirmed.
    unconfirmed_until: Option<u64>,
    balance: Option<String>,
    check: Option<String>,
    instances: Vec<Instance>,
}

/// What a host has of a service.
#[derive(Debug, Serialize)]
struct Instance {
    host: String,
    /// "healthy", or why it gets no new connections.
    state: &'static str,
    reason: Option<String>,
    /// Who listens.
    workload: Option<String>,
}

/// All of them, those with a name first.
pub fn all(catalog: &Catalog) -> Vec<Service> {
    let mut all: Vec<_> = named(catalog).collect();
    all.extend(unnamed(catalog));
    all
}

fn named(catalog: &Catalog) -> impl Iterator<Item = Service> {
    catalog.policy.services().values().map(|service| {
        let instances = catalog.instances(service).map(|(node, _, unavailable)| {
            let workload = listens(catalog, node, service.port).flatten();
            instance(node, unavailable.as_ref(), workload)
        });
        Service {
            id: service.name.to_string(),
            named: true,
            port: service.port,
            mode: super::mode(service.mode.unwrap_or(catalog.policy.defaults.mode)),
            unconfirmed_until: service
                .unconfirmed
                .map(|unconfirmed| crate::api::unix_seconds(unconfirmed.until)),
            balance: Some(service.balance.to_string()),
            check: service.check.as_ref().map(|check| check.probe.to_string()),
            instances: instances.collect(),
        }
    })
}

fn unnamed(catalog: &Catalog) -> impl Iterator<Item = Service> {
    catalog.hosts.values().flat_map(move |host| {
        let node = &host.node;
        let drained = catalog.policy.drained.contains(node).then_some(Unavailable::HostDrained);
        let unavailable = drained.or(host.lost.then_some(Unavailable::HostLost));
        let mut ports = BTreeMap::<u16, Option<String>>::new();
        for listener in &host.report.listeners {
            let port = listener.address.port();
            if catalog.policy.service_at(node, port).is_none() {
                let workload = listener.workload.as_ref().map(ToString::to_string);
                ports.entry(port).or_insert(workload);
            }
        }
        ports.into_iter().map(move |(port, workload)| Service {
            id: format!("{node}:{port}"),
            named: false,
            port,
            mode: super::mode(catalog.policy.mode_at(node, port)),
            unconfirmed_until: None,
            balance: None,
            check: None,
            instances: vec![instance(node, unavailable.as_ref(), workload)],
        })
    })
}

fn instance(node: &NodeName, unavailable: Option<&Unavailable>, workload: Option<String>) -> Instance {
    Instance {
        host: node.to_string(),
        state: unavailable.map_or("healthy", Unavailable::name),
        reason: unavailable.map(ToString::to_string),
        workload,
    }
}

/// Whether anybody does, and who.
fn listens(catalog: &Catalog, node: &NodeName, port: u16) -> Option<Option<String>> {
    let listeners = &catalog.hosts.get(node)?.report.listeners;
    let found = listeners.iter().find(|listener| listener.address.port() == port)?;
    Some(found.workload.as_ref().map(ToString::to_string))
}
