//! From hosts and listeners to the addresses that the mesh carries connections to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Catalog, Host, Listener};

/// A dialled address and the host that serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where the tunnel must lead, and whose identity must be at its end.
    pub host: Arc<Host>,
    /// The address as a client dials it.
    pub address: SocketAddr,
    /// Which of the host's listeners takes the connections.
    listener: usize,
}

impl Endpoint {
    /// The listener that takes the connections.
    pub fn listener(&self) -> &Listener {
        &self.host.report.listeners[self.listener]
    }
}

impl Catalog {
    /// Every address that leads to a listener through the mesh. A listener on any address stands for each
    /// of its host's addresses of a family that it accepts; one on an address that its host does not
    /// claim is left out.
    ///
    /// The server gives an address to one host only. Should a catalog have it twice all the same, the first
    /// host in the order of their names that listens on the port is taken: left out, it would go in clear.
    pub fn endpoints(&self) -> BTreeMap<SocketAddr, Endpoint> {
        let mut endpoints = BTreeMap::new();
        for host in self.hosts.values() {
            for address in &host.report.addresses {
                let listeners = host.report.listeners.iter().enumerate();
                for (number, listener) in listeners.filter(|(_, listener)| listener.accepts(*address)) {
                    let address = SocketAddr::new(*address, listener.address.port());
                    let found = || Endpoint { host: host.clone(), address, listener: number };
                    let endpoint = endpoints.entry(address).or_insert_with(found);
                    if Arc::ptr_eq(&endpoint.host, host)
                        && listener.preference(address) < endpoint.listener().preference(address)
                    {
                        endpoint.listener = number;
                    }
                }
            }
        }
        endpoints
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    use crate::catalog::{Listener, Report};
    use crate::identity::NodeName;
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
                    workload: None,
                })
                .collect(),
            ..Report::default()
        };
        Arc::new(Host { node: name.parse().unwrap(), report, last_seen: None, connected: true, lost: false })
    }

    fn catalog(hosts: impl IntoIterator<Item = Arc<Host>>) -> Catalog {
        let hosts = hosts.into_iter().map(|host| (host.node.clone(), host)).collect();
        Catalog { revision: 1, hosts, ..Catalog::default() }
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
    fn an_address_of_two_hosts_leads_to_the_first_that_listens() {
        let catalog = catalog([
            host("a", &["10.0.0.1"], &[("0.0.0.0:80", false)]),
            host("b", &["10.0.0.1"], &[("0.0.0.0:80", false), ("0.0.0.0:81", false)]),
        ]);
        let endpoints = catalog.endpoints();
        let owner = |address: &str| endpoints[&address.parse().unwrap()].host.node.as_str();
        assert_eq!((owner("10.0.0.1:80"), owner("10.0.0.1:81")), ("a", "b"));
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
            for port in 80..83 {
                let serves = |host: &&Arc<Host>| {
                    host.report.addresses.contains(&ip)
                        && host.report.listeners.iter().any(|listener| {
                            let (bound, v4) = (listener.address.ip().to_string(), ip.is_ipv4());
                            listener.address.port() == port
                                && match bound.as_str() {
                                    "0.0.0.0" => v4,
                                    "::" => !v4 || !listener.ipv6_only,
                                    exact => exact == ip.to_string(),
                                }
                        })
                };
                if let Some(host) = catalog.hosts.values().find(serves) {
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
