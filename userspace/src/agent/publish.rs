//! Turns catalog and discovery into what the data path reads: routes, local services and the kernel half's maps.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::{
    discover::Served,
    enforce::{Enforcement, Known},
    remember::Mark,
};
use crate::{
    catalog::Catalog,
    control::{Backoff, ServerStatus},
    discovery::ExemptPorts,
    identity::{Identity, NodeName, SpiffeId, token::ServerAddress},
    policy::Service,
    proxy::{FormerlyNamed, Here, LocalServices, Routes, Rules, Shared, instances::Loads},
    socket,
};

/// How often the kernel is asked again by which address this host dials others. Nothing goes in clear meanwhile: an
/// endpoint without a route is redirected too.
const ROUTES_INTERVAL: Duration = Duration::from_secs(1);

/// How long the name that a service has lost is good enough for streams of hosts that have not heard of it.
const FORMER_NAMES: Duration = Duration::from_secs(10);

/// A sidecar's destination: a port on a host of the mesh, by name, or any address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// On a host of the mesh, at its first address.
    Node(NodeName, u16),
    /// At an address.
    Address(SocketAddr),
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| format!("{text:?} has no port: use HOST:PORT"))?;
        let port =
            port.parse().map_err(|_| format!("{port:?} is not a port: use a number from 1 to 65535"))?;
        Ok(Self::Node(host.parse().map_err(|error: crate::identity::NameError| error.to_string())?, port))
    }
}

impl Upstream {
    fn resolve(&self, catalog: &Catalog) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Node(node, port) => {
                let address = catalog.hosts.get(node)?.report.addresses.first()?;
                Some(SocketAddr::new(*address, *port))
            }
        }
    }
}

/// Publishes snapshots.
pub struct Publisher {
    /// Where workers read them.
    pub shared: Arc<Shared>,
    /// Ports that are never meshed, whoever reports them.
    pub exempt: ExemptPorts,
    /// The servers of the mesh: one on this host is never strict.
    pub servers: watch::Receiver<ServerStatus>,
    /// The kernel half's maps, if there is one.
    pub enforcement: Option<Enforcement>,
    /// A sidecar's destination, and where workers read it.
    pub upstream: Option<(Upstream, Arc<ArcSwapOption<SocketAddr>>)>,
    /// Of the maps that `enforcement` writes.
    pub mark: Option<Mark>,
    /// What connections have told of instances.
    pub loads: Loads,
    /// The revision of the catalog that was published last.
    pub published: watch::Sender<u64>,
    /// Cancelled when another agent has taken over: the kernel half is not ours any more.
    pub handed_over: CancellationToken,
}

impl Publisher {
    /// Publishes at each change of the catalog, of this host or of its routes to others.
    pub async fn run(
        mut self,
        identity: watch::Receiver<Arc<Identity>>,
        mut catalog: watch::Receiver<Arc<Catalog>>,
        mut served: watch::Receiver<Served>,
    ) -> anyhow::Result<()> {
        let own = identity.borrow().clone();
        let node = own.node()?;
        let mut ticks = interval(ROUTES_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut backoff = Backoff::new();
        // A catalog that comes from disk is here before it is known what this host serves.
        served.changed().await?;
        loop {
            if self.handed_over.is_cancelled() {
                (self.enforcement, self.mark) = (None, None);
            }
            let known = catalog.borrow_and_update().clone();
            let serving = served.borrow_and_update().clone();
            let here = Here {
                node,
                trust_domain: &own.id.trust_domain,
                addresses: &serving.addresses,
                exempt: &self.exempt,
            };
            let mark = self.shared.mark;
            let source = |destination| source_for(mark, destination);
            let routes = Routes::new(&known, &here, &mut self.loads, source);
            let mut services = local_services(&known, &serving, &own.id);
            services.formerly_named = formerly_named(&self.shared.services.load(), &services);
            let services = Arc::new(services);
            self.shared.services.store(services.clone());
            services.identities.iter().for_each(|id| self.shared.identities.want(id));
            self.shared.set_removed(&known.removed);
            // Nothing is carried without routes, and nothing may be carried before its rules are here.
            self.shared.set_rules(Rules::new(known.clone(), services, node.clone()));
            let is_in_force = self.publish_routes(node, &serving, &known, routes);
            self.published.send_replace(known.revision);
            if is_in_force {
                backoff.reset();
            }
            if let Some((wanted, upstream)) = &self.upstream {
                upstream.store(wanted.resolve(&known).map(Arc::new));
            }
            tokio::select! {
                changed = catalog.changed() => changed?,
                changed = served.changed() => changed?,
                changed = workloads_change(&mut self.enforcement, &known, node, &serving) => changed?,
                () = self.handed_over.cancelled(), if self.enforcement.is_some() => {}
                () = routes_change(&self.shared, &mut ticks) => debug!("this host's routes to others changed"),
                () = backoff.pause(), if !is_in_force => debug!("trying again to bring the kernel half up to date"),
            }
        }
    }

    /// Workers must have a route before the kernel redirects to it, and until it does not any more. False if the
    /// kernel half did not take all of it.
    fn publish_routes(
        &mut self,
        node: &NodeName,
        serving: &Served,
        catalog: &Arc<Catalog>,
        routes: Routes,
    ) -> bool {
        let marked = self.mark.as_mut().map_or(Ok(()), |mark| mark.set(catalog));
        if let Err(error) = &marked {
            error!("rules are not marked as newer than what is on disk: {error}");
        }
        let routes = Arc::new(routes);
        let take_over = || self.shared.routes.store(routes.clone());
        match &mut self.enforcement {
            None => {
                take_over();
                true
            }
            Some(enforcement) => {
                let own_servers = server_ports(&self.servers.borrow().servers, node, &serving.addresses);
                let (policy, exempt) = (&*catalog.policy, &self.exempt.and(own_servers));
                let (mesh, routes) = (&catalog.addresses(), &*routes);
                let known = Known { policy, node, serving, routes, mesh, exempt };
                let is_in_force = enforcement.enforce(&known, take_over);
                enforcement.reset_existing(&known);
                is_in_force && marked.is_ok()
            }
        }
    }
}

/// Ports of the servers on this host. One that is known by a name that is not this host's is not recognized.
pub(super) fn server_ports(servers: &[ServerAddress], node: &NodeName, own: &BTreeSet<IpAddr>) -> Vec<u16> {
    let port = |server: &ServerAddress| {
        let (host, port) = server.as_str().rsplit_once(':')?;
        let address = host.trim_start_matches('[').trim_end_matches(']').parse();
        let is_own = address.map_or(host == node.as_str(), |address: IpAddr| own.contains(&address));
        is_own.then(|| port.parse().ok()).flatten()
    };
    servers.iter().filter_map(port).collect()
}

/// Until the kernel half must be told more than which workloads there are. Never, without one, and before the first
/// catalog.
async fn workloads_change(
    enforcement: &mut Option<Enforcement>,
    catalog: &Catalog,
    node: &NodeName,
    serving: &Served,
) -> anyhow::Result<()> {
    match enforcement {
        Some(enforcement) if catalog.revision > 0 => {
            Ok(enforcement.follow_workloads(&catalog.policy, node, serving).await?)
        }
        _ => std::future::pending().await,
    }
}

/// The kernel tells nobody without a socket for it, and asking it is one system call or two per host.
async fn routes_change(shared: &Shared, ticks: &mut Interval) {
    loop {
        ticks.tick().await;
        if !shared.routes.load().has_sources(|destination| source_for(shared.mark, destination)) {
            return;
        }
    }
}

/// `None` where no route leads.
pub(super) fn source_for(mark: Option<u32>, destination: SocketAddr) -> Option<IpAddr> {
    socket::source_for(destination, mark).ok()
}

/// What `before` had names for that `now` has others for, or none.
fn formerly_named(before: &LocalServices, now: &LocalServices) -> Vec<FormerlyNamed> {
    let time = Instant::now();
    let remembered = before.formerly_named.iter().filter(|former| time < former.until).cloned();
    let is_lost = |service: &&Arc<Service>| {
        now.named.get(&service.port).is_none_or(|present| present.name != service.name)
    };
    let lost = before.named.values().filter(is_lost).cloned();
    remembered.chain(lost.map(|service| FormerlyNamed { service, until: time + FORMER_NAMES })).collect()
}

fn local_services(catalog: &Catalog, served: &Served, own: &SpiffeId) -> LocalServices {
    let is_own = |node: &NodeName| Some(node) == own.node();
    let peers: HashMap<NodeName, HashSet<IpAddr>> = catalog
        .hosts
        .values()
        .filter(|host| !is_own(&host.node))
        .map(|host| (host.node.clone(), host.report.addresses.iter().copied().collect()))
        .collect();
    let hosts = catalog.addresses().into_iter().filter(|(_, node)| !is_own(node));
    let hosts = hosts.map(|(address, node)| (address, node.clone())).collect();
    let mut named = BTreeMap::new();
    for service in catalog.policy.services().values().filter(|service| service.hosts.iter().any(is_own)) {
        named.entry(service.port).or_insert_with(|| service.clone());
    }
    let (addresses, listeners) = (served.addresses.clone(), served.listeners.clone());
    let mut services =
        LocalServices { addresses, listeners, peers, hosts, named, ..LocalServices::default() };
    let Some(node) = own.node() else { return services };
    let ports: BTreeSet<_> = services.listeners.iter().map(|listener| listener.address.port()).collect();
    let destinations = ports
        .iter()
        .flat_map(|port| services.addresses.iter().map(|address| SocketAddr::new(*address, *port)));
    let subjects = destinations.filter_map(|destination| services.subject(node, destination));
    let identity = |subject| Arc::new(SpiffeId { trust_domain: own.trust_domain.clone(), subject });
    services.identities = subjects.map(identity).collect();
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_this_host_is_told_by_its_address_or_the_name_of_the_host() {
        let servers = ["10.0.0.1:7777", "[fd00::1]:7778", "here:7779", "10.0.0.2:1", "elsewhere:2"]
            .map(|server| server.parse().expect("an address"));
        let own = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().expect("literal")).into();
        assert_eq!(server_ports(&servers, &"here".parse().expect("a name"), &own), [7777, 7778, 7779]);
    }

    #[test]
    fn an_upstream_is_a_host_of_the_mesh_or_an_address() {
        assert_eq!("10.0.0.1:80".parse(), Ok(Upstream::Address("10.0.0.1:80".parse().expect("literal"))));
        assert_eq!("fcs00:8181".parse(), Ok(Upstream::Node("fcs00".parse().expect("literal"), 8181)));
        for wrong in ["fcs00", "fcs00:x", ":80", "FCS:70000"] {
            assert!(wrong.parse::<Upstream>().is_err(), "{wrong}");
        }
    }
}
