//! What the kernel half decides with the compiled tables, against the rules themselves.

use std::cell::Cell;

use murmesh_common::{
    Action as Done, Attempt, Decision, Knowledge, Settings, SourceClass, UNKNOWN_SOURCE, decide,
    decide_datagram,
};
use proptest::prelude::*;

use super::*;
use crate::policy::Party;
use crate::policy::tests::{ADDRESSES, NODES, PORTS, SERVICES, policy, service};

const SETTINGS: Settings = Settings { netns_cookie: 7, mark: 1, outbound_port: 0, padding: 0 };
/// Plenty.
const ROOM: Room = Room { endpoints: 100, verdicts: 10_000, egress: 10_000, workloads: 100, users: 100 };
const UNIT: u64 = 1;
const OTHER_UNIT: u64 = 2;
const BY_USER: u64 = 3;
const UNSEEN: u64 = 4;

/// A host of the mesh, with rules about it.
#[derive(Clone, Debug)]
struct World {
    policy: Policy,
    /// Who listens on the ports of the two hosts.
    listeners: Vec<Option<WorkloadName>>,
    listening: HashMap<WorkloadName, BTreeSet<u16>>,
}

fn name(text: &str) -> WorkloadName {
    text.parse().unwrap()
}

fn node(index: usize) -> NodeName {
    NODES[index].parse().unwrap()
}

fn here() -> BTreeSet<IpAddr> {
    BTreeSet::from(["10.1.0.1".parse().unwrap(), ADDRESSES[0].parse().unwrap()])
}

impl World {
    fn cgroups() -> HashMap<u64, Option<WorkloadName>> {
        let units = [(UNIT, "nginx.service"), (OTHER_UNIT, "other.service")];
        units.map(|(id, unit)| (id, Some(name(unit)))).into_iter().chain([(BY_USER, None)]).collect()
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

    fn compile(&self, compiler: &mut Compiler) -> (Tables, Vec<Full>) {
        compiler.compile(&View {
            policy: &self.policy,
            node: &node(0),
            cgroups: &Self::cgroups(),
            users: &BTreeMap::from([(0, name("user-root"))]),
            listening: &self.listening,
            endpoints: self.endpoints(),
            addresses: &here(),
            mesh: &BTreeSet::from(["10.1.0.2".parse().unwrap()]),
            exempt: &ExemptPorts::default(),
        })
    }

    fn source(&self, call: &Call) -> Option<Party> {
        let workload = match (Self::cgroups().remove(&call.cgroup)?, call.uid) {
            (Some(unit), _) => unit,
            (None, 0) => name("user-root"),
            (None, uid) => WorkloadName::of_uid(uid),
        };
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

    /// The decision that follows.
    fn decision(&self, call: &Call) -> Decision {
        let is_carried = call.destination.ip() == IpAddr::from([10, 1, 0, 2])
            && PORTS.contains(&call.destination.port())
            && call.protocol == Protocol::Tcp;
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
struct Call {
    cgroup: u64,
    uid: u32,
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
    fn user(&self) -> Option<SourceClass> {
        self.tables.users.get(&self.call.uid).copied()
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
fn decided(tables: &Tables, call: &Call) -> (Decision, bool) {
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
    let class = tables.workloads.get(&call.cgroup).map(|entry| match tables.users.get(&call.uid) {
        Some(class) if entry.by_user != 0 => *class,
        _ => entry.class,
    });
    let is_known = class.is_some_and(|class| class != kernel::CLASS_CHANGES);
    (decision, kernel.asked_for_source.get() && !is_known)
}

/// What is right for a source that is not known: the agent finds out, and where there is none it is refused.
fn of_unknown_source(decision: &Decision) -> bool {
    decision.report == Some(UNKNOWN_SOURCE) && decision.action == Done::Deny
        || matches!(decision.action, Done::Redirect(_)) && decision.report.is_none()
}

fn worlds() -> impl Strategy<Value = World> {
    let listener =
        || prop::option::of(prop::sample::select(vec!["nginx.service", "user-root"]).prop_map(name));
    let named = prop::collection::vec((0..NODES.len(), 0..PORTS.len()), 0..=SERVICES.len());
    let ports = || prop::sample::subsequence(PORTS.to_vec(), 0..=PORTS.len());
    (policy(), prop::collection::vec(listener(), NODES.len() * PORTS.len()), named, ports(), ports())
        .prop_map(|(mut policy, listeners, named, of_unit, of_user)| {
            for (name, (node, port)) in SERVICES.iter().zip(named) {
                policy.put_service(service(name, NODES[node], PORTS[port]));
            }
            let listening = [("nginx.service", of_unit), ("user-root", of_user)];
            let listening =
                listening.into_iter().map(|(unit, ports)| (name(unit), ports.into_iter().collect()));
            World { policy, listeners, listening: listening.collect() }
        })
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let addresses: Vec<IpAddr> = ["10.1.0.1", "10.1.0.2", "127.0.0.1", "::1"]
        .iter()
        .chain(&ADDRESSES)
        .map(|address| address.parse().unwrap())
        .collect();
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let port = prop::sample::select(vec![PORTS[0], PORTS[1], 9]);
    let call = (UNIT..=UNSEEN, 0_u32..2, prop::sample::select(addresses), port, protocol).prop_map(
        |(cgroup, uid, ip, port, protocol)| Call {
            cgroup,
            uid,
            destination: SocketAddr::new(ip, port),
            protocol,
        },
    );
    prop::collection::vec(call, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn decisions_with_the_tables_are_the_verdicts_of_the_rules(world in worlds(), calls in calls()) {
        let (tables, full) = world.compile(&mut Compiler::new(ROOM, &Tables::default()));
        prop_assert_eq!(full, vec![]);
        for call in calls {
            let (decision, unknown) = decided(&tables, &call);
            let right = decision == world.decision(&call);
            prop_assert!(if unknown { of_unknown_source(&decision) } else { right },
                "{:?}: {:?}, not {:?}", call, decision, world.decision(&call));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused(
        world in worlds(),
        calls in calls(),
        room in (1_usize..8, 0_usize..6, 1_usize..20, 1_usize..4, 0_usize..2),
    ) {
        let (endpoints, verdicts, egress, workloads, users) = room;
        // Those of this host alone always fit.
        let room = Room { endpoints: 3 * PORTS.len() + endpoints, verdicts, egress: 4 + egress, workloads, users };
        let (tables, full) = world.compile(&mut Compiler::new(room, &Tables::default()));
        prop_assert!(tables.endpoints.len() <= room.endpoints && tables.verdicts.len() <= room.verdicts);
        prop_assert!(tables.egress.len() <= room.egress && tables.users.len() <= room.users);
        prop_assert!(tables.workloads.len() <= room.workloads);
        for call in calls {
            let (decision, unknown) = decided(&tables, &call);
            let right = decision == world.decision(&call) || unknown && of_unknown_source(&decision);
            let closed = decision == Decision { action: Done::Deny, report: Some(NO_ROOM) };
            prop_assert!(right || closed && !full.is_empty(), "{:?}: {:?}", call, decision);
        }
    }
}

proptest! {
    // Each looks at every call after every single write.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_change_ever_opens_a_hole(before in worlds(), after in worlds(), restarted: bool, calls in calls()) {
        let mut compiler = Compiler::new(ROOM, &Tables::default());
        let (mut present, _) = before.compile(&mut compiler);
        if restarted {
            compiler = Compiler::new(ROOM, &present);
        }
        let (wanted, _) = after.compile(&mut compiler);
        let mut all = removals(&present, &wanted);
        all.extend(changes(&present, &wanted));
        for change in all {
            present.apply(change);
            for call in &calls {
                let (decision, unknown) = decided(&present, call);
                let expected = [before.decision(call), after.decision(call)];
                prop_assert!(
                    expected.contains(&decision) || unknown && of_unknown_source(&decision),
                    "{:?} after {:?}: {:?}, not {:?}", call, change, decision, expected
                );
            }
        }
        prop_assert_eq!(present, wanted);
    }
}

#[test]
fn without_rules_there_is_nothing_but_endpoints() {
    let world = World {
        policy: Policy::default(),
        listeners: vec![None; NODES.len() * PORTS.len()],
        listening: HashMap::new(),
    };
    let (tables, _) = world.compile(&mut Compiler::new(ROOM, &Tables::default()));
    assert_eq!(tables.endpoints.len(), PORTS.len(), "of the other host");
    assert_eq!((tables.state.egress, tables.state.loopback), (0, 0));
    assert!(tables.verdicts.is_empty() && tables.egress.is_empty() && tables.users.is_empty());
}

#[test]
fn what_a_new_rule_does_not_concern_keeps_its_entries() {
    let mut world = World {
        policy: Policy::default(),
        listeners: vec![None; NODES.len() * PORTS.len()],
        listening: HashMap::new(),
    };
    let rule = |number, source: &str, destination: &str| crate::policy::Rule {
        id: crate::policy::RuleId::new(number).unwrap(),
        action: Action::Deny,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        dry_run: false,
    };
    world.policy.put_rule(rule(1, "host/fcc00/nginx.service", "host/fcs00/*:80"));
    let mut compiler = Compiler::new(ROOM, &Tables::default());
    let (before, _) = world.compile(&mut compiler);
    world.policy.put_rule(rule(2, "host/fcc00/other.service", "host/fcs00/*:8181"));
    world.policy.remove_rule(crate::policy::RuleId::new(1).unwrap());
    world.policy.put_rule(rule(3, "host/fcc00/nginx.service", "host/fcs00/*:80"));
    let (after, _) = world.compile(&mut compiler);
    let changes = changes(&before, &after);
    let of_nginx = changes.iter().filter(|change| matches!(change, Change::Workload(UNIT, _)));
    assert_eq!(of_nginx.count(), 0, "{changes:?}");
    let endpoints = changes.iter().filter(|change| matches!(change, Change::Endpoint(..)));
    assert_eq!(endpoints.count(), 1, "only port 8181: {changes:?}");
}

#[test]
fn a_strict_port_lets_in_what_is_excepted_and_an_exempt_one_everybody() {
    let mut policy = Policy::default();
    for (name, port) in [("fortune", 8181), ("login", 22)] {
        let exceptions = BTreeSet::from(["192.0.2.0/24".parse().unwrap()]);
        let strict = Some(crate::policy::Mode::Strict);
        policy.put_service(crate::policy::Service {
            mode: strict,
            exceptions,
            ..service(name, NODES[0], port)
        });
    }
    let (listeners, listening) = (vec![None; NODES.len() * PORTS.len()], HashMap::new());
    let (tables, _) =
        World { policy, listeners, listening }.compile(&mut Compiler::new(ROOM, &Tables::default()));
    let mode = |port: u16| tables.ports.get(&port.to_be()).copied();
    assert_eq!(mode(8181), Some(kernel::PortMode::StrictWithExceptions as u32));
    assert_eq!(mode(22), Some(kernel::PortMode::Exempt as u32));
    assert_eq!((mode(80), tables.state.mode), (None, kernel::PortMode::Open as u32));
    assert_eq!(tables.exceptions.len(), 1, "of the strict one");
}
