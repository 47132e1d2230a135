use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const SETTINGS: Settings =
    Settings { netns_cookie: 7, mark: 0x6d6d, outbound_port: 15001_u16.to_be(), fail_open: 0 };

const SERVICE: SocketAddress = SocketAddress::from_v4(u32::from_ne_bytes([10, 0, 0, 2]), 80_u16.to_be());
const SOURCE: SocketAddress = SocketAddress::from_v4(u32::from_ne_bytes([10, 0, 0, 1]), 0);
const LOOPBACK: SocketAddress = SocketAddress::from_v4(u32::from_ne_bytes([127, 0, 0, 1]), 80_u16.to_be());

/// The one in which the caller may be a workload of its own.
const SCOPE: u32 = 1;

/// Maps in memory, of one caller.
#[derive(Clone, Debug, Default)]
struct World {
    is_in_agents_cgroup: bool,
    policy: PolicyState,
    endpoints: HashMap<SocketAddress, Endpoint>,
    workload: Option<WorkloadEntry>,
    user: Option<SourceClass>,
    group: Option<SourceClass>,
    verdicts: HashMap<VerdictKey, Verdict>,
    /// By port.
    egress: HashMap<u16, Destination>,
    agent_listens: bool,
}

impl Knowledge for World {
    fn is_in_agents_cgroup(&self) -> bool {
        self.is_in_agents_cgroup
    }
    fn policy(&self) -> PolicyState {
        self.policy
    }
    fn endpoint(&self, destination: &SocketAddress) -> Option<Endpoint> {
        self.endpoints.get(destination).copied()
    }
    fn workload(&self) -> Option<WorkloadEntry> {
        self.workload
    }
    fn user(&self, scope: u32) -> Option<SourceClass> {
        self.user.filter(|_| scope == SCOPE)
    }
    fn group(&self, scope: u32) -> Option<SourceClass> {
        self.group.filter(|_| scope == SCOPE)
    }
    fn verdict(&self, key: &VerdictKey) -> Option<Verdict> {
        self.verdicts.get(key).copied()
    }
    fn egress(&self, _destination: &SocketAddress, port: u16, protocol: Protocol) -> Option<Destination> {
        self.egress.get(&port).copied().filter(|_| protocol == Protocol::Tcp)
    }
    fn agent_listens(&self) -> bool {
        self.agent_listens
    }
}

fn attempt() -> Attempt {
    Attempt {
        destination: SERVICE,
        protocol: Some(Protocol::Tcp),
        mark: 0,
        netns_cookie: SETTINGS.netns_cookie,
        bound_interface: 0,
    }
}

/// A mesh with one service, without rules.
fn world(destination: Destination) -> World {
    World {
        endpoints: HashMap::from([(SERVICE, Endpoint { source: SOURCE, destination })]),
        agent_listens: true,
        ..World::default()
    }
}

fn forbidden_by(rule: RuleNumber) -> Destination {
    Destination { verdict: Verdict { denied: 1, rule, dry_run: 0 }, ..Destination::OPEN }
}

fn action(attempt: &Attempt, world: &World) -> Action {
    decide(&SETTINGS, attempt, world).action
}

#[test]
fn without_rules_a_mesh_endpoint_is_redirected_and_nothing_else() {
    let world = world(Destination::OPEN);
    assert_eq!(action(&attempt(), &world), Action::Redirect(SOURCE));
    let elsewhere = Attempt { destination: SocketAddress { port: 1, ..SERVICE }, ..attempt() };
    assert_eq!(action(&elsewhere, &world), Action::Pass);
}

#[test]
fn without_an_agent_a_mesh_endpoint_is_refused() {
    let world = World { agent_listens: false, ..world(Destination::OPEN) };
    assert_eq!(action(&attempt(), &world), Action::RefuseWithoutAgent);
}

#[test]
fn without_an_agent_a_host_that_fails_open_lets_go_in_clear_what_is_not_strict_and_no_rule_forbids() {
    let open = Settings { fail_open: 1, ..SETTINGS };
    let action = |destination, agent_listens| {
        decide(&open, &attempt(), &World { agent_listens, ..world(destination) }).action
    };
    let flags = |flags| Destination { flags, ..Destination::OPEN };
    assert_eq!(action(Destination::OPEN, false), Action::Pass);
    assert_eq!(action(Destination::OPEN, true), Action::Redirect(SOURCE));
    assert_eq!(action(flags(Destination::STRICT), false), Action::RefuseWithoutAgent);
    assert_eq!(action(flags(Destination::UNAVAILABLE), false), Action::RefuseUnavailable);
    assert_eq!(action(flags(Destination::BY_SOURCE), false), Action::RefuseWithoutAgent, "nobody judges it");
    assert_eq!(action(forbidden_by(3), false), Action::Deny);
}

#[test]
fn a_socket_bound_to_an_interface_never_goes_in_clear() {
    let bound = Attempt { bound_interface: 2, ..attempt() };
    assert_eq!(action(&bound, &world(Destination::OPEN)), Action::RefuseBoundInterface);
}

#[test]
fn a_service_that_nobody_serves_is_refused_after_the_rules_and_before_all_else() {
    let nobody = Destination { flags: Destination::UNAVAILABLE, ..Destination::OPEN };
    let world = World { agent_listens: false, ..world(nobody) };
    assert_eq!(action(&Attempt { bound_interface: 2, ..attempt() }, &world), Action::RefuseUnavailable);
    assert_eq!(
        action(&Attempt { netns_cookie: 8, ..attempt() }, &world),
        Action::Pass,
        "that of a container"
    );
    let denied = Destination { flags: Destination::UNAVAILABLE, ..forbidden_by(3) };
    assert_eq!(decide(&SETTINGS, &attempt(), &self::world(denied)), Decision::denied(3));
}

#[test]
fn a_denial_names_its_rule_and_comes_before_every_other_refusal() {
    let world = World { agent_listens: false, ..world(forbidden_by(3)) };
    let bound = Attempt { bound_interface: 2, ..attempt() };
    assert_eq!(decide(&SETTINGS, &bound, &world), Decision::denied(3));
    let foreign = Attempt { netns_cookie: 8, ..attempt() };
    assert_eq!(decide(&SETTINGS, &foreign, &world), Decision::denied(3), "in other namespaces too");
    let marked = Attempt { mark: SETTINGS.mark, ..attempt() };
    assert_eq!(decide(&SETTINGS, &marked, &world), Decision::denied(3), "whatever mark they have");
    let agent = World { is_in_agents_cgroup: true, ..world };
    assert_eq!(decide(&SETTINGS, &marked, &agent), Decision::PASS, "but not the agent's own");
    let disguised = Attempt { netns_cookie: 8, ..marked };
    assert_eq!(decide(&SETTINGS, &disguised, &agent), Decision::denied(3), "which are in its own namespace");
}

#[test]
fn a_caller_that_is_not_known_yet_is_left_to_the_agent_and_refused_where_there_is_none() {
    let by_source = Destination { flags: Destination::BY_SOURCE, ..Destination::OPEN };
    assert_eq!(decide(&SETTINGS, &attempt(), &world(by_source)).action, Action::Redirect(SOURCE));
    let own = Destination { flags: Destination::BY_SOURCE | Destination::OWN, ..Destination::OPEN };
    assert_eq!(decide(&SETTINGS, &attempt(), &world(own)), Decision::denied(UNKNOWN_SOURCE));
    let egress = HashMap::from([(0, by_source)]);
    let outside =
        World { policy: PolicyState { egress: 1, ..PolicyState::default() }, egress, ..World::default() };
    assert_eq!(decide(&SETTINGS, &attempt(), &outside), Decision::denied(UNKNOWN_SOURCE));
}

#[test]
fn a_service_of_this_host_is_not_to_be_had_by_loopback_either() {
    let mut world =
        World { policy: PolicyState { loopback: 1, ..PolicyState::default() }, ..World::default() };
    let own = Destination { flags: Destination::OWN, ..forbidden_by(4) };
    world.endpoints.insert(LOOPBACK, Endpoint { source: SocketAddress::default(), destination: own });
    for octets in [[127, 0, 0, 1], [127, 9, 9, 9], [0, 0, 0, 0]] {
        let destination = SocketAddress::from_v4(u32::from_ne_bytes(octets), SERVICE.port);
        let attempt = Attempt { destination, ..attempt() };
        assert_eq!(decide(&SETTINGS, &attempt, &world), Decision::denied(4), "{octets:?}");
        let foreign = Attempt { netns_cookie: 8, ..attempt };
        assert_eq!(decide(&SETTINGS, &foreign, &world), Decision::PASS, "that of a container");
    }
}

#[test]
fn an_exact_port_comes_before_any_port() {
    let egress = HashMap::from([(0, forbidden_by(5)), (SERVICE.port, Destination::OPEN)]);
    let world =
        World { policy: PolicyState { egress: 1, ..PolicyState::default() }, egress, ..World::default() };
    assert_eq!(action(&attempt(), &world), Action::Pass);
    let other = Attempt { destination: SocketAddress { port: 81_u16.to_be(), ..SERVICE }, ..attempt() };
    assert_eq!(decide(&SETTINGS, &other, &world), Decision::denied(5));
}

fn verdict() -> impl Strategy<Value = Verdict> {
    (0_u32..2, 0_u32..3, 0_u32..3).prop_map(|(denied, rule, dry_run)| Verdict { denied, rule, dry_run })
}

fn destination() -> impl Strategy<Value = Destination> {
    (1_u32..3, 0_u32..8, verdict()).prop_map(|(class, flags, verdict)| Destination { class, flags, verdict })
}

fn worlds() -> impl Strategy<Value = World> {
    let addresses = prop::sample::select(vec![SERVICE, LOOPBACK]);
    let endpoint = destination().prop_map(|destination| Endpoint { source: SOURCE, destination });
    let key = (1_u32..3, 1_u32..3).prop_map(|(source, destination)| VerdictKey { source, destination });
    let class = prop::sample::select(vec![0, 1, 2, CLASS_CHANGES]);
    let scope = || 0_u32..=SCOPE + 1;
    let workload = (class.clone(), scope(), scope()).prop_map(|(class, by_user, by_group)| WorkloadEntry {
        class,
        by_user,
        by_group,
    });
    (
        (0_u32..2, 0_u32..2, any::<bool>()),
        prop::collection::hash_map(addresses, endpoint, 0..3),
        prop::option::of(workload),
        (prop::option::of(class.clone()), prop::option::of(class)),
        prop::collection::hash_map(key, verdict(), 0..5),
        prop::collection::hash_map(prop::sample::select(vec![0, SERVICE.port]), destination(), 0..3),
        any::<bool>(),
    )
        .prop_map(
            |(
                (egress_on, loopback, is_in_agents_cgroup),
                endpoints,
                workload,
                (user, group),
                verdicts,
                egress,
                agent_listens,
            )| {
                World {
                    is_in_agents_cgroup,
                    policy: PolicyState { egress: egress_on, loopback, ..PolicyState::default() },
                    endpoints,
                    workload,
                    user,
                    group,
                    verdicts,
                    egress,
                    agent_listens,
                }
            },
        )
}

fn attempts() -> impl Strategy<Value = Attempt> {
    let ip = prop::sample::select(vec![
        [10, 0, 0, 2],
        [127, 0, 0, 1],
        [127, 0, 0, 2],
        [0, 0, 0, 0],
        [192, 0, 2, 1],
    ]);
    let protocol = prop::sample::select(vec![Some(Protocol::Tcp), Some(Protocol::Udp), None]);
    (ip, protocol, any::<bool>(), any::<bool>(), 0_u32..2).prop_map(
        |(ip, protocol, marked, ours, bound_interface)| Attempt {
            destination: SocketAddress::from_v4(u32::from_ne_bytes(ip), SERVICE.port),
            protocol,
            mark: if marked { SETTINGS.mark } else { 0 },
            netns_cookie: if ours { SETTINGS.netns_cookie } else { 8 },
            bound_interface,
        },
    )
}

/// Everything is looked up first, and then the sentences of the documentation are read one after the other.
fn reference(attempt: &Attempt, world: &World) -> Decision {
    let on_this_host = attempt.destination.is_loopback() || attempt.destination.is_unspecified();
    let (tcp, ours) =
        (attempt.protocol == Some(Protocol::Tcp), attempt.netns_cookie == SETTINGS.netns_cookie);
    let mut endpoint = world.endpoints.get(&attempt.destination);
    if on_this_host && world.policy.loopback != 0 {
        endpoint = endpoint.or_else(|| world.endpoints.get(&LOOPBACK));
    }
    let exact = world.egress.get(&attempt.destination.port);
    let outside = exact.or_else(|| world.egress.get(&0)).filter(|_| tcp && world.policy.egress != 0);
    let caller = world.workload.map(|workload| match (world.group, world.user) {
        (Some(class), _) if workload.by_group == SCOPE => class,
        (_, Some(class)) if workload.by_user == SCOPE => class,
        _ => workload.class,
    });
    let caller = caller.filter(|class| *class != CLASS_CHANGES);
    let verdict = |destination: &Destination| {
        if destination.flags & Destination::BY_SOURCE == 0 {
            return Some(destination.verdict);
        }
        let source = caller?;
        let own = world.verdicts.get(&VerdictKey { source, destination: destination.class });
        Some(own.copied().unwrap_or(destination.verdict))
    };
    let reported = |verdict: Verdict| (verdict.dry_run != 0).then_some(verdict.dry_run);

    let agents = ours && attempt.mark == SETTINGS.mark && world.is_in_agents_cgroup;
    if attempt.protocol.is_none() || agents || on_this_host && !ours {
        return Decision::PASS;
    }
    if let Some(endpoint) = endpoint.filter(|_| tcp) {
        let carried = ours && endpoint.destination.flags & Destination::OWN == 0;
        return match verdict(&endpoint.destination) {
            Some(verdict) if verdict.denied != 0 => Decision::denied(verdict.rule),
            None if !carried => Decision::denied(UNKNOWN_SOURCE),
            verdict => {
                let report = verdict.and_then(reported);
                let unavailable = endpoint.destination.flags & Destination::UNAVAILABLE != 0;
                let action = match (carried, attempt.bound_interface, world.agent_listens) {
                    (false, _, _) => Action::Pass,
                    (true, _, _) if unavailable => Action::RefuseUnavailable,
                    (true, 1.., _) => Action::RefuseBoundInterface,
                    (true, 0, false) => Action::RefuseWithoutAgent,
                    (true, 0, true) => Action::Redirect(endpoint.source),
                };
                Decision { action, report }
            }
        };
    }
    match outside.filter(|_| !on_this_host).map(verdict) {
        None => Decision::PASS,
        Some(None) => Decision::denied(UNKNOWN_SOURCE),
        Some(Some(verdict)) if verdict.denied != 0 => Decision::denied(verdict.rule),
        Some(Some(verdict)) => Decision { action: Action::Pass, report: reported(verdict) },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn decisions_equal_a_literal_reading(world in worlds(), attempt in attempts()) {
        prop_assert_eq!(decide(&SETTINGS, &attempt, &world), reference(&attempt, &world));
    }

    #[test]
    fn only_egress_rules_speak_of_datagrams(world in worlds(), attempt in attempts()) {
        let decision = decide_datagram(&SETTINGS, &attempt, &world);
        let without = World { endpoints: HashMap::new(), ..world };
        prop_assert_eq!(decision, reference(&attempt, &without));
    }
}
