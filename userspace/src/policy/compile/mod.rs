//! From rules to the entries of the kernel half's maps. Pure: what is known of this host goes in, what the maps must
//! hold comes out, and the changes between two of these in an order that never opens a hole.
//!
//! What rules cannot tell apart shares a number: sources, and destinations. A destination carries the verdict of all
//! sources that no rule tells from the others; only where a source's own verdict differs there is an entry for the
//! pair. So the entries grow with what the rules say, and not with hosts times services.

mod changes;
mod classes;
mod denials;
mod egress;
mod modes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use murmesh_common::{
    self as kernel, DenialKey, Endpoint, NO_ROOM, NetworkKey, PolicyState, SocketAddress, UserKey,
    VerdictKey, WorkloadEntry,
};

pub use changes::{Change, changes, removals};

use super::{Action, Destination, Policy, Protocol, Verdict};
use crate::discovery::ExemptPorts;
use crate::identity::{NodeName, WorkloadName};
use crate::workload::Cgroup;
use classes::{Destinations, Numbers, Sources};

/// Who is who on this host.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    /// The rules.
    pub policy: &'a Policy,
    /// The host's name.
    pub node: &'a NodeName,
    /// Who the processes of each cgroup are.
    pub cgroups: &'a HashMap<u64, Cgroup>,
    /// Users of whom rules speak.
    pub users: &'a BTreeMap<u32, WorkloadName>,
    /// Ports on which workloads of this host listen: they go by the names of these services.
    pub listening: &'a HashMap<WorkloadName, BTreeSet<u16>>,
}

/// This host, as far as what its kernel half must know depends on it.
pub struct View<'a> {
    /// Who is who on it.
    pub who: Who<'a>,
    /// What connections are redirected to, and this host's own services.
    pub endpoints: Vec<Reachable>,
    /// This host's addresses: not outside of the mesh, whatever network they are in.
    pub addresses: &'a BTreeSet<IpAddr>,
    /// Addresses of the hosts of the mesh, and whose they are.
    pub mesh: &'a BTreeMap<IpAddr, &'a NodeName>,
    /// Ports of this host that the mesh leaves alone.
    pub exempt: &'a ExemptPorts,
}

/// One destination that the kernel half knows by its exact address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reachable {
    /// The address as it is dialled. A service of this host that listens on any address is also reached by 127.0.0.1
    /// and ::1, which stand for all that is loopback. By ::1 even if it listens for IPv4 only: an IPv6 socket that is
    /// bound to a mapped address gets there when it dials `::`.
    pub address: SocketAddr,
    /// How connections to it are to be seen; `None` for a service of this host, which are never redirected.
    pub source: Option<IpAddr>,
    /// Whether anybody serves it now. If not, connections to it are refused as where nobody listens.
    pub available: bool,
    /// Who is there; `None` for what no rule is about.
    pub destination: Option<Destination>,
}

/// Entries that the maps have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// `ENDPOINTS`.
    pub endpoints: usize,
    /// `VERDICTS`, and `DENIALS`.
    pub verdicts: usize,
    /// `EGRESS`, and `EXCEPTIONS`.
    pub egress: usize,
    /// `WORKLOADS`.
    pub workloads: usize,
    /// `USERS`.
    pub users: usize,
}

/// Leading bits of a key in the tries `EGRESS` and `EXCEPTIONS`, and the key.
pub type NetworkEntry = (u32, NetworkKey);

/// What the maps hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// `POLICY`.
    pub state: PolicyState,
    /// `ENDPOINTS`.
    pub endpoints: HashMap<SocketAddress, Endpoint>,
    /// `WORKLOADS`.
    pub workloads: HashMap<u64, WorkloadEntry>,
    /// `USERS`.
    pub users: HashMap<UserKey, kernel::SourceClass>,
    /// `VERDICTS`.
    pub verdicts: HashMap<VerdictKey, kernel::Verdict>,
    /// `EGRESS`.
    pub egress: HashMap<NetworkEntry, kernel::Destination>,
    /// `PORTS`, by port in network byte order.
    pub ports: HashMap<u16, u32>,
    /// `EXCEPTIONS`.
    pub exceptions: HashMap<NetworkEntry, u32>,
    /// `ADDRESSES`.
    pub addresses: HashMap<[u32; 4], u32>,
    /// `DENIALS`.
    pub denials: HashMap<DenialKey, u32>,
}

impl Tables {
    /// Whether any service of this host is strict.
    pub fn is_strict(&self) -> bool {
        let mut modes = self.ports.values().copied().chain([self.state.mode]);
        modes.any(|mode| mode >= kernel::PortMode::Strict as u32)
    }
}

/// Something did not fit into a map, and is refused for that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{map} has room for {room} of {wanted} entries: {consequence}; start the agent with a higher {option}"
)]
pub struct Full {
    map: &'static str,
    room: usize,
    wanted: usize,
    consequence: &'static str,
    option: &'static str,
}

/// Makes tables. Keeps the numbers that it has given, so that what a change does not concern keeps its number.
#[derive(Debug)]
pub struct Compiler {
    room: Room,
    numbers: Numbers,
    /// Of the sources that the last tables have verdicts for.
    judged: BTreeSet<kernel::SourceClass>,
}

impl Compiler {
    /// For maps of some size that may hold `present` already, from an earlier agent.
    pub fn new(room: Room, present: &Tables) -> Self {
        Self { room, numbers: Numbers::beyond(present), judged: BTreeSet::new() }
    }

    /// What the maps must hold, and what does not fit.
    pub fn compile(&mut self, view: &View<'_>) -> (Tables, Vec<Full>) {
        let (mut tables, mut full) = (Tables::default(), Vec::new());
        let (policy, sources) = (view.who.policy, Sources::new(&view.who, &mut self.numbers));
        self.judged = sources.numbers().collect();
        let mut destinations = Destinations::new(policy);
        let policed = |destination: &&Destination| !policy.is_observed(destination);
        let mut index =
            |reachable: &Reachable| Some(destinations.add(reachable.destination.as_ref().filter(policed)?));
        let indexes: Vec<Option<usize>> = view.endpoints.iter().map(&mut index).collect();
        let nodes = egress::nodes(policy, view.addresses);
        let nodes = nodes.into_iter().map(|(entry, node)| (entry, node.index(&mut destinations))).collect();

        let judged = destinations.judge(&sources, &mut self.numbers, self.room.verdicts);
        full.extend(judged.full);
        tables.verdicts = judged.verdicts;
        let endpoints = endpoints(policy, &view.endpoints, &indexes, &judged.destinations);
        let left_out = self.put_endpoints(&mut tables, endpoints, &mut full);
        self.put_egress(&mut tables, nodes, &left_out, &judged.destinations, &mut full);
        self.put_sources(&mut tables, sources, &mut full);
        let groups = denials::put(&mut tables, view, &mut self.numbers, self.room.verdicts, &mut full);
        modes::put(&mut tables, view, &groups, &self.room, &mut full);
        self.numbers.forget_unused();
        (tables, full)
    }

    /// What changes when workloads come or go while rules, services and all that is in the last tables but workloads
    /// and users stay as they are: far less to do than all of it. `None` if there is one for which there are no
    /// verdicts, or no room: then all of it must be done.
    pub fn follow(&mut self, who: &Who<'_>, present: &Tables) -> Option<Vec<Change>> {
        let sources = Sources::new(who, &mut self.numbers);
        let (mut wanted, mut full) = (Tables::default(), Vec::new());
        if !sources.numbers().all(|number| self.judged.contains(&number)) {
            return None;
        }
        self.put_sources(&mut wanted, sources, &mut full);
        let (workloads, users) = (present.workloads.clone(), present.users.clone());
        full.is_empty().then(|| changes(&Tables { workloads, users, ..Tables::default() }, &wanted))
    }

    /// What goes beyond the room must not go in clear: it is returned, to be refused as if it were outside the mesh.
    fn put_endpoints(
        &self,
        tables: &mut Tables,
        mut endpoints: Vec<(SocketAddr, Endpoint)>,
        full: &mut Vec<Full>,
    ) -> Vec<SocketAddr> {
        let (room, wanted) = (self.room.endpoints, endpoints.len());
        let mut left_out = Vec::new();
        if wanted > room {
            // Loopback first: nothing else would refuse connections to it.
            endpoints.sort_by_key(|(address, _)| (!address.ip().is_loopback(), *address));
            left_out = endpoints.split_off(room).into_iter().map(|(address, _)| address).collect();
            full.push(Full {
                map: "ENDPOINTS",
                room,
                wanted,
                consequence: "connections to the others are refused",
                option: "--max-endpoints",
            });
        }
        let own = endpoints.iter().filter(|(_, endpoint)| endpoint.destination.flags & OWN != 0);
        tables.state.loopback = u32::from(own.into_iter().any(|(address, _)| address.ip().is_loopback()));
        let entries = endpoints.into_iter().map(|(address, endpoint)| (address.into(), endpoint));
        tables.endpoints = entries.collect();
        left_out
    }

    fn put_egress(
        &self,
        tables: &mut Tables,
        nodes: HashMap<NetworkEntry, egress::Judged>,
        left_out: &[SocketAddr],
        destinations: &[kernel::Destination],
        full: &mut Vec<Full>,
    ) {
        let nodes = nodes.into_iter().map(|(entry, judged)| (entry, judged.destination(destinations)));
        let nodes: HashMap<_, _> = nodes.chain(egress::refusals(left_out)).collect();
        tables.state.egress = u32::from(!nodes.is_empty());
        if nodes.len() <= self.room.egress {
            tables.egress = nodes;
            return;
        }
        full.push(Full {
            map: "EGRESS",
            room: self.room.egress,
            wanted: nodes.len(),
            consequence: "every connection to somewhere outside the mesh is refused",
            option: "--max-egress",
        });
        tables.egress = egress::closed();
    }

    fn put_sources(&self, tables: &mut Tables, sources: Sources, full: &mut Vec<Full>) {
        let (mut users, mut workloads) = (sources.users, sources.workloads);
        if users.len() > self.room.users {
            full.push(Full {
                map: "USERS",
                room: self.room.users,
                wanted: users.len(),
                consequence: "nobody who is told by a user or group gets where that depends on who it is",
                option: "--max-users",
            });
            users.clear();
            workloads.retain(|_, entry| entry.by_user == 0 && entry.by_group == 0);
        }
        if workloads.len() > self.room.workloads {
            full.push(Full {
                map: "WORKLOADS",
                room: self.room.workloads,
                wanted: workloads.len(),
                consequence: "the others do not get where that depends on who they are",
                option: "--max-workloads",
            });
            workloads = workloads.into_iter().take(self.room.workloads).collect();
        }
        (tables.users, tables.workloads) = (users, workloads.into_iter().collect());
    }
}

/// Services of this host that anybody may connect to need no entry: they are not redirected anyway. Those of others
/// that are only observed do: without, they would count as outside the mesh.
fn endpoints(
    policy: &Policy,
    reachable: &[Reachable],
    indexes: &[Option<usize>],
    destinations: &[kernel::Destination],
) -> Vec<(SocketAddr, Endpoint)> {
    let entry = |(reachable, index): (&Reachable, &Option<usize>)| {
        let destination = index.map_or(kernel::Destination::OPEN, |index| destinations[index]);
        let is_observed =
            reachable.destination.as_ref().is_some_and(|destination| policy.is_observed(destination));
        let endpoint = match reachable.source {
            Some(_) if is_observed => {
                let destination = kernel::Destination { flags: OWN, ..kernel::Destination::OPEN };
                Endpoint { source: SocketAddress::default(), destination }
            }
            Some(source) => {
                let unavailable = if reachable.available { 0 } else { kernel::Destination::UNAVAILABLE };
                let is_strict =
                    reachable.destination.as_ref().is_some_and(|destination| policy.is_strict(destination));
                let strict = if is_strict { kernel::Destination::STRICT } else { 0 };
                let flags = destination.flags | unavailable | strict;
                let destination = kernel::Destination { flags, ..destination };
                Endpoint { source: SocketAddr::new(source, 0).into(), destination }
            }
            None if destination == kernel::Destination::OPEN => return None,
            None => {
                let flags = destination.flags | OWN;
                let destination = kernel::Destination { flags, ..destination };
                Endpoint { source: SocketAddress::default(), destination }
            }
        };
        Some((reachable.address, endpoint))
    };
    reachable.iter().zip(indexes).filter_map(entry).collect()
}

/// Of an allowed connection the kernel half needs no rule: entries change less often without.
fn kernel_verdict(verdict: Verdict) -> kernel::Verdict {
    let number = |rule: Option<super::RuleId>| rule.map_or(0, super::RuleId::number);
    match verdict.action {
        Action::Deny => kernel::Verdict { denied: 1, rule: number(verdict.rule), dry_run: 0 },
        Action::Allow => kernel::Verdict { denied: 0, rule: 0, dry_run: number(verdict.dry_run) },
    }
}

const OWN: u32 = kernel::Destination::OWN;

/// Refused, because the verdicts about it did not fit.
const CLOSED: kernel::Destination = kernel::Destination {
    class: 0,
    flags: 0,
    verdict: kernel::Verdict { denied: 1, rule: NO_ROOM, dry_run: 0 },
};

impl From<Protocol> for kernel::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}
