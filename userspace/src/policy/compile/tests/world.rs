//! A host of the mesh, what the rules say of calls on it, and what its kernel half decides.

use std::cell::Cell;

use murmesh_common::{
    Action as Done, Admission, Arrival, Attempt, Decision, DenialKey, Group, Knowledge, Settings,
    SourceClass, Surroundings, UNKNOWN_SOURCE, admission, decide, decide_datagram,
};
use proptest::prelude::*;

use super::super::*;
use crate::policy::tests::{ADDRESSES, NODES, PORTS, SERVICES, WORKLOADS, policy, service};
use crate::policy::{Party, Service};

const SETTINGS: Settings = Settings { netns_cookie: 7, mark: 1, outbound_port: 0, fail_open: 0 };
/// Plenty.
pub const ROOM: Room = Room { endpoints: 100, verdicts: 10_000, egress: 10_000, workloads: 100, users: 100 };
pub const UNIT: u64 = 1;
pub const OTHER_UNIT: u64 = 2;
pub const BY_USER: u64 = 3;
/// By user, but for one who is a workload.
const MIXED: u64 = 4;
/// A unit, and one user who is another workload.
const MIXED_UNIT: u64 = 5;
/// By user, but for a group that is a workload.
const GROUPS: u64 = 6;
/// A unit, and a group that is another one.
const GROUPS_OF_UNIT: u64 = 7;
pub const UNSEEN: u64 = 8;

/// A host of the mesh, with rules about it.
#[derive(Clone, Debug)]
pub struct World {
    pub policy: Policy,
    /// Who listens on the ports of the two hosts.
    pub listeners: Vec<Option<WorkloadName>>,
    pub listening: HashMap<WorkloadName, BTreeSet<u16>>,
}

pub fn name(text: &str) -> WorkloadName {
    text.parse().unwrap()
}

pub fn node(index: usize) -> NodeName {
    NODES[index].parse().unwrap()
}

pub fn here() -> BTreeSet<IpAddr> {
    BTreeSet::from(["10.1.0.1".parse().unwrap(), ADDRESSES[0].parse().unwrap()])
}

/// A cgroup of which all is this workload.
pub fn unit(text: &str) -> Cgroup {
    Cgroup { workload: Some(name(text)), ..Cgroup::default() }
}

impl World {
    pub fn cgroups() -> HashMap<u64, Cgroup> {
        let other = |id| BTreeMap::from([(id, name("other.service"))]);
        let nginx = |id| BTreeMap::from([(id, name("nginx.service"))]);
        HashMap::from([
            (UNIT, unit("nginx.service")),
            (OTHER_UNIT, unit("other.service")),
            (BY_USER, Cgroup::default()),
            (MIXED, Cgroup { by_uid: nginx(1), ..Cgroup::default() }),
            (MIXED_UNIT, Cgroup { by_uid: nginx(0), ..unit("other.service") }),
            (GROUPS, Cgroup { by_gid: nginx(1), ..Cgroup::default() }),
            (GROUPS_OF_UNIT, Cgroup { by_uid: nginx(1), by_gid: other(0), ..unit("nginx.service") }),
        ])
    }

    /// On the other host, and on this one by its address and by loopback.
    fn endpoints(&self) -> Vec<Reachable> {
        let mut endpoints = Vec::new();
        for (index, listener) in self.listeners.iter().enumerate() {
            let (host, port) = (index / PORTS.len(), PORTS[index % PORTS.len()]);
            let destination = self.policy.destination(&node(host), listener.clone(), port);
            let reachable = |ip: &str, source| Reachable {
                address: SocketAddr::new(ip.parse().unwrap(), port),
                source,
                available: true,
                destination: Some(destination.clone()),
            };
            if host == 0 {
                endpoints.extend(["10.1.0.1", "127.0.0.1", "::1"].map(|ip| reachable(ip, None)));
            } else {
                endpoints.push(reachable("10.1.0.2", Some([10, 1, 0, 1].into())));
            }
        }
        endpoints
    }

    pub fn compile(&self, compiler: &mut Compiler) -> (Tables, Vec<Full>) {
        self.with(&Self::cgroups(), |who| {
            compiler.compile(&View {
                who,
                endpoints: self.endpoints(),
                addresses: &here(),
                mesh: &BTreeMap::from([("10.1.0.2".parse().unwrap(), &node(1))]),
                exempt: &ExemptPorts::default(),
            })
        })
    }

    pub fn with<T>(&self, cgroups: &HashMap<u64, Cgroup>, work: impl FnOnce(Who<'_>) -> T) -> T {
        work(Who {
            policy: &self.policy,
            node: &node(0),
            cgroups,
            users: &BTreeMap::from([(0, name("user-root"))]),
            listening: &self.listening,
        })
    }

    fn source(&self, call: &Call) -> Option<Party> {
        let cgroup = Self::cgroups().remove(&call.cgroup)?;
        let user = || if call.uid == 0 { name("user-root") } else { WorkloadName::of_uid(call.uid) };
        let workload = cgroup
            .by_gid
            .get(&call.gid)
            .or(cgroup.by_uid.get(&call.uid))
            .cloned()
            .or(cgroup.workload)
            .unwrap_or_else(user);
        let ports = self.listening.get(&workload).into_iter().flatten().copied();
        Some(self.policy.source(&node(0), Some(workload.clone()), ports))
    }

    /// What the rules say of a call: nothing of what is neither in the mesh nor outside of it.
    fn verdict(&self, call: &Call) -> Option<kernel::Verdict> {
        let destination = self
            .endpoints()
            .into_iter()
            .find(|reachable| reachable.address == call.destination && call.protocol == Protocol::Tcp);
        let destination = match destination {
            Some(reachable) => reachable.destination?,
            None if here().contains(&call.destination.ip()) || call.destination.ip().is_loopback() => {
                return None;
            }
            None => Destination::outside(call.destination, call.protocol),
        };
        let others = self.policy.source(&node(0), None, []);
        let verdict = self.policy.verdict(&self.source(call).unwrap_or(others), &destination);
        Some(kernel_verdict(verdict))
    }

    /// Whether a rule refuses anything on the other host the port, whoever listens there.
    pub fn could_refuse(&self, port: u16) -> bool {
        let names = || WORKLOADS.into_iter().chain(["other.service"]).map(name);
        let workloads = || names().map(Some).chain([None]);
        let ports = [&[][..], &PORTS[..1], &PORTS[1..], &PORTS[..]];
        let sources = workloads().flat_map(|workload| {
            ports.map(|ports| self.policy.source(&node(1), workload.clone(), ports.iter().copied()))
        });
        let destinations: Vec<_> =
            workloads().map(|workload| self.policy.destination(&node(0), workload, port)).collect();
        let is_refused = |source: Party| {
            let verdict = |to| self.policy.verdict(&source, to).action;
            destinations.iter().any(|destination| verdict(destination) == Action::Deny)
        };
        sources.into_iter().any(is_refused)
    }

    /// The decision that follows.
    pub fn decision(&self, call: &Call) -> Decision {
        let is_carried = call.destination.ip() == IpAddr::from([10, 1, 0, 2])
            && PORTS.contains(&call.destination.port())
            && call.protocol == Protocol::Tcp
            && self.policy.mode_at(&node(1), call.destination.port()) != crate::policy::Mode::Observe;
        let action =
            if is_carried { Done::Redirect(SocketAddr::from(([10, 1, 0, 1], 0)).into()) } else { Done::Pass };
        match self.verdict(call) {
            Some(verdict) if verdict.denied != 0 => {
                Decision { action: Done::Deny, report: Some(verdict.rule) }
            }
            verdict => {
                let report = verdict.map(|verdict| verdict.dry_run).filter(|rule| *rule != 0);
                Decision { action, report }
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct Call {
    cgroup: u64,
    uid: u32,
    gid: u32,
    destination: SocketAddr,
    protocol: Protocol,
}

/// The kernel half, in the middle of a call.
struct Kernel<'a> {
    tables: &'a Tables,
    call: &'a Call,
    asked_for_source: Cell<bool>,
}

impl Knowledge for Kernel<'_> {
    fn is_in_agents_cgroup(&self) -> bool {
        false
    }
    fn policy(&self) -> PolicyState {
        self.tables.state
    }
    fn endpoint(&self, destination: &SocketAddress) -> Option<Endpoint> {
        self.tables.endpoints.get(destination).copied()
    }
    fn workload(&self) -> Option<WorkloadEntry> {
        self.asked_for_source.set(true);
        self.tables.workloads.get(&self.call.cgroup).copied()
    }
    fn user(&self, scope: u32) -> Option<SourceClass> {
        self.tables.users.get(&UserKey { scope, id: self.call.uid }).copied()
    }
    fn group(&self, scope: u32) -> Option<SourceClass> {
        self.tables.users.get(&UserKey { scope, id: self.call.gid }).copied()
    }
    fn verdict(&self, key: &VerdictKey) -> Option<kernel::Verdict> {
        self.tables.verdicts.get(key).copied()
    }
    fn egress(
        &self,
        destination: &SocketAddress,
        port: u16,
        protocol: kernel::Protocol,
    ) -> Option<kernel::Destination> {
        longest_prefix(self.tables, &NetworkKey::new(destination, port, protocol))
    }
    fn agent_listens(&self) -> bool {
        true
    }
}

/// The kernel half, when a connection in clear arrives.
struct Arriving<'a>(&'a Tables);

impl Surroundings for Arriving<'_> {
    fn policy(&self) -> PolicyState {
        self.0.state
    }
    fn port_mode(&self, port: u16) -> Option<u32> {
        self.0.ports.get(&port).copied()
    }
    fn owner(&self, address: &SocketAddress) -> Option<u32> {
        self.0.addresses.get(&address.ip).copied()
    }
    fn is_denied(&self, group: Group, port: u16) -> bool {
        let denial = |port| self.0.denials.get(&DenialKey { group, port, padding: 0 });
        denial(port).or(denial(0)).is_none_or(|denied| *denied != 0)
    }
    fn is_excepted(&self, _: &Arrival) -> bool {
        false
    }
}

/// What becomes of a connection in clear to a port of this host.
pub fn admitted(tables: &Tables, from: &str, port: u16) -> Admission {
    let address = |ip: &str, port| SocketAddress::from(SocketAddr::new(ip.parse().unwrap(), port));
    let arrival = Arrival { local: address("10.1.0.1", port), remote: address(from, 40_000) };
    admission(&arrival, &Arriving(tables))
}

fn longest_prefix(tables: &Tables, key: &NetworkKey) -> Option<kernel::Destination> {
    let bits = |key: &NetworkKey| {
        let exact = (key.port, key.protocol, key.version);
        let ip = key.ip.iter().fold(0_u128, |ip, word| ip << 32 | u128::from(u32::from_be(*word)));
        (exact, ip)
    };
    let covers = |(length, prefix): &NetworkEntry| {
        let rest = 128 + NetworkKey::EXACT_BITS - length;
        let ((exact, ip), (wanted, address)) = (bits(prefix), bits(key));
        exact == wanted && (ip ^ address).checked_shr(rest).unwrap_or(0) == 0
    };
    let covering = tables.egress.iter().filter(|(entry, _)| covers(entry));
    covering.max_by_key(|((length, _), _)| *length).map(|(_, destination)| *destination)
}

/// The decision, and whether it depended on a source that is not known.
pub fn decided(tables: &Tables, call: &Call) -> (Decision, bool) {
    let kernel = Kernel { tables, call, asked_for_source: Cell::new(false) };
    let attempt = Attempt {
        destination: call.destination.into(),
        protocol: Some(call.protocol.into()),
        mark: 0,
        netns_cookie: SETTINGS.netns_cookie,
        bound_interface: 0,
    };
    let decision = decide(&SETTINGS, &attempt, &kernel);
    if call.protocol == Protocol::Udp {
        assert_eq!(decide_datagram(&SETTINGS, &attempt, &kernel), decision, "connected or not");
    }
    let class = tables.workloads.get(&call.cgroup).map(|entry| {
        let group = tables.users.get(&UserKey { scope: entry.by_group, id: call.gid });
        let user = tables.users.get(&UserKey { scope: entry.by_user, id: call.uid });
        let group = group.filter(|_| entry.by_group != 0);
        *group.or(user.filter(|_| entry.by_user != 0)).unwrap_or(&entry.class)
    });
    let is_known = class.is_some_and(|class| class != kernel::CLASS_CHANGES);
    (decision, kernel.asked_for_source.get() && !is_known)
}

/// What is right for a source that is not known: the agent finds out, and where there is none it is refused.
pub fn of_unknown_source(decision: &Decision) -> bool {
    decision.report == Some(UNKNOWN_SOURCE) && decision.action == Done::Deny
        || matches!(decision.action, Done::Redirect(_)) && decision.report.is_none()
}

pub fn worlds() -> impl Strategy<Value = World> {
    let listener =
        || prop::option::of(prop::sample::select(vec!["nginx.service", "user-root"]).prop_map(name));
    let mode = prop::option::weighted(0.3, Just(crate::policy::Mode::Observe));
    let named = prop::collection::vec((0..NODES.len(), 0..PORTS.len(), mode), 0..=SERVICES.len());
    let ports = || prop::sample::subsequence(PORTS.to_vec(), 0..=PORTS.len());
    (policy(), prop::collection::vec(listener(), NODES.len() * PORTS.len()), named, ports(), ports())
        .prop_map(|(mut policy, listeners, named, of_unit, of_user)| {
            for (name, (node, port, mode)) in SERVICES.iter().zip(named) {
                policy.put_service(Service { mode, ..service(name, NODES[node], PORTS[port]) });
            }
            let listening = [("nginx.service", of_unit), ("user-root", of_user)];
            let listening =
                listening.into_iter().map(|(unit, ports)| (name(unit), ports.into_iter().collect()));
            World { policy, listeners, listening: listening.collect() }
        })
}

pub fn calls() -> impl Strategy<Value = Vec<Call>> {
    let addresses: Vec<IpAddr> = ["10.1.0.1", "10.1.0.2", "127.0.0.1", "::1"]
        .iter()
        .chain(&ADDRESSES)
        .map(|address| address.parse().unwrap())
        .collect();
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let port = prop::sample::select(vec![PORTS[0], PORTS[1], 9]);
    let call = (UNIT..=UNSEEN, (0_u32..2, 0_u32..2), prop::sample::select(addresses), port, protocol)
        .prop_map(|(cgroup, (uid, gid), ip, port, protocol)| Call {
            cgroup,
            uid,
            gid,
            destination: SocketAddr::new(ip, port),
            protocol,
        });
    prop::collection::vec(call, 1..24)
}
