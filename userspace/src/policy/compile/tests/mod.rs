//! What the kernel half decides with the compiled tables, against the rules themselves.

mod world;

use murmesh_common::{Action as Done, Admission, Decision};
use proptest::prelude::*;

use super::*;
use crate::policy::tests::{NODES, PORTS, service};
use world::{
    OTHER_UNIT, ROOM, UNIT, UNSEEN, World, admitted, calls, decided, of_unknown_source, unit, worlds,
};

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
    fn in_clear_a_host_of_the_mesh_gets_where_no_rule_could_refuse_it(world in worlds()) {
        let (tables, _) = world.compile(&mut Compiler::new(ROOM, &Tables::default()));
        for port in PORTS.into_iter().chain([9]) {
            let refused = if world.could_refuse(port) { Admission::Denied } else { Admission::Admitted };
            prop_assert_eq!(admitted(&tables, "10.1.0.2", port), refused, "port {}", port);
            prop_assert_eq!(admitted(&tables, "fe80::2", port), refused, "a neighbour, port {}", port);
            prop_assert_eq!(admitted(&tables, "10.1.0.1", port), Admission::Admitted, "from here");
            prop_assert_eq!(admitted(&tables, "198.51.100.1", port), Admission::Admitted, "an outsider");
        }
    }

    #[test]
    fn workloads_that_come_and_go_are_followed_as_if_everything_was_compiled_again(world in worlds()) {
        let mut compiler = Compiler::new(ROOM, &Tables::default());
        let (mut present, _) = world.compile(&mut compiler);
        let mut cgroups = World::cgroups();
        cgroups.remove(&UNIT);
        cgroups.extend([(UNSEEN, unit("other.service")), (UNSEEN + 1, unit("nginx.service"))]);
        let changes = world.with(&cgroups, |who| compiler.follow(&who, &present)).unwrap();
        changes.into_iter().for_each(|change| present.apply(change));
        prop_assert!(!present.workloads.contains_key(&UNIT));
        prop_assert_eq!(present.workloads.get(&UNSEEN), present.workloads.get(&OTHER_UNIT));
        let (again, _) = world.compile(&mut compiler);
        prop_assert_eq!(present.workloads.get(&(UNSEEN + 1)), again.workloads.get(&UNIT));
        prop_assert_eq!((present.verdicts, present.users), (again.verdicts, again.users));
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
        let arriving = |tables: &Tables, port| {
            ["10.1.0.2", "fe80::2"].map(|from| admitted(tables, from, port))
        };
        let admissions = PORTS.map(|port| [&present, &wanted].map(|tables| arriving(tables, port)));
        for change in all {
            present.apply(change);
            for (port, [before, after]) in PORTS.into_iter().zip(admissions) {
                let now = arriving(&present, port).into_iter().zip(before.into_iter().zip(after));
                for (now, (before, after)) in now {
                    prop_assert!(
                        now == Admission::Denied || [before, after].contains(&now),
                        "port {} after {:?}: {:?}", port, change, now
                    );
                }
            }
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

    #[test]
    fn what_loses_its_room_or_gets_it_is_refused_meanwhile(
        before in worlds(),
        after in worlds(),
        loses: bool,
        endpoints in 1_usize..4,
        calls in calls(),
    ) {
        let small = Room { endpoints: 3 * PORTS.len() + endpoints, ..ROOM };
        let rooms = if loses { [ROOM, small] } else { [small, ROOM] };
        let (mut present, _) = before.compile(&mut Compiler::new(rooms[0], &Tables::default()));
        let (wanted, _) = after.compile(&mut Compiler::new(rooms[1], &present));
        let mut all = removals(&present, &wanted);
        all.extend(changes(&present, &wanted));
        for change in all {
            present.apply(change);
            for call in &calls {
                let (decision, unknown) = decided(&present, call);
                let closed = Decision { action: Done::Deny, report: Some(NO_ROOM) };
                let expected = [before.decision(call), after.decision(call), closed];
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
    assert_eq!((tables.state.egress, tables.state.loopback, tables.state.neighbours), (0, 0, 0));
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
fn a_new_rule_about_other_ports_leaves_the_groups_as_they_are() {
    let mut world = World {
        policy: Policy::default(),
        listeners: vec![None; NODES.len() * PORTS.len()],
        listening: HashMap::new(),
    };
    let rule = |number, destination: &str| crate::policy::Rule {
        id: crate::policy::RuleId::new(number).unwrap(),
        action: Action::Deny,
        source: "host/fcs00".parse().unwrap(),
        destination: destination.parse().unwrap(),
        dry_run: false,
    };
    world.policy.put_rule(rule(1, "host/fcc00:80"));
    let mut compiler = Compiler::new(ROOM, &Tables::default());
    let (before, _) = world.compile(&mut compiler);
    assert_eq!(before.denials.len(), 2, "one port, and all others: {:?}", before.denials);
    world.policy.put_rule(rule(2, "host/fcs00:8181"));
    let (after, _) = world.compile(&mut compiler);
    assert_eq!((before.denials, before.addresses), (after.denials, after.addresses));
}

#[test]
fn what_is_only_observed_is_refused_to_nobody_in_clear() {
    let mut policy = Policy::default();
    policy.defaults.mesh = Action::Deny;
    let observed = service("fortune", NODES[0], PORTS[1]);
    policy
        .put_service(crate::policy::Service { mode: Some(crate::policy::Mode::Observe), ..observed.clone() });
    let listeners = vec![None; NODES.len() * PORTS.len()];
    let mut world = World { policy, listeners, listening: HashMap::new() };
    let admissions = |world: &World| {
        let (tables, _) = world.compile(&mut Compiler::new(ROOM, &Tables::default()));
        PORTS.map(|port| admitted(&tables, "10.1.0.2", port))
    };
    assert_eq!(admissions(&world), [Admission::Denied, Admission::Admitted]);
    world.policy.defaults.mode = crate::policy::Mode::Observe;
    world
        .policy
        .put_service(crate::policy::Service { mode: Some(crate::policy::Mode::Permissive), ..observed });
    assert_eq!(admissions(&world), [Admission::Admitted, Admission::Denied]);
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

#[test]
fn a_workload_without_verdicts_needs_everything_to_be_compiled_again() {
    let mut world = World {
        policy: Policy::default(),
        listeners: vec![None; NODES.len() * PORTS.len()],
        listening: HashMap::new(),
    };
    world.policy.put_rule(crate::policy::Rule {
        id: crate::policy::RuleId::new(1).unwrap(),
        action: Action::Deny,
        source: "host/fcc00/new.service".parse().unwrap(),
        destination: "host/fcs00".parse().unwrap(),
        dry_run: false,
    });
    let mut compiler = Compiler::new(ROOM, &Tables::default());
    let (present, _) = world.compile(&mut compiler);
    let mut cgroups = World::cgroups();
    cgroups.insert(UNSEEN, unit("new.service"));
    assert_eq!(world.with(&cgroups, |who| compiler.follow(&who, &present)), None);
}
