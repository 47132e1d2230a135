//! The snapshot that tells where destinations lead.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{
    Peer,
    instances::{Ejection, Instance, Instances, Load, Loads},
};
use crate::{
    catalog::{Catalog, Host, Listener},
    discovery::ExemptPorts,
    identity::{NodeName, ServiceName, SpiffeId, TrustDomain, WorkloadName},
    policy::Service,
};

/// How one destination is reached.
#[derive(Debug, Clone)]
pub struct Route {
    /// The service at the destination, behind the agent of its host. Tunnels go to the destination's own address, so
    /// that they take the way that the plain connection would have taken.
    pub peer: Arc<Peer>,
    /// The address from which this host dials it; unspecified where no route led when this was made.
    pub source: IpAddr,
    named: Option<Named>,
    /// An administrator has drained the host of a service without a name.
    closed: bool,
}

/// The destination is of a named service.
#[derive(Debug, Clone)]
struct Named {
    instances: Arc<Instances>,
    /// The instance at the destination itself, if that is well.
    own: Option<usize>,
}

/// Where a connection may go.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// Tells it from the other choices of its route.
    pub number: usize,
    /// Whoever serves there.
    pub peer: &'a Arc<Peer>,
    /// What its agent is to dial.
    pub address: SocketAddr,
    /// Of an instance of a named service.
    pub load: Option<&'a Load>,
}

impl Route {
    /// Whether anybody serves there, or elsewhere in its stead.
    pub fn is_available(&self) -> bool {
        !self.closed && self.named.as_ref().is_none_or(|named| !named.instances.is_empty())
    }

    /// How many choices there are.
    pub fn choices(&self) -> usize {
        self.named.as_ref().map_or(1, |named| named.instances.len())
    }

    /// Where a connection to `destination` is to be tried next, after the choices with the numbers in `tried`.
    pub fn choose(&self, destination: SocketAddr, tried: &[usize]) -> Option<Choice<'_>> {
        let Some(named) = &self.named else {
            let choice = Choice { number: 0, peer: &self.peer, address: destination, load: None };
            return (tried.is_empty() && !self.closed).then_some(choice);
        };
        let number = named.instances.choose(named.own, tried)?;
        let instance = named.instances.get(number);
        let (peer, address) = if named.own == Some(number) {
            (&self.peer, destination)
        } else {
            (&instance.peer, instance.address)
        };
        Some(Choice { number, peer, address, load: Some(&instance.load) })
    }
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
    named: Vec<Arc<Instances>>,
}

impl Routes {
    /// Routes to every endpoint in the catalog but this host's own, and none to its addresses, whoever has
    /// them in the catalog: bridges of containers have the same address on many hosts, and here it means this
    /// host. `source_for` tells the address from which this host dials another. Where there is none the source is
    /// unspecified: a connection that is tried before the route is there must not find a way in clear once it is.
    ///
    /// A named service has routes to its port on all addresses of all of its hosts, whether anybody listens there or
    /// not: an instance that is gone must not be looked for in clear.
    pub fn new(
        catalog: &Catalog,
        here: &Here<'_>,
        loads: &mut Loads,
        source_for: impl FnMut(SocketAddr) -> Option<IpAddr>,
    ) -> Self {
        let (endpoints, routes) =
            (catalog.endpoints(), Self { revision: catalog.revision, ..Self::default() });
        let mut building = Building { catalog, here, source_for, peers: HashMap::new(), routes };
        for (&destination, endpoint) in &endpoints {
            let host = &endpoint.host;
            if catalog.policy.service_at(&host.node, destination.port()).is_none() {
                building.add(host, destination, endpoint.listener().workload.as_ref(), None);
            }
        }
        for service in catalog.policy.services().values() {
            building.add_service(service, loads);
        }
        loads.forget_unused();
        building.routes
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

    /// Instances that are left alone for a moment, because they could not be reached.
    pub fn ejections(&self) -> impl Iterator<Item = Ejection> {
        self.named.iter().flat_map(|instances| instances.ejections())
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

type PeerKey<'a> = (SocketAddr, Option<&'a ServiceName>, Option<&'a WorkloadName>);

/// Routes on their way.
struct Building<'a, SourceFor> {
    catalog: &'a Catalog,
    here: &'a Here<'a>,
    source_for: SourceFor,
    /// By their agent's address, and who they are.
    peers: HashMap<PeerKey<'a>, Arc<Peer>>,
    routes: Routes,
}

impl<'a, SourceFor: FnMut(SocketAddr) -> Option<IpAddr>> Building<'a, SourceFor> {
    fn add(
        &mut self,
        host: &'a Host,
        destination: SocketAddr,
        workload: Option<&'a WorkloadName>,
        named: Option<Named>,
    ) {
        let is_own = host.node == *self.here.node || self.here.addresses.contains(&destination.ip());
        if is_own || self.here.exempt.contains(destination.port()) {
            return;
        }
        let source = self.source(SocketAddr::new(destination.ip(), host.report.tunnel_port));
        let peer = self.peer(host, destination, workload);
        let closed = named.is_none() && self.catalog.policy.drained.contains(&host.node);
        let route = || Route { peer, source, named, closed };
        self.routes.destinations.entry(destination).or_insert_with(route);
    }

    fn add_service(&mut self, service: &'a Service, loads: &mut Loads) {
        let [v4, v6] = [true, false].map(|v4| Arc::new(self.instances(service, v4, loads)));
        for host in service.hosts.iter().filter_map(|node| self.catalog.hosts.get(node)) {
            let holder = self.catalog.policy.service_at(&host.node, service.port);
            if holder.is_none_or(|holder| holder.name != service.name) {
                continue;
            }
            for ip in &host.report.addresses {
                let destination = SocketAddr::new(*ip, service.port);
                let instances = if ip.is_ipv4() { &v4 } else { &v6 };
                let listener = served(service, host, destination);
                let own = listener.and_then(|_| instances.position(&host.node));
                let named = Named { instances: instances.clone(), own };
                let workload = listener.map_or(&service.workload, |listener| &listener.workload);
                self.add(host, destination, workload.as_ref(), Some(named));
            }
        }
        self.routes.named.extend([v4, v6]);
    }

    /// Those that are well and listen on an address of the family, each at its first that a route leads to.
    fn instances(&mut self, service: &'a Service, v4: bool, loads: &mut Loads) -> Instances {
        let mut all = Vec::new();
        for (node, host, unavailable) in self.catalog.instances(service) {
            let Some(host) = host.filter(|_| unavailable.is_none()) else { continue };
            let addresses = host.report.addresses.iter().filter(|ip| ip.is_ipv4() == v4);
            let addresses = addresses.map(|ip| SocketAddr::new(*ip, service.port));
            let mut listening = addresses.filter(|address| served(service, host, *address).is_some());
            let mut dialled = listening.clone().find(|address| {
                let agent = SocketAddr::new(address.ip(), host.report.tunnel_port);
                *node == *self.here.node || !self.source(agent).is_unspecified()
            });
            dialled = dialled.or_else(|| listening.next());
            let Some(address) = dialled else { continue };
            let listener = served(service, host, address);
            let workload = listener.and_then(|listener| listener.workload.as_ref());
            let peer = self.peer(host, address, workload);
            all.push(Instance { peer, address, load: loads.of(&service.name, node) });
        }
        Instances::new(service.name.clone(), service.balance, all, loads)
    }

    /// From where this host dials the agent at `address`.
    fn source(&mut self, address: SocketAddr) -> IpAddr {
        let source_for = &mut self.source_for;
        let source = || source_for(address).unwrap_or_else(|| unspecified(address));
        *self.routes.sources.entry(address).or_insert_with(source)
    }

    fn peer(
        &mut self,
        host: &'a Host,
        destination: SocketAddr,
        workload: Option<&'a WorkloadName>,
    ) -> Arc<Peer> {
        let address = SocketAddr::new(destination.ip(), host.report.tunnel_port);
        let policy = &self.catalog.policy;
        let service = policy.service_at(&host.node, destination.port()).map(|service| &service.name);
        let peer = self.peers.entry((address, service, workload)).or_insert_with(|| {
            let party = policy.source(&host.node, workload.cloned(), service.map(|_| destination.port()));
            let trust_domain = self.here.trust_domain.clone();
            let id = SpiffeId { trust_domain, subject: party.subject() }.into();
            let (node, workload) = (Arc::new(host.node.clone()), workload.cloned());
            Arc::new(Peer { id, node, workload, address })
        });
        peer.clone()
    }
}

/// The listener at an address of a service's host that goes by its name.
fn served<'a>(service: &Service, host: &'a Host, address: SocketAddr) -> Option<&'a Listener> {
    let listener = host.report.listener(address);
    listener.filter(|listener| service.is_served_by(listener.workload.as_ref()))
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::Report, policy::Balance};

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
            ..Report::default()
        };
        Arc::new(Host {
            node: name.parse().expect("a name"),
            report,
            last_seen: None,
            connected: true,
            lost: false,
        })
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
        Routes::new(
            &Catalog { revision: 1, hosts, ..Catalog::default() },
            &here,
            &mut Loads::default(),
            source_for,
        )
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
        Arc::make_mut(&mut catalog.policy).put_service(Service::new(
            "shop".parse().expect("a name"),
            ["there".parse().expect("a name")],
            82,
        ));
        let (node, mesh) = ("here".parse().expect("a name"), "mesh.test".parse().expect("a name"));
        let (addresses, exempt) = (BTreeSet::new(), ExemptPorts::default());
        let here = Here { node: &node, trust_domain: &mesh, addresses: &addresses, exempt: &exempt };
        let routes = Routes::new(&catalog, &here, &mut Loads::default(), |_| Some(SOURCE));
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

    /// A service on port 80 of hosts `a`, `b` and `c`, of which `dead` does not listen.
    fn shop(balance: Balance, dead: &str) -> Routes {
        let node = |name: &str| name.parse::<NodeName>().expect("a name");
        let mut hosts = [("a", "10.0.0.2"), ("b", "10.0.0.3"), ("c", "10.0.0.4")]
            .map(|(name, address)| Host::clone(&host(name, &[address])));
        for host in hosts.iter_mut().filter(|host| dead.contains(host.node.as_str())) {
            host.report.listeners.clear();
        }
        let hosts = hosts.map(|host| (host.node.clone(), Arc::new(host))).into();
        let mut catalog = Catalog { revision: 1, hosts, ..Catalog::default() };
        let service = Service::new("shop".parse().expect("a name"), ["a", "b", "c"].map(node), 80);
        Arc::make_mut(&mut catalog.policy).put_service(Service { balance, ..service });
        let (here, mesh) = (node("here"), "mesh.test".parse().expect("a name"));
        let (own, exempt) = (BTreeSet::new(), ExemptPorts::default());
        let here = Here { node: &here, trust_domain: &mesh, addresses: &own, exempt: &exempt };
        Routes::new(&catalog, &here, &mut Loads::default(), |_| Some(SOURCE))
    }

    fn chosen(routes: &Routes, dialled: &str) -> Vec<String> {
        let dialled = SocketAddr::new(ip(dialled), 80);
        let (route, mut tried, mut chosen) = (routes.get(dialled).expect("a route"), Vec::new(), Vec::new());
        while let Some(choice) = route.choose(dialled, &tried) {
            assert_eq!(choice.peer.address.ip(), choice.address.ip());
            tried.push(choice.number);
            chosen.push(choice.address.ip().to_string());
        }
        chosen
    }

    #[test]
    fn an_instance_that_is_gone_is_routed_to_the_others_of_its_service() {
        let routes = shop(Balance::Pinned, "a");
        assert_eq!(destinations(&routes).len(), 3, "of a, too");
        assert_eq!(
            BTreeSet::from_iter(chosen(&routes, "10.0.0.2")),
            ["10.0.0.3", "10.0.0.4"].map(str::to_owned).into()
        );
        assert_eq!(chosen(&routes, "10.0.0.4"), ["10.0.0.4", "10.0.0.3"]);
        assert_eq!(chosen(&shop(Balance::RoundRobin, ""), "10.0.0.2").len(), 3);
    }

    #[test]
    fn a_service_without_a_healthy_instance_keeps_its_routes_and_is_not_available() {
        let routes = shop(Balance::Pinned, "abc");
        assert_eq!(destinations(&routes).len(), 3);
        assert!(routes.iter().all(|(_, route)| !route.is_available()));
        assert!(chosen(&routes, "10.0.0.2").is_empty());
    }
}
