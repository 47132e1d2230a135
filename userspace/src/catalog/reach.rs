//! Whether a source would reach a destination, before anybody tries.

use std::net::SocketAddr;

use super::Catalog;
use crate::identity::{NodeName, ServiceName};
use crate::policy::{
    Component, Destination, DestinationPattern, IdentityPattern, Names, Outside, Party, PatternError,
    Protocol, Verdict,
};

/// Why that cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReachError {
    /// Not the name of anybody.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// There is no service of this name.
    #[error("no service is called {0}; `murmesh service list` shows those that are")]
    UnknownService(ServiceName),
    /// The service is on another port.
    #[error("there is no {0}; `murmesh service list` shows what there is")]
    UnknownDestination(String),
    /// It names more than one.
    #[error("{0} stands for many: name one {1}")]
    Many(String, &'static str),
}

/// One source and one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Who would connect.
    pub source: String,
    /// To what.
    pub destination: String,
    /// What the rules say.
    pub verdict: Verdict,
}

impl Catalog {
    /// What the rules say of `source` and `destination`, as people write them: one answer for each pair that they name (a
    /// service may be on several hosts).
    ///
    /// # Errors
    /// They name nothing that could connect, or be connected to, or too many.
    pub fn reach(&self, names: &Names, source: &str, destination: &str) -> Result<Vec<Reach>, ReachError> {
        let mut reached = Vec::new();
        let destinations = destinations(self, names, destination)?;
        for source in sources(self, &IdentityPattern::parse_source(source, names)?)? {
            for (name, destination) in &destinations {
                let verdict = self.policy.verdict(&source, destination);
                reached.push(Reach { source: party_name(&source), destination: name.clone(), verdict });
            }
        }
        Ok(reached)
    }
}

/// Those whom the pattern names one by one.
fn sources(catalog: &Catalog, pattern: &IdentityPattern) -> Result<Vec<Party>, ReachError> {
    use Component::{Any, Exactly};
    match pattern {
        IdentityPattern::Workload(Exactly(node), Exactly(workload)) => {
            Ok(vec![catalog.policy.source(node, Some(workload.clone()), [])])
        }
        IdentityPattern::Workload(Exactly(node), Any) => Ok(vec![catalog.policy.source(node, None, [])]),
        IdentityPattern::Service(Exactly(name)) => match catalog.policy.services().get(name) {
            Some(service) => {
                let hosts = service.hosts.iter();
                let party = |node| catalog.policy.source(node, service.workload.clone(), [service.port]);
                Ok(hosts.map(party).collect())
            }
            None => Err(ReachError::UnknownService(name.clone())),
        },
        _ => Err(ReachError::Many(pattern.to_string(), "source, such as host/NODE/WORKLOAD or a service")),
    }
}

/// Whatever serves there; a named service goes by its name.
fn destination(catalog: &Catalog, node: &NodeName, port: u16) -> Destination {
    let service = catalog.policy.service_at(node, port);
    catalog.policy.destination(node, service.and_then(|service| service.workload.clone()), port)
}

/// Those that the text names one by one, each with what it is called.
fn destinations(
    catalog: &Catalog,
    names: &Names,
    text: &str,
) -> Result<Vec<(String, Destination)>, ReachError> {
    let at = |node: &NodeName, port| (format!("{node}:{port}"), destination(catalog, node, port));
    let pattern = DestinationPattern::parse(text, names)?;
    let (identity, port) = match &pattern {
        DestinationPattern::Outside(outside) => return Ok(vec![address(catalog, outside)?]),
        DestinationPattern::Mesh { identity, port } => (identity, *port),
    };
    match (identity, port) {
        (IdentityPattern::Workload(Component::Exactly(node), workload), Some(port)) => {
            let workload = match workload {
                Component::Exactly(workload) => Some(workload.clone()),
                Component::Any => None,
            };
            Ok(vec![(pattern.to_string(), catalog.policy.destination(node, workload, port))])
        }
        (IdentityPattern::Service(Component::Exactly(name)), port) => {
            let service = catalog.policy.services().get(name);
            match service.filter(|service| port.is_none_or(|port| port == service.port)) {
                Some(service) => Ok(service.hosts.iter().map(|node| at(node, service.port)).collect()),
                None => Err(ReachError::UnknownDestination(pattern.to_string())),
            }
        }
        _ => Err(ReachError::Many(pattern.to_string(), "destination, such as HOST:PORT or a service")),
    }
}

/// An address of the mesh, if something listens there, else one outside of it.
fn address(catalog: &Catalog, outside: &Outside) -> Result<(String, Destination), ReachError> {
    let ip = outside.network.address();
    let alone = outside.network.length() == if ip.is_ipv4() { 32 } else { 128 };
    let Some(port) = outside.port.filter(|_| alone) else {
        return Err(ReachError::Many(outside.to_string(), "destination, such as ADDRESS:PORT"));
    };
    let (address, protocol) = (SocketAddr::new(ip, port), outside.protocol.unwrap_or(Protocol::Tcp));
    let endpoint = catalog.endpoints().remove(&address).filter(|_| protocol == Protocol::Tcp);
    let listens = endpoint.map(|endpoint| endpoint.host.node.clone());
    let node = listens.or_else(|| catalog.named_at(address).cloned().filter(|_| protocol == Protocol::Tcp));
    Ok(match node {
        Some(node) => {
            let node = &node;
            (format!("{node}:{port}"), destination(catalog, node, port))
        }
        None => (format!("{address}/{protocol}"), Destination::outside(address, protocol)),
    })
}

fn party_name(party: &Party) -> String {
    match party.services.first() {
        Some(service) => format!("service/{service} on {}", party.node),
        None => party.subject().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::api::v1;
    use crate::catalog::{Host, Listener, Report};
    use crate::policy::Policy;

    fn world() -> (Catalog, Names) {
        let report = Report {
            addresses: vec!["10.99.0.2".parse().unwrap()],
            tunnel_port: 9191,
            listeners: vec![Listener {
                address: "0.0.0.0:8181".parse().unwrap(),
                ipv6_only: false,
                workload: None,
            }],
            ..Report::default()
        };
        let node: NodeName = "fcs00".parse().unwrap();
        let host =
            Arc::new(Host { node: node.clone(), report, last_seen: None, connected: true, lost: false });
        let rule = |id, action: v1::Action, source: &str, destination: &str| v1::Rule {
            id,
            action: action.into(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            dry_run: false,
        };
        let policy = Policy::try_from(v1::Policy {
            rules: vec![
                rule(1, v1::Action::Deny, "host/fcc00/*", "service/fortune"),
                rule(2, v1::Action::Deny, "*", "10.0.0.0/8"),
            ],
            services: vec![v1::Service {
                name: "fortune".to_owned(),
                hosts: vec!["fcs00".to_owned(), "fcs01".to_owned()],
                port: 8181,
                ..v1::Service::default()
            }],
            ..v1::Policy::default()
        });
        let names = Names {
            trust_domain: "mesh.test".parse().unwrap(),
            hosts: ["fcc00", "fcs00"].map(|name| name.parse().unwrap()).into(),
            services: ["fortune".parse().unwrap()].into(),
        };
        (
            Catalog { hosts: [(node, host)].into(), policy: Arc::new(policy.unwrap()), ..Catalog::default() },
            names,
        )
    }

    #[test]
    fn every_way_to_name_a_destination_gives_its_verdict() {
        let (catalog, names) = world();
        for (source, destination, verdicts) in [
            ("fcc00", "fortune", &["fcs00:8181 deny 1", "fcs01:8181 deny 1"][..]),
            ("fcc00", "fcs00:8181", &["host/fcs00/*:8181 deny 1"]),
            ("fcc00", "10.99.0.2:8181", &["fcs00:8181 deny 1"]),
            ("host/fcc00/nginx.service", "fcs00:80", &["host/fcs00/*:80 allow 0"]),
            ("fcs00", "fcs00:8181", &["host/fcs00/*:8181 allow 0"]),
            ("fcc00", "10.99.0.2:80", &["10.99.0.2:80/tcp deny 2"]),
            ("fcc00", "10.99.0.2:8181/udp", &["10.99.0.2:8181/udp deny 2"]),
            ("fortune", "192.0.2.1:53", &["192.0.2.1:53/tcp allow 0", "192.0.2.1:53/tcp allow 0"]),
        ] {
            let reached = catalog.reach(&names, source, destination).unwrap();
            let found = reached.iter().map(|reached| {
                let Verdict { action, rule, .. } = reached.verdict;
                format!("{} {action} {}", reached.destination, rule.map_or(0, |rule| rule.number()))
            });
            assert_eq!(found.collect::<Vec<_>>(), verdicts, "{source} to {destination}");
        }
    }

    #[test]
    fn what_stands_for_many_is_refused() {
        let (catalog, names) = world();
        for (source, destination) in [
            ("*", "fortune"),
            ("fcc00", "*"),
            ("fcc00", "fcs00"),
            ("fcc00", "10.0.0.0/8:80"),
            ("fcc00", "10.0.0.1"),
        ] {
            let error = catalog.reach(&names, source, destination).unwrap_err().to_string();
            assert!(error.contains("stands for many"), "{source} to {destination}: {error}");
        }
    }
}
