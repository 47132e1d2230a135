//! `murmesh services`. JSON: a list of `{host, address, port, ipv6_only, reachable, endpoints, service, state, reason}`,
//! one for each listener, and one for each instance of a named service where nothing listens, whose `address` is null.
//! `address` is the IP address that a listener is bound to, `endpoints` the `IP:PORT` by which clients on other hosts
//! reach it through the mesh (none for a service that is only observed), and `reachable` whether there is any. `service` is the name that an administrator gave,
//! or null. `state` is `healthy`, or why it gets no new connections: `down`, `failing`, `drained`, `lost`, `absent`, or
//! `ejected` where the agent of this host leaves it alone for a moment; `reason` says more, or is null.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output::{self, Format};
use super::{ReadOptions, members};
use crate::api::v1;
use crate::catalog::{Catalog, Host, Listener, Unavailable};
use crate::identity::{NodeName, ServiceName};
use crate::policy::Mode;

/// Arguments of `murmesh services`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    #[command(flatten)]
    read: ReadOptions,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Service {
    host: String,
    address: Option<String>,
    port: u16,
    ipv6_only: bool,
    reachable: bool,
    endpoints: Vec<String>,
    service: Option<String>,
    state: &'static str,
    reason: Option<String>,
}

/// Prints the listeners that the daemon on this host knows.
///
/// # Errors
/// When no daemon answers.
pub fn run(arguments: ServicesArgs) -> anyhow::Result<ExitCode> {
    let snapshot = members::snapshot(&arguments.read)?;
    let ejections = snapshot.ejections.clone();
    let services = services(&Catalog::try_from(snapshot)?, &ejections);
    match arguments.read.output {
        Format::Json => output::print_json(&services)?,
        Format::Table => {
            let rows: Vec<_> = services.iter().map(row).collect();
            let columns = ["HOST", "LISTENS ON", "SERVICE", "STATE", "THROUGH THE MESH AT", "WHY"];
            output::print(&output::table(columns, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn services(catalog: &Catalog, ejections: &[v1::Ejection]) -> Vec<Service> {
    let endpoints = catalog.endpoints();
    let mut services = Vec::new();
    for host in catalog.hosts.values() {
        for listener in &host.report.listeners {
            let port = listener.address.port();
            let own = endpoints.values().filter(|endpoint| {
                let address = endpoint.address;
                endpoint.host.node == host.node
                    && address.port() == port
                    && listener.accepts(address.ip())
                    && catalog.policy.mode_at(&host.node, port) != Mode::Observe
            });
            let endpoints: Vec<_> = own.map(|endpoint| endpoint.address.to_string()).collect();
            services.push(listening(catalog, host, listener, endpoints, ejections));
        }
    }
    services.extend(silent(catalog));
    services.sort_by(|one, other| (&one.host, one.port).cmp(&(&other.host, other.port)));
    services
}

fn listening(
    catalog: &Catalog,
    host: &Host,
    listener: &Listener,
    endpoints: Vec<String>,
    ejections: &[v1::Ejection],
) -> Service {
    let port = listener.address.port();
    let named = catalog.policy.service_at(&host.node, port);
    let drained = catalog.policy.drained.contains(&host.node).then_some(Unavailable::HostDrained);
    let unavailable = match named {
        Some(service) => catalog.unavailable(service, &host.node),
        None => drained,
    };
    let ejection = named.and_then(|service| ejected(ejections, &service.name, &host.node));
    let (state, reason) = match (&unavailable, ejection) {
        (Some(unavailable), _) => (unavailable.name(), Some(unavailable.to_string())),
        (None, Some(ejection)) => ("ejected", Some(told(ejection))),
        (None, None) => ("healthy", None),
    };
    Service {
        host: host.node.to_string(),
        address: Some(listener.address.ip().to_string()),
        port,
        ipv6_only: listener.ipv6_only,
        reachable: !endpoints.is_empty(),
        endpoints,
        service: named.map(|service| service.name.to_string()),
        state,
        reason,
    }
}

/// Instances where nothing listens.
fn silent(catalog: &Catalog) -> impl Iterator<Item = Service> {
    catalog.policy.services().values().flat_map(|service| {
        let listens = |host: &Host| {
            host.report.listeners.iter().any(|listener| listener.address.port() == service.port)
        };
        let silent = catalog.instances(service).filter(move |(_, host, _)| !host.is_some_and(listens));
        silent.map(|(node, _, unavailable)| {
            let unavailable = unavailable.unwrap_or(Unavailable::NotListening);
            Service {
                host: node.to_string(),
                address: None,
                port: service.port,
                ipv6_only: false,
                reachable: false,
                endpoints: Vec::new(),
                service: Some(service.name.to_string()),
                state: unavailable.name(),
                reason: Some(unavailable.to_string()),
            }
        })
    })
}

fn ejected<'a>(
    ejections: &'a [v1::Ejection],
    service: &ServiceName,
    node: &NodeName,
) -> Option<&'a v1::Ejection> {
    ejections.iter().find(|ejection| ejection.service == service.as_str() && ejection.node == node.as_str())
}

fn told(ejection: &v1::Ejection) -> String {
    format!("last for {} ms, as this host could not reach it: {}", ejection.remaining_ms, ejection.reason)
}

fn row(service: &Service) -> [String; 6] {
    let address = match &service.address {
        Some(address) if address.contains(':') => format!("[{address}]"),
        Some(address) => address.clone(),
        None => "-".to_owned(),
    };
    let endpoints = if service.reachable { service.endpoints.join(" ") } else { "nowhere".to_owned() };
    [
        service.host.clone(),
        format!("{address}:{}", service.port),
        service.service.clone().unwrap_or_else(|| "-".to_owned()),
        service.state.to_owned(),
        endpoints,
        service.reason.clone().unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Report;
    use crate::policy;
    use std::sync::Arc;

    fn catalog(listeners: &[&str]) -> Catalog {
        let listener =
            |address: &&str| Listener { address: address.parse().unwrap(), ipv6_only: false, workload: None };
        let report = Report {
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            tunnel_port: 9191,
            listeners: listeners.iter().map(listener).collect(),
            ..Report::default()
        };
        let node: NodeName = "a".parse().unwrap();
        let host =
            Arc::new(Host { node: node.clone(), report, last_seen: None, connected: true, lost: false });
        Catalog { hosts: [(node, host)].into(), ..Catalog::default() }
    }

    fn name(catalog: &mut Catalog, service: &str, port: u16) {
        let (name, node) = (service.parse().unwrap(), "a".parse().unwrap());
        Arc::make_mut(&mut catalog.policy).put_service(policy::Service::new(name, [node], port));
    }

    #[test]
    fn every_listener_is_listed_with_its_endpoints() {
        let services = services(&catalog(&["[::]:80", "192.0.2.1:81"]), &[]);
        assert_eq!(services[0].endpoints, ["10.0.0.1:80", "[fd00::1]:80"]);
        assert_eq!((services[1].reachable, services[1].port), (false, 81));
        assert!(services.iter().all(|service| service.state == "healthy" && service.service.is_none()));
    }

    #[test]
    fn every_instance_of_a_named_service_is_listed_with_its_state_and_why() {
        let mut catalog = catalog(&["0.0.0.0:80"]);
        name(&mut catalog, "shop", 80);
        name(&mut catalog, "gone", 81);
        let ejection = v1::Ejection {
            service: "shop".to_owned(),
            node: "a".to_owned(),
            reason: "refused".to_owned(),
            remaining_ms: 5,
        };
        let [shop, gone] = &services(&catalog, &[ejection])[..] else { panic!("two instances") };
        assert_eq!((shop.state, shop.service.as_deref()), ("ejected", Some("shop")));
        assert!(shop.reason.as_deref().is_some_and(|reason| reason.ends_with("refused")));
        assert_eq!((gone.state, gone.address.as_ref(), gone.reachable), ("down", None, false));
    }
}
