//! The snapshots that a stream is decided by: where destinations lead, and what this host serves to whom.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::Peer;
use crate::{
    catalog::{Catalog, Listener, choose},
    discovery::ExemptPorts,
    identity::{NodeName, ServiceName, SpiffeId, Subject, TrustDomain},
};

/// How one destination is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The service, behind the agent of its host. Tunnels go to the destination's own address, so that they take the
    /// way that the plain connection would have taken.
    pub peer: Arc<Peer>,
    /// The address from which this host dials it; unspecified where no route led when this was made.
    pub source: IpAddr,
}

/// This host, as far as its routes depend on it.
pub struct Here<'a> {
    /// Its name in the catalog.
    pub node: &'a NodeName,
    /// The mesh.
    pub trust_domain: &'a TrustDomain,
    /// Its addresses.
    pub addresses: &'a BTreeSet<IpAddr>,
    /// Ports that it never reaches through the mesh, whatever other hosts report.
    pub exempt: &'a ExemptPorts,
}

/// All destinations that are reached through the mesh from this host.
#[derive(Debug, Default)]
pub struct Routes {
    revision: u64,
    destinations: HashMap<SocketAddr, Route>,
    /// By the address of every agent in the routes, that from which this host dials it.
    sources: HashMap<SocketAddr, IpAddr>,
}

impl Routes {
    /// Routes to every endpoint in the catalog but this host's own, and none to its addresses, whoever has
    /// them in the catalog: bridges of containers have the same address on many hosts, and here it means this
    /// host. `source_for` tells the address from which this host dials another. Where there is none the source is
    /// unspecified: a connection that is tried before the route is there must not find a way in clear once it is.
    pub fn new(
        catalog: &Catalog,
        here: &Here<'_>,
        mut source_for: impl FnMut(SocketAddr) -> Option<IpAddr>,
    ) -> Self {
        let mut routes = Self { revision: catalog.revision, ..Self::default() };
        let (endpoints, mut peers) = (catalog.endpoints(), HashMap::new());
        for (&destination, endpoint) in &endpoints {
            let host = &endpoint.host;
            let is_own = host.node == *here.node || here.addresses.contains(&destination.ip());
            if is_own || here.exempt.contains(destination.port()) {
                continue;
            }
            let address = SocketAddr::new(destination.ip(), host.report.tunnel_port);
            let source = *routes
                .sources
                .entry(address)
                .or_insert_with(|| source_for(address).unwrap_or_else(|| unspecified(address)));
            let workload = endpoint.listener().workload.as_ref();
            let service =
                catalog.policy.service_at(&host.node, destination.port()).map(|service| &service.name);
            let peer = peers.entry((address, service, workload)).or_insert_with(|| {
                let party =
                    catalog.policy.source(&host.node, workload.cloned(), service.map(|_| destination.port()));
                let id =
                    SpiffeId { trust_domain: here.trust_domain.clone(), subject: party.subject() }.into();
                let (node, workload) = (Arc::new(host.node.clone()), workload.cloned());
                Arc::new(Peer { id, node, workload, address })
            });
            routes.destinations.insert(destination, Route { peer: peer.clone(), source });
        }
        routes
    }

    /// Revision of the catalog that they come from; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The route to a destination, if it is reached through the mesh.
    pub fn get(&self, destination: SocketAddr) -> Option<&Route> {
        self.destinations.get(&destination)
    }

    /// Number of destinations.
    pub fn len(&self) -> usize {
        self.destinations.len()
    }

    /// Whether nothing is reached through the mesh.
    pub fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    /// Every destination and its route.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Route)> {
        self.destinations.iter().map(|(destination, route)| (*destination, route))
    }

    /// Whether `source_for` still answers what the routes were made with.
    pub fn has_sources(&self, mut source_for: impl FnMut(SocketAddr) -> Option<IpAddr>) -> bool {
        self.sources
            .iter()
            .all(|(address, source)| source_for(*address).unwrap_or_else(|| unspecified(*address)) == *source)
    }
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
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
    /// Named services of this host, by port.
    pub names: BTreeMap<u16, ServiceName>,
    /// Who its services are, but those that are this host itself.
    pub identities: HashSet<Arc<SpiffeId>>,
}

impl LocalServices {
    /// Whether `destination` is a service of this host. It is dialled by this very address, so that a listener
    /// that is bound to loopback only is never reached.
    pub fn serves(&self, destination: SocketAddr) -> bool {
        self.listener(destination).is_some()
    }

    /// The listener that takes connections to `destination`, if it is a service of this host.
    pub fn listener(&self, destination: SocketAddr) -> Option<&Listener> {
        if self.addresses.contains(&destination.ip()) { choose(&self.listeners, destination) } else { None }
    }

    /// Who serves `destination`: a named service, else a workload. `None` if that is not told apart from this host,
    /// or is none of its services.
    pub fn subject(&self, node: &NodeName, destination: SocketAddr) -> Option<Subject> {
        let listener = self.listener(destination)?;
        let service = self.names.get(&destination.port()).cloned().map(Subject::Service);
        let workload = || Some(Subject::Workload(node.clone(), listener.workload.clone()?));
        service.or_else(workload)
    }

    /// Whether `destination`, one of its services, is who `subject` says. This host vouches for all of them.
    pub fn is_served_by(&self, destination: SocketAddr, subject: &Subject) -> bool {
        match (subject, self.names.get(&destination.port())) {
            (Subject::Host(_), _) => true,
            (Subject::Service(presented), name) => name == Some(presented),
            (Subject::Workload(_, presented), None) => self
                .listener(destination)
                .is_some_and(|listener| listener.workload.as_ref() == Some(presented)),
            (Subject::Workload(..), Some(_)) | (Subject::Server(_), _) => false,
        }
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

    const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn listener(address: &str) -> Listener {
        Listener { address: address.parse().expect("an address"), ipv6_only: false, workload: None }
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
        let exempt = ExemptPorts::default();
        let here = Here { node: &here, trust_domain: &mesh, addresses: &own, exempt: &exempt };
        Routes::new(&Catalog { revision: 1, hosts, ..Catalog::default() }, &here, source_for)
    }

    fn destinations(routes: &Routes) -> BTreeSet<String> {
        routes.iter().map(|(destination, _)| destination.to_string()).collect()
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
    fn nothing_is_routed_to_this_host() {
        let hosts = [host("here", &["10.0.0.1"]), host("there", &["10.0.0.2"])];
        let routes = routes(&hosts, &["10.0.0.1"], |_| Some(SOURCE));
        assert_eq!(destinations(&routes), BTreeSet::from(["10.0.0.2:80".to_owned()]));
    }

    #[test]
    fn a_destination_that_no_route_leads_to_yet_is_routed_without_a_source() {
        let hosts = [host("far", &["10.0.0.9", "fd00::9"]), host("there", &["10.0.0.2"])];
        let known = |to: SocketAddr| (to.ip() == ip("10.0.0.2")).then_some(SOURCE);
        let routes = routes(&hosts, &["10.0.0.1"], known);
        let source = |to: &str| routes.get(to.parse().expect("literal")).expect("a route").source;
        assert_eq!(source("10.0.0.2:80"), SOURCE);
        assert_eq!((source("10.0.0.9:80"), source("[fd00::9]:80")), (ip("0.0.0.0"), ip("::")));
        assert!(routes.has_sources(known));
        assert!(!routes.has_sources(|_| Some(SOURCE)), "a route came");
        assert!(!routes.has_sources(|_| None), "a route went");
    }

    #[test]
    fn a_port_that_is_exempt_here_is_not_routed_whoever_reports_it() {
        let mut hostile = Host::clone(&host("there", &["10.0.0.2"]));
        hostile.report.listeners.extend([listener("0.0.0.0:22"), listener("0.0.0.0:9190")]);
        let routes = routes(&[Arc::new(hostile)], &["10.0.0.1"], |_| Some(SOURCE));
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
            ..LocalServices::default()
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
