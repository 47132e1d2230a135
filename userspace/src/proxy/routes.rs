//! The snapshot that tells where destinations lead.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::Peer;
use crate::{
    catalog::Catalog,
    discovery::ExemptPorts,
    identity::{NodeName, SpiffeId, TrustDomain},
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{Host, Listener, Report},
        policy::Service,
    };

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
    fn a_route_demands_the_workload_that_listens_and_rather_the_service_that_has_a_name() {
        let mut there = Host::clone(&host("there", &["10.0.0.2"]));
        there.report.listeners = [80, 81, 82]
            .map(|port| Listener {
                address: SocketAddr::new(ip("0.0.0.0"), port),
                ipv6_only: false,
                workload: "web.service".parse().ok(),
            })
            .into();
        let mut catalog = Catalog {
            revision: 1,
            hosts: [(there.node.clone(), Arc::new(there))].into(),
            ..Catalog::default()
        };
        Arc::make_mut(&mut catalog.policy).put_service(Service {
            name: "shop".parse().expect("a name"),
            hosts: ["there".parse().expect("a name")].into(),
            port: 82,
            mode: None,
            exceptions: BTreeSet::new(),
            existing: crate::policy::Existing::Keep,
            unconfirmed: None,
            workload: None,
        });
        let (node, mesh) = ("here".parse().expect("a name"), "mesh.test".parse().expect("a name"));
        let (addresses, exempt) = (BTreeSet::new(), ExemptPorts::default());
        let here = Here { node: &node, trust_domain: &mesh, addresses: &addresses, exempt: &exempt };
        let routes = Routes::new(&catalog, &here, |_| Some(SOURCE));
        let peer = |port| &routes.get(SocketAddr::new(ip("10.0.0.2"), port)).expect("a route").peer;
        assert_eq!(peer(80).id.to_string(), "spiffe://mesh.test/host/there/web.service");
        assert!(Arc::ptr_eq(peer(80), peer(81)), "one service on two ports has one pool");
        assert_eq!(peer(82).id.to_string(), "spiffe://mesh.test/service/shop");
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
}
