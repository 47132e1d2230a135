//! The snapshots that a stream is decided by: where destinations lead, and what this host serves to whom.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::Peer;
use crate::{
    catalog::{Catalog, Listener},
    identity::{NodeName, SpiffeId, TrustDomain},
};

/// How one destination is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The agent of the destination's host. Its tunnels go to the destination's own address, so that they take
    /// the way that the plain connection would have taken.
    pub peer: Arc<Peer>,
    /// The address from which this host dials it.
    pub source: IpAddr,
}

/// All destinations that are reached through the mesh from this host.
#[derive(Debug, Default)]
pub struct Routes(HashMap<SocketAddr, Route>);

impl Routes {
    /// Routes to every endpoint in the catalog but this host's own, and none to `own_addresses`, whoever has
    /// them in the catalog: bridges of containers have the same address on many hosts, and here it means this
    /// host. `source_for` tells the address from which this host dials another; where there is no route there
    /// is nothing to redirect.
    pub fn new(
        catalog: &Catalog,
        own: &NodeName,
        own_addresses: &BTreeSet<IpAddr>,
        trust_domain: &TrustDomain,
        mut source_for: impl FnMut(SocketAddr) -> Option<IpAddr>,
    ) -> Self {
        let mut peers: HashMap<SocketAddr, Option<(Arc<Peer>, IpAddr)>> = HashMap::new();
        let mut routes = HashMap::new();
        for (destination, endpoint) in catalog.endpoints() {
            let host = &endpoint.host;
            if host.node == *own || own_addresses.contains(&destination.ip()) {
                continue;
            }
            let address = SocketAddr::new(destination.ip(), host.report.tunnel_port);
            let reached = peers.entry(address).or_insert_with(|| {
                let id = SpiffeId::host(trust_domain.clone(), host.node.clone());
                Some((Arc::new(Peer { id, address }), source_for(address)?))
            });
            if let Some((peer, source)) = reached {
                routes.insert(destination, Route { peer: peer.clone(), source: *source });
            }
        }
        Self(routes)
    }

    /// The route to a destination, if it is reached through the mesh.
    pub fn get(&self, destination: SocketAddr) -> Option<&Route> {
        self.0.get(&destination)
    }

    /// Number of destinations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is reached through the mesh.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Destinations, each with the address from which this host dials it: what the kernel half needs.
    pub fn sources(&self) -> HashMap<SocketAddr, IpAddr> {
        self.0.iter().map(|(destination, route)| (*destination, route.source)).collect()
    }
}

/// What tunnels may reach on this host, and which clients may come through them.
#[derive(Debug, Default)]
pub struct LocalServices {
    /// This host's addresses that others dial.
    pub addresses: BTreeSet<IpAddr>,
    /// Listeners that are neither exempt nor bound to loopback.
    pub listeners: BTreeSet<Listener>,
    /// Addresses of the other hosts, by node.
    pub peers: HashMap<NodeName, HashSet<IpAddr>>,
}

impl LocalServices {
    /// Whether `destination` is a service of this host. It is dialled by this very address, so that a listener
    /// that is bound to loopback only is never reached.
    pub fn serves(&self, destination: SocketAddr) -> bool {
        let port = destination.port();
        self.addresses.contains(&destination.ip())
            && self
                .listeners
                .iter()
                .any(|listener| listener.address.port() == port && listener.accepts(destination.ip()))
    }

    /// Whether a tunnel from `node`, whose connection came from `tunnel_source`, may speak for a client with
    /// address `client`: a host can only name addresses of its own.
    pub fn may_speak_for(&self, node: &NodeName, tunnel_source: IpAddr, client: IpAddr) -> bool {
        client == tunnel_source.to_canonical()
            || self.peers.get(node).is_some_and(|addresses| addresses.contains(&client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Host, Report};

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn listener(address: &str) -> Listener {
        Listener { address: address.parse().expect("an address"), ipv6_only: false }
    }

    /// A host that listens on port 80 of all its addresses.
    fn host(name: &str, addresses: &[&str]) -> Arc<Host> {
        let report = Report {
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            tunnel_port: 9191,
            listeners: vec![listener("[::]:80")],
            version: String::new(),
        };
        Arc::new(Host { node: name.parse().expect("a name"), report, last_seen: None, connected: true })
    }

    /// Of host `here`, which has the addresses `own`, in a mesh with `hosts`.
    fn routes(
        hosts: &[Arc<Host>],
        own: &[&str],
        source_for: impl FnMut(SocketAddr) -> Option<IpAddr>,
    ) -> Routes {
        let hosts = hosts.iter().map(|host| (host.node.clone(), host.clone())).collect();
        let own = own.iter().map(|address| ip(address)).collect();
        let (here, mesh) = ("here".parse().expect("a name"), "mesh.test".parse().expect("a name"));
        Routes::new(&Catalog { revision: 1, hosts }, &here, &own, &mesh, source_for)
    }

    fn destinations(routes: &Routes) -> BTreeSet<String> {
        routes.sources().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_route_leads_to_the_agent_at_the_dialled_address_and_demands_its_host() {
        let routes = routes(&[host("there", &["10.0.0.2", "fd00::2"])], &["10.0.0.1"], |_| Some(SOURCE));
        let route = routes.get("[fd00::2]:80".parse().expect("literal")).expect("a route");
        assert_eq!(route.peer.address, "[fd00::2]:9191".parse().expect("literal"));
        assert_eq!(route.peer.id.to_string(), "spiffe://mesh.test/host/there");
        assert_eq!(route.source, SOURCE);
        assert!(routes.get("10.0.0.2:81".parse().expect("literal")).is_none());
    }

    #[test]
    fn nothing_is_routed_to_this_host_or_where_no_route_leads() {
        let hosts = [host("here", &["10.0.0.1"]), host("far", &["10.0.0.9"]), host("there", &["10.0.0.2"])];
        let routes = routes(&hosts, &["10.0.0.1"], |to| (to.ip() != ip("10.0.0.9")).then_some(SOURCE));
        assert_eq!(destinations(&routes), BTreeSet::from(["10.0.0.2:80".to_owned()]));
    }

    #[test]
    fn an_own_address_that_another_host_has_in_the_catalog_is_left_alone() {
        let hosts = [host("here", &["10.0.0.1"]), host("there", &["10.0.0.2", "172.17.0.1"])];
        let bridge = "172.17.0.1:80".parse().expect("literal");
        let with_bridge = routes(&hosts, &["10.0.0.1", "172.17.0.1"], |_| Some(SOURCE));
        assert!(with_bridge.get(bridge).is_none());
        assert_eq!(destinations(&with_bridge), BTreeSet::from(["10.0.0.2:80".to_owned()]));
        assert!(routes(&hosts, &["10.0.0.1"], |_| Some(SOURCE)).get(bridge).is_some());
    }

    #[test]
    fn a_service_is_a_listener_on_an_address_of_this_host() {
        let services = LocalServices {
            addresses: BTreeSet::from([ip("10.0.0.1"), ip("10.0.0.5")]),
            listeners: BTreeSet::from([
                listener("0.0.0.0:80"),
                listener("10.0.0.5:81"),
                listener("127.0.0.1:82"),
            ]),
            peers: HashMap::new(),
        };
        let serves = |address: &str| services.serves(address.parse().expect("an address"));
        assert!(["10.0.0.1:80", "10.0.0.5:80", "10.0.0.5:81"].into_iter().all(serves));
        let others =
            ["10.0.0.1:81", "10.0.0.1:82", "127.0.0.1:80", "127.0.0.1:82", "10.0.0.9:80", "10.0.0.1:22"];
        assert!(!others.into_iter().any(serves));
    }

    #[test]
    fn a_host_speaks_for_its_own_addresses_only() {
        let node = |name: &str| name.parse().expect("a name");
        let services = LocalServices {
            peers: HashMap::from([
                (node("a"), HashSet::from([ip("10.0.0.2"), ip("10.0.0.3")])),
                (node("b"), HashSet::from([ip("10.0.0.4")])),
            ]),
            ..LocalServices::default()
        };
        let may =
            |name: &str, client: &str| services.may_speak_for(&node(name), ip("::ffff:10.0.0.2"), ip(client));
        assert!(may("a", "10.0.0.3"), "another address of the host");
        assert!(may("unknown", "10.0.0.2"), "where the tunnel itself comes from, as an IPv4 address");
        assert!(!may("a", "10.0.0.4"), "an address of another host");
        assert!(!may("unknown", "10.0.0.3"), "a host that the catalog does not have");
    }
}
