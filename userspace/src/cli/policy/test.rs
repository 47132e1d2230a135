//! `murmesh policy test`. JSON: a list of `{source, destination, action, rule, dry_run}`, one for each pair that the
//! arguments name (a service may be on several hosts). `rule` is the number of the rule that decides, or null for the
//! default; `dry_run` that of the dry-run rule that would decide otherwise, or null.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::api::v1;
use crate::catalog::Catalog;
use crate::cli::output::{self, Format};
use crate::cli::status::local_error;
use crate::cli::{ReadOptions, daemon};
use crate::identity::NodeName;
use crate::local::{ANY_SOCKET, connect};
use crate::policy::{
    Action, Component, Destination, DestinationPattern, IdentityPattern, Names, Outside, Party, Protocol,
};

/// Arguments of `murmesh policy test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    #[command(flatten)]
    read: ReadOptions,
    /// Who would connect: host/NODE/WORKLOAD, a service, or a host, which stands for a workload that no rule names.
    source: String,
    /// To what: a service, HOST:PORT, or ADDRESS:PORT, with /udp after it if that is meant.
    destination: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Tested {
    source: String,
    destination: String,
    action: String,
    rule: Option<u32>,
    dry_run: Option<u32>,
}

/// Prints what the rules that the daemon on this host knows say.
///
/// # Errors
/// When no daemon answers, or the arguments name nothing that could connect.
pub fn run(arguments: &TestArgs) -> anyhow::Result<ExitCode> {
    let (catalog, names) = fetch(&arguments.read)?;
    let tested = test(&catalog, &names, &arguments.source, &arguments.destination)?;
    match arguments.read.output {
        Format::Json => output::print_json(&tested)?,
        Format::Table => {
            let rows: Vec<_> = tested.iter().map(row).collect();
            output::print(&output::table(["FROM", "TO", "VERDICT", "BY", "DRY RUN"], &rows))?;
        }
    }
    let deny = Action::Deny.to_string();
    let denied = tested.iter().any(|tested| tested.action == deny);
    Ok(if denied { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn fetch(read: &ReadOptions) -> anyhow::Result<(Catalog, Names)> {
    daemon::block_on(async {
        let mut daemon = connect(&read.run_directory.run_dir, ANY_SOCKET, "murmesh daemon").await?;
        let snapshot = daemon.members(v1::MembersRequest {}).await.map_err(local_error)?.into_inner();
        let status = daemon.status(v1::StatusRequest {}).await.map_err(local_error)?.into_inner();
        let catalog = Catalog::try_from(snapshot)?;
        let names = Names {
            trust_domain: status.trust_domain.parse()?,
            hosts: catalog.hosts.keys().cloned().collect(),
            services: catalog.policy.services().keys().cloned().collect(),
        };
        Ok((catalog, names))
    })
}

fn test(catalog: &Catalog, names: &Names, source: &str, destination: &str) -> anyhow::Result<Vec<Tested>> {
    let mut tested = Vec::new();
    let destinations = destinations(catalog, names, destination)?;
    for source in sources(catalog, &IdentityPattern::parse_source(source, names)?)? {
        for (name, destination) in &destinations {
            let verdict = catalog.policy.verdict(&source, destination);
            tested.push(Tested {
                source: party_name(&source),
                destination: name.clone(),
                action: verdict.action.to_string(),
                rule: verdict.rule.map(|rule| rule.number()),
                dry_run: verdict.dry_run.map(|rule| rule.number()),
            });
        }
    }
    Ok(tested)
}

/// Those whom the pattern names one by one.
fn sources(catalog: &Catalog, pattern: &IdentityPattern) -> anyhow::Result<Vec<Party>> {
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
            None => bail!("no service is called {name}; `murmesh service list` shows those that are"),
        },
        _ => bail!("{pattern} stands for many: name one source, such as host/NODE/WORKLOAD or a service"),
    }
}

/// Whatever serves there; a named service goes by its name.
fn destination(catalog: &Catalog, node: &NodeName, port: u16) -> Destination {
    let service = catalog.policy.service_at(node, port);
    catalog.policy.destination(node, service.and_then(|service| service.workload.clone()), port)
}

/// Those that the text names one by one, each with what it is called.
fn destinations(catalog: &Catalog, names: &Names, text: &str) -> anyhow::Result<Vec<(String, Destination)>> {
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
                None => bail!("there is no {pattern}; `murmesh service list` shows what there is"),
            }
        }
        _ => bail!("{pattern} stands for many: name one destination, such as HOST:PORT or a service"),
    }
}

/// An address of the mesh, if something listens there, else one outside of it.
fn address(catalog: &Catalog, outside: &Outside) -> anyhow::Result<(String, Destination)> {
    let ip = outside.network.address();
    let alone = outside.network.length() == if ip.is_ipv4() { 32 } else { 128 };
    let Some(port) = outside.port.filter(|_| alone) else {
        bail!("{outside} stands for many: name one destination, such as {ip}:443");
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

fn row(tested: &Tested) -> [String; 5] {
    let rule = |rule: Option<u32>, none: &str| rule.map_or(none.to_owned(), |rule| format!("rule {rule}"));
    [
        tested.source.clone(),
        tested.destination.clone(),
        tested.action.clone(),
        rule(tested.rule, "default"),
        rule(tested.dry_run, "-"),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
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
            let tested = test(&catalog, &names, source, destination).unwrap();
            let found = tested.iter().map(|tested| {
                format!("{} {} {}", tested.destination, tested.action, tested.rule.unwrap_or(0))
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
            let error = test(&catalog, &names, source, destination).unwrap_err().to_string();
            assert!(error.contains("stands for many"), "{source} to {destination}: {error}");
        }
    }
}
