//! `murmesh services`. JSON: a list of `{host, address, port, ipv6_only, reachable, endpoints}`, one for each
//! listener; `address` is the IP address it is bound to, `endpoints` the `IP:PORT` by which clients on other
//! hosts reach it through the mesh (none for a service that is only observed), and `reachable` whether there is any.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output::{self, Format};
use super::{ReadOptions, members};
use crate::catalog::Catalog;
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
    address: String,
    port: u16,
    ipv6_only: bool,
    reachable: bool,
    endpoints: Vec<String>,
}

/// Prints the listeners that the daemon on this host knows.
///
/// # Errors
/// When no daemon answers.
pub fn run(arguments: ServicesArgs) -> anyhow::Result<ExitCode> {
    let services = services(&members::fetch(&arguments.read)?);
    match arguments.read.output {
        Format::Json => output::print_json(&services)?,
        Format::Table => {
            let rows: Vec<_> = services.iter().map(row).collect();
            output::print(&output::table(["HOST", "LISTENS ON", "REACHABLE", "THROUGH THE MESH AT"], &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn services(catalog: &Catalog) -> Vec<Service> {
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
            services.push(Service {
                host: host.node.to_string(),
                address: listener.address.ip().to_string(),
                port,
                ipv6_only: listener.ipv6_only,
                reachable: !endpoints.is_empty(),
                endpoints,
            });
        }
    }
    services
}

fn row(service: &Service) -> [String; 4] {
    let address = if service.address.contains(':') {
        format!("[{}]", service.address)
    } else {
        service.address.clone()
    };
    [
        service.host.clone(),
        format!("{address}:{}", service.port),
        if service.reachable { "yes" } else { "no" }.to_owned(),
        service.endpoints.join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Host, Listener, Report};
    use std::sync::Arc;

    #[test]
    fn every_listener_is_listed_with_its_endpoints() {
        let listener =
            |address: &str| Listener { address: address.parse().unwrap(), ipv6_only: false, workload: None };
        let report = Report {
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            tunnel_port: 9191,
            listeners: vec![listener("[::]:80"), listener("192.0.2.1:81")],
            version: String::new(),
        };
        let node: crate::identity::NodeName = "a".parse().unwrap();
        let host = Arc::new(Host { node: node.clone(), report, last_seen: None, connected: true });
        let services = services(&Catalog { hosts: [(node, host)].into(), ..Catalog::default() });
        assert_eq!(services[0].endpoints, ["10.0.0.1:80", "[fd00::1]:80"]);
        assert_eq!((services[1].reachable, services[1].port), (false, 81));
    }
}
