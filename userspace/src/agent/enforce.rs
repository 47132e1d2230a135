//! Keeps the kernel half's maps in step with rules, catalog, workloads and what this host serves.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use murmesh_common::{Destination, Endpoint};
use tokio::sync::watch;
use tracing::{debug, error};

use super::{canary::CANARIES, discover::Served, reset::Resetter};
use crate::{
    bpf::{BpfError, PolicyMaps},
    catalog::{Listener, choose},
    discovery::ExemptPorts,
    identity::{NodeName, WorkloadName},
    policy::{
        Policy,
        compile::{Compiler, Full, Reachable, Room, Tables, View, Who},
    },
    proxy::Routes,
    workload::{Cgroup, NamedUsers, Workloads},
};

/// What is wrong with the maps, in words; empty if nothing is. For `status` and `check`.
pub type Problems = Arc<ArcSwap<Vec<String>>>;

/// The maps, which the watchdog looks after too.
pub type SharedMaps = Arc<Mutex<PolicyMaps>>;

/// The maps, and what they are made of.
pub struct Enforcement {
    maps: SharedMaps,
    compiler: Compiler,
    workloads: watch::Receiver<Workloads>,
    problems: Problems,
    full: Vec<Full>,
    is_written: bool,
    resetter: Resetter,
}

/// What is known, beside this host's workloads.
pub struct Known<'a> {
    /// The rules.
    pub policy: &'a Policy,
    /// This host's name.
    pub node: &'a NodeName,
    /// What it serves, by which addresses.
    pub serving: &'a Served,
    /// What it reaches through the mesh.
    pub routes: &'a Routes,
    /// Addresses of the mesh's hosts, and whose they are.
    pub mesh: &'a BTreeMap<IpAddr, &'a NodeName>,
    /// Ports that are never meshed.
    pub exempt: &'a ExemptPorts,
}

impl Enforcement {
    /// Goes on with what is in the maps.
    pub fn new(
        maps: SharedMaps,
        room: Room,
        workloads: watch::Receiver<Workloads>,
        problems: Problems,
    ) -> Self {
        let compiler = Compiler::new(room, locked(&maps).present());
        Self {
            maps,
            compiler,
            workloads,
            problems,
            full: Vec::new(),
            is_written: false,
            resetter: Resetter::default(),
        }
    }

    /// Has the kernel half know which workloads come and go, until there is one for which that is not enough, and
    /// [`Self::enforce`] must be called again. `policy` and `serving` are those of the last such call.
    ///
    /// # Errors
    /// Workloads are not followed any more.
    pub async fn follow_workloads(
        &mut self,
        policy: &Policy,
        node: &NodeName,
        serving: &Served,
    ) -> Result<(), watch::error::RecvError> {
        let listening = listening(serving);
        loop {
            self.workloads.changed().await?;
            let workloads = self.workloads.borrow_and_update().clone();
            let (cgroups, users) = known_sources(&workloads, policy, &listening);
            let who = Who { policy, node, cgroups: &cgroups, users: &users, listening: &listening };
            let mut maps = locked(&self.maps);
            let changes = self.compiler.follow(&who, maps.present());
            if changes.is_none_or(|changes| maps.write(changes).is_err()) {
                return Ok(());
            }
        }
    }

    /// Has workers take over `known.routes` by `take_over` when nothing is redirected any more that they do not have,
    /// and before anything is that they have new. Before the first catalog nothing is taken away or changed: what an
    /// agent that was killed redirected or refused stays so meanwhile. False if the kernel did not take all of it: it
    /// must be tried again.
    pub fn enforce(&mut self, known: &Known<'_>, take_over: impl FnOnce()) -> bool {
        let wanted = if known.routes.revision() > 0 { self.compile(known) } else { self.with_canaries() };
        let mut maps = locked(&self.maps);
        let written = maps.remove_endpoints(&wanted);
        take_over();
        let written = written.and_then(|()| maps.update(&wanted));
        drop(maps);
        let is_in_force = written.is_ok();
        self.is_written = is_in_force;
        self.tell(&wanted, written);
        is_in_force
    }

    /// Ends connections in clear that the last call of [`Self::enforce`] would have refused, where that is wanted.
    pub fn reset_existing(&mut self, known: &Known<'_>) {
        if self.is_written && known.routes.revision() > 0 {
            let Served { addresses, listeners, .. } = known.serving;
            self.resetter.follow(known.policy, known.node, known.exempt, listeners, addresses);
        }
    }

    fn with_canaries(&self) -> Tables {
        let mut tables = locked(&self.maps).present().clone();
        for canary in CANARIES {
            let source = SocketAddr::new(canary.ip(), 0).into();
            tables.endpoints.insert(canary.into(), Endpoint { source, destination: Destination::OPEN });
        }
        tables
    }

    fn compile(&mut self, known: &Known<'_>) -> Tables {
        let workloads = self.workloads.borrow_and_update().clone();
        let canaries = CANARIES.map(|address| Reachable {
            address,
            source: Some(address.ip()),
            available: true,
            destination: None,
        });
        let endpoints = canaries.into_iter().chain(elsewhere(known)).chain(here(known)).collect();
        let listening = listening(known.serving);
        let (cgroups, users) = known_sources(&workloads, known.policy, &listening);
        let who = Who {
            policy: known.policy,
            node: known.node,
            cgroups: &cgroups,
            users: &users,
            listening: &listening,
        };
        let (tables, full) = self.compiler.compile(&View {
            who,
            endpoints,
            addresses: &known.serving.addresses,
            mesh: known.mesh,
            exempt: known.exempt,
        });
        if full != self.full {
            full.iter().for_each(|full| error!("{full}"));
        }
        self.full = full;
        tables
    }

    fn tell(&self, wanted: &Tables, written: Result<(), BpfError>) {
        let mut problems: Vec<String> = self.full.iter().map(ToString::to_string).collect();
        match written {
            Ok(()) => debug!(endpoints = wanted.endpoints.len(), "maps updated"),
            Err(error) => {
                error!("what the kernel half enforces is not up to date: {error}");
                problems.push(format!("what the kernel half enforces is not up to date: {error}"));
            }
        }
        self.problems.store(Arc::new(problems));
    }
}

/// The maps, for one of those who write them.
pub fn locked(maps: &SharedMaps) -> MutexGuard<'_, PolicyMaps> {
    maps.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom the kernel half may tell apart by now. While a user of whom a rule speaks cannot be looked up, it does not know
/// who is in the cgroups in which users are told apart.
fn known_sources<'a>(
    workloads: &'a Workloads,
    policy: &Policy,
    listening: &HashMap<WorkloadName, BTreeSet<u16>>,
) -> (Cow<'a, HashMap<u64, Cgroup>>, BTreeMap<u32, WorkloadName>) {
    let NamedUsers { users, incomplete } = workloads.users().named(policy, listening.keys());
    if !incomplete {
        return (Cow::Borrowed(workloads.cgroups()), users);
    }
    let of_units = workloads.cgroups().iter().filter(|(_, cgroup)| cgroup.workload.is_some());
    (Cow::Owned(of_units.map(|(id, cgroup)| (*id, cgroup.clone())).collect()), users)
}

/// What is redirected.
fn elsewhere(known: &Known<'_>) -> impl Iterator<Item = Reachable> {
    known.routes.iter().map(|(address, route)| {
        let (node, workload) = (&route.peer.node, route.peer.workload.clone());
        let destination = Some(known.policy.destination(node, workload, address.port()));
        let available = route.is_available();
        Reachable { address, source: Some(route.source), available, destination }
    })
}

/// This host's own services, by every address that leads to them.
fn here(known: &Known<'_>) -> Vec<Reachable> {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut services = BTreeMap::new();
    for listener in &known.serving.listeners {
        let (bound, port) = (listener.address.ip(), listener.address.port());
        let Served { addresses, link_local, .. } = known.serving;
        let own = addresses.iter().chain(link_local).filter(|address| listener.accepts(**address)).copied();
        let any = loopback.into_iter().filter(|_| bound.is_unspecified());
        for ip in own.chain(any) {
            let address = SocketAddr::new(ip, port);
            services.entry(address).or_insert_with(|| choose(&known.serving.listeners, address));
        }
    }
    let reachable = |(address, listener): (SocketAddr, Option<&Listener>)| {
        let workload = listener.and_then(|listener| listener.workload.clone());
        let destination = known.policy.destination(known.node, workload, address.port());
        Reachable { address, source: None, available: true, destination: Some(destination) }
    };
    services.into_iter().map(reachable).collect()
}

/// The ports on which each workload of this host listens.
fn listening(serving: &Served) -> HashMap<WorkloadName, BTreeSet<u16>> {
    let mut ports = HashMap::<_, BTreeSet<_>>::new();
    for listener in &serving.listeners {
        if let Some(workload) = &listener.workload {
            ports.entry(workload.clone()).or_default().insert(listener.address.port());
        }
    }
    ports
}
