//! From hosts and listeners to the addresses that the mesh carries connections to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Catalog, Host};
use crate::identity::NodeName;

/// A dialled address and the host that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the tunnel must lead, and whose identity must be at its end.
    pub host: Arc<Host>,
    /// The address as a client dials it.
    pub address: SocketAddr,
}

impl Catalog {
    /// Every address that leads to a listener through the mesh. A listener on any address stands for each
    /// of its host's addresses of a family that it accepts; one on an address that its host does not
    /// claim is left out, and so is every address that [several hosts claim](Self::ambiguous).
    pub fn endpoints(&self) -> BTreeMap<SocketAddr, Endpoint> {
        let claims = self.claims();
        let mut endpoints = BTreeMap::new();
        for host in self.hosts.values() {
            for address in host.report.addresses.iter().filter(|address| claims[*address].len() == 1) {
                for listener in host.report.listeners.iter().filter(|listener| listener.accepts(*address)) {
                    let address = SocketAddr::new(*address, listener.address.port());
                    endpoints.insert(address, Endpoint { host: host.clone(), address });
                }
            }
        }
        endpoints
    }

    /// The addresses that more than one host claims, with those hosts.
    pub fn ambiguous(&self) -> BTreeMap<IpAddr, Vec<NodeName>> {
        let mut claims = self.claims();
        claims.retain(|_, hosts| hosts.len() > 1);
        claims
    }

    fn claims(&self) -> BTreeMap<IpAddr, Vec<NodeName>> {
        let mut claims: BTreeMap<IpAddr, Vec<NodeName>> = BTreeMap::new();
        for host in self.hosts.values() {
            for address in &host.report.addresses {
                let hosts = claims.entry(*address).or_default();
                if hosts.last() != Some(&host.node) {
                    hosts.push(host.node.clone());
                }
            }
        }
        claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Listener, Report};
    use proptest::prelude::*;

    const ADDRESSES: [&str; 6] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "fd00::3"];

    fn host(name: &str, addresses: &[&str], listeners: &[(&str, bool)]) -> Arc<Host> {
        let report = Report {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            tunnel_port: 9191,
            listeners: listeners
                .iter()
                .map(|(address, ipv6_only)| Listener {
                    address: address.parse().unwrap(),
                    ipv6_only: *ipv6_only,
                })
                .collect(),
            version: String::new(),
        };
        Arc::new(Host { node: name.parse().unwrap(), report, last_seen: None, connected: true })
    }

    fn catalog(hosts: impl IntoIterator<Item = Arc<Host>>) -> Catalog {
        Catalog { revision: 1, hosts: hosts.into_iter().map(|host| (host.node.clone(), host)).collect() }
    }

    fn addresses(catalog: &Catalog) -> Vec<String> {
        catalog.endpoints().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_wildcard_stands_for_the_addresses_of_its_families() {
        let both = catalog([host("a", &["10.0.0.1", "fd00::1"], &[("[::]:80", false)])]);
        assert_eq!(addresses(&both), ["10.0.0.1:80", "[fd00::1]:80"]);
        let six = catalog([host("a", &["10.0.0.1", "fd00::1"], &[("[::]:80", true)])]);
        assert_eq!(addresses(&six), ["[fd00::1]:80"]);
        let four = catalog([host("a", &["10.0.0.1", "fd00::1"], &[("0.0.0.0:80", false)])]);
        assert_eq!(addresses(&four), ["10.0.0.1:80"]);
    }

    #[test]
    fn an_address_that_the_host_does_not_claim_is_left_out() {
        let catalog = catalog([host("a", &["10.0.0.1"], &[("127.0.0.1:80", false), ("10.0.0.9:80", false)])]);
        assert!(catalog.endpoints().is_empty());
    }

    #[test]
    fn an_address_of_two_hosts_is_ambiguous() {
        let catalog = catalog([
            host("a", &["172.17.0.1", "10.0.0.1"], &[("0.0.0.0:80", false)]),
            host("b", &["172.17.0.1", "10.0.0.2"], &[]),
        ]);
        assert_eq!(addresses(&catalog), ["10.0.0.1:80"]);
        assert_eq!(catalog.ambiguous().keys().map(ToString::to_string).collect::<Vec<_>>(), ["172.17.0.1"]);
    }

    /// Indices of addresses, and listeners as index, port and whether they are for IPv6 only.
    type Drawn = (Vec<usize>, Vec<(usize, u16, bool)>);

    fn arbitrary_host() -> impl Strategy<Value = Drawn> {
        (
            prop::collection::vec(0..ADDRESSES.len(), 0..4),
            prop::collection::vec((0..ADDRESSES.len() + 2, 80u16..83, any::<bool>()), 0..5),
        )
    }

    fn built(hosts: &[Drawn]) -> Catalog {
        let ip = |index: usize| {
            *ADDRESSES.get(index).unwrap_or(if index.is_multiple_of(2) { &"0.0.0.0" } else { &"::" })
        };
        catalog(hosts.iter().enumerate().map(|(number, (addresses, listeners))| {
            let addresses: Vec<_> = addresses.iter().map(|index| ip(*index)).collect();
            let listeners: Vec<_> = listeners
                .iter()
                .map(|(index, port, only)| {
                    (SocketAddr::new(ip(*index).parse().unwrap(), *port).to_string(), *only)
                })
                .collect();
            let listeners: Vec<_> = listeners.iter().map(|(text, only)| (text.as_str(), *only)).collect();
            host(&format!("h{number}"), &addresses, &listeners)
        }))
    }

    /// Asks of every address and port, one at a time, who serves it.
    fn reference(catalog: &Catalog) -> BTreeMap<SocketAddr, NodeName> {
        let mut served = BTreeMap::new();
        for ip in ADDRESSES.map(|text| text.parse::<IpAddr>().unwrap()) {
            let claimants: Vec<_> =
                catalog.hosts.values().filter(|host| host.report.addresses.contains(&ip)).collect();
            let [host] = claimants[..] else { continue };
            for port in 80..83 {
                let accepted = host.report.listeners.iter().any(|listener| {
                    let (bound, v4) = (listener.address.ip().to_string(), ip.is_ipv4());
                    listener.address.port() == port
                        && match bound.as_str() {
                            "0.0.0.0" => v4,
                            "::" => !v4 || !listener.ipv6_only,
                            exact => exact == ip.to_string(),
                        }
                });
                if accepted {
                    served.insert(SocketAddr::new(ip, port), host.node.clone());
                }
            }
        }
        served
    }

    proptest! {
        #[test]
        fn endpoints_equal_the_slow_reference(hosts in prop::collection::vec(arbitrary_host(), 0..4)) {
            let catalog = built(&hosts);
            let found: BTreeMap<_, _> =
                catalog.endpoints().into_iter().map(|(address, endpoint)| (address, endpoint.host.node.clone())).collect();
            prop_assert_eq!(found, reference(&catalog));
        }
    }
}
