//! Verdicts against a slow reference that reads the rules as they are written.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

pub(super) const NODES: [&str; 2] = ["fcc00", "fcs00"];
pub(super) const WORKLOADS: [&str; 2] = ["nginx.service", "user-root"];
pub(super) const SERVICES: [&str; 2] = ["fortune", "web"];
pub(super) const PORTS: [u16; 2] = [80, 8181];
const NETWORKS: [&str; 6] =
    ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "::/0", "2001:db8::/32"];
pub(super) const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.9.9.9", "192.0.2.1", "2001:db8::1"];

/// Whether the pattern with this text, `*`, `host/NODE/WORKLOAD` or `service/NAME`, is about `party`.
fn covers(pattern: &str, party: &Party) -> bool {
    let component = |pattern: &str, name: &str| pattern == "*" || pattern == name;
    match pattern.split('/').collect::<Vec<_>>().as_slice() {
        ["*"] => true,
        ["host", node, workload] => {
            let of_workload = match &party.workload {
                Some(name) => component(workload, name.as_str()),
                None => *workload == "*",
            };
            component(node, party.node.as_str()) && of_workload
        }
        ["service", service] => party.services.iter().any(|name| component(service, name.as_str())),
        _ => panic!("{pattern}"),
    }
}

/// The rows of the table in the documentation, counted from the top.
fn row(pattern: &str) -> u32 {
    match pattern.split('/').collect::<Vec<_>>().as_slice() {
        ["*"] => 4,
        ["host", "*", "*"] | ["service", "*"] => 3,
        ["host", "*", _] => 2,
        ["host", _, "*"] => 1,
        _ => 0,
    }
}

/// Where the destination of a rule comes in the order, lower first, if it is about `destination`.
fn destination_order(rule: &Rule, destination: &Destination) -> Option<[u32; 3]> {
    match (&rule.destination, destination) {
        (DestinationPattern::Mesh { identity, port }, Destination::Mesh { party, port: dialled }) => {
            let identity = identity.to_string();
            let is_about = covers(&identity, party) && port.is_none_or(|port| port == *dialled);
            is_about.then(|| [row(&identity), u32::from(port.is_none()), 0])
        }
        (DestinationPattern::Outside(rule), Destination::Outside(dialled)) => {
            let is_about = rule.network.covers(&dialled.network)
                && (rule.port.is_none() || rule.port == dialled.port)
                && (rule.protocol.is_none() || rule.protocol == dialled.protocol);
            let length = 128 - u32::from(rule.network.length());
            is_about.then(|| [length, u32::from(rule.port.is_none()), u32::from(rule.protocol.is_none())])
        }
        _ => None,
    }
}

fn decide<'a>(
    rules: impl Iterator<Item = &'a Arc<Rule>>,
    source: &Party,
    destination: &Destination,
) -> Option<&'a Rule> {
    let about = rules.filter(|rule| covers(&rule.source.to_string(), source));
    let ordered = about.filter_map(|rule| {
        let order = destination_order(rule, destination)?;
        Some(((row(&rule.source.to_string()), order, rule.action == Action::Allow, rule.id), rule.as_ref()))
    });
    ordered.min_by_key(|(order, _)| *order).map(|(_, rule)| rule)
}

fn reference(policy: &Policy, source: &Party, destination: &Destination) -> Verdict {
    let default = match destination {
        Destination::Mesh { .. } => policy.defaults.mesh,
        Destination::Outside(_) => policy.defaults.egress,
    };
    let in_force = policy.rules().values().filter(|rule| !rule.dry_run);
    let decisive = decide(in_force, source, destination);
    let action = decisive.map_or(default, |rule| rule.action);
    let would = decide(policy.rules().values(), source, destination);
    let dry_run = would.filter(|rule| rule.action != action).map(|rule| rule.id);
    Verdict { action, rule: decisive.map(|rule| rule.id), dry_run }
}

fn identity() -> impl Strategy<Value = String> {
    let or_any = |names: [&'static str; 2]| prop::sample::select(vec!["*", names[0], names[1]]);
    prop_oneof![
        Just("*".to_owned()),
        (or_any(NODES), or_any(WORKLOADS)).prop_map(|(node, workload)| format!("host/{node}/{workload}")),
        or_any(SERVICES).prop_map(|name| format!("service/{name}")),
    ]
}

fn destination_pattern() -> impl Strategy<Value = String> {
    let port = || {
        prop_oneof![
            Just(String::new()),
            prop::sample::select(PORTS.to_vec()).prop_map(|port| format!(":{port}"))
        ]
    };
    let outside =
        (prop::sample::select(NETWORKS.to_vec()), port(), prop::sample::select(vec!["", "/tcp", "/udp"]));
    prop_oneof![
        (identity(), port()).prop_map(|(identity, port)| identity + &port),
        outside.prop_map(|(network, port, protocol)| match network.contains("::") {
            true => format!("[{network}]{port}{protocol}"),
            false => format!("{network}{port}{protocol}"),
        }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop::sample::select(vec![Action::Allow, Action::Deny])
}

pub(super) fn policy() -> impl Strategy<Value = Policy> {
    let rule = (action(), identity(), destination_pattern(), prop::bool::weighted(0.2));
    (prop::collection::vec(rule, 0..24), action(), action()).prop_map(|(rules, mesh, egress)| {
        let mut policy =
            Policy { defaults: Defaults { mesh, egress, ..Defaults::default() }, ..Policy::default() };
        for (number, (action, source, destination, dry_run)) in (1..).zip(rules) {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            policy.put_rule(Rule { id: RuleId::new(number).unwrap(), action, source, destination, dry_run });
        }
        policy
    })
}

fn party() -> impl Strategy<Value = Party> {
    let workload = prop::option::of(prop::sample::select(WORKLOADS.to_vec()));
    let services = prop::sample::subsequence(SERVICES.to_vec(), 0..=2);
    (prop::sample::select(NODES.to_vec()), workload, services).prop_map(|(node, workload, services)| Party {
        node: node.parse().unwrap(),
        workload: workload.map(|name| name.parse().unwrap()),
        services: services.iter().map(|name| name.parse().unwrap()).collect(),
    })
}

fn destination() -> impl Strategy<Value = Destination> {
    let port = || prop::sample::select(PORTS.to_vec());
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let outside = (prop::sample::select(ADDRESSES.to_vec()), port(), protocol);
    prop_oneof![
        (party(), port()).prop_map(|(party, port)| Destination::Mesh { party, port }),
        outside.prop_map(|(address, port, protocol)| {
            Destination::outside(SocketAddr::new(address.parse().unwrap(), port), protocol)
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn verdicts_equal_those_of_the_slow_reference(
        policy in policy(),
        pairs in prop::collection::vec((party(), destination()), 1..8),
    ) {
        for (source, destination) in pairs {
            prop_assert_eq!(
                policy.verdict(&source, &destination),
                reference(&policy, &source, &destination),
                "{:?} to {:?}", source, destination
            );
        }
    }

    #[test]
    fn patterns_are_read_as_they_are_written(source in identity(), destination in destination_pattern()) {
        let source: IdentityPattern = source.parse().unwrap();
        prop_assert_eq!(source.to_string().parse::<IdentityPattern>().unwrap(), source);
        let destination: DestinationPattern = destination.parse().unwrap();
        prop_assert_eq!(destination.to_string().parse::<DestinationPattern>().unwrap(), destination);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[*a-z0-9:/.\\[\\]_@é-]{0,24}") {
        if let Ok(pattern) = text.parse::<DestinationPattern>() {
            prop_assert_eq!(pattern.to_string().parse::<DestinationPattern>().unwrap(), pattern);
        }
    }
}

/// A policy of rules written as `ACTION SOURCE DESTINATION`, numbered from 1.
fn written(rules: &[&str]) -> Policy {
    let mut policy = Policy::default();
    for (number, text) in (1..).zip(rules) {
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap();
        let action = word().parse().unwrap();
        let (source, destination) = (word().parse().unwrap(), word().parse().unwrap());
        let id = RuleId::new(number).unwrap();
        policy.put_rule(Rule { id, action, source, destination, dry_run: false });
    }
    policy
}

fn decisive(rules: &[&str]) -> Option<u32> {
    let mut policy = written(rules);
    policy.put_service(service("fortune", "fcs00", 8181));
    let source = policy.source(&"fcc00".parse().unwrap(), Some("nginx.service".parse().unwrap()), []);
    let destination = policy.destination(&"fcs00".parse().unwrap(), Some("user-root".parse().unwrap()), 8181);
    policy.verdict(&source, &destination).rule.map(RuleId::number)
}

pub(super) fn service(name: &str, node: &str, port: u16) -> Service {
    Service::new(name.parse().unwrap(), [node.parse().unwrap()], port)
}

#[test]
fn the_source_is_compared_before_the_destination_and_that_before_the_port() {
    assert_eq!(decisive(&["deny * service/fortune:8181", "allow host/fcc00/* *"]), Some(2));
    assert_eq!(decisive(&["deny * *:8181", "allow * host/fcs00/*"]), Some(2));
    assert_eq!(decisive(&["deny * service/fortune", "allow * service/fortune:8181"]), Some(2));
    assert_eq!(decisive(&["allow * service/fortune", "deny * host/fcs00/user-root"]), Some(2));
    assert_eq!(decisive(&["deny * 0.0.0.0/0", "deny host/fcs00 *", "deny * *:80"]), None);
}

#[test]
fn a_party_goes_by_the_name_of_its_service() {
    let mut policy = written(&["deny service/web service/fortune"]);
    policy.put_service(service("fortune", "fcs00", 8181));
    policy.put_service(service("web", "fcc00", 80));
    let (client, host) = ("fcc00".parse().unwrap(), "fcs00".parse().unwrap());
    let to = policy.destination(&host, None, 8181);
    let as_web = policy.source(&client, None, [22, 80]);
    assert_eq!(policy.verdict(&as_web, &to).action, Action::Deny);
    assert_eq!(policy.verdict(&policy.source(&client, None, [22]), &to).action, Action::Allow);
    assert_eq!(as_web.subject().to_string(), "service/web");
    policy.remove_service(&"web".parse().unwrap());
    assert_eq!(policy.source(&client, None, [80]).subject().to_string(), "host/fcc00");
}

#[test]
fn a_service_that_has_a_workload_gives_its_name_to_nobody_else() {
    let mut policy = Policy::default();
    let workload = "web.service".parse().ok();
    policy.put_service(Service { workload: workload.clone(), ..service("web", "fcs00", 80) });
    let host = "fcs00".parse().unwrap();
    let name = |workload| policy.source(&host, workload, [80]).subject().to_string();
    assert_eq!(name(workload), "service/web");
    assert_eq!(name("user-mallory".parse().ok()), "host/fcs00/user-mallory");
    assert_eq!(name(None), "host/fcs00");
}

#[test]
fn a_dry_run_rule_is_named_only_where_it_would_change_something() {
    let mut policy = written(&["allow host/fcc00 host/fcs00", "deny * *"]);
    policy.put_rule(Rule { dry_run: true, ..Rule::clone(&policy.rules()[&RuleId::new(2).unwrap()]) });
    let (client, host) = ("fcc00".parse().unwrap(), "fcs00".parse().unwrap());
    let to = policy.destination(&host, None, 80);
    let from = |node| policy.verdict(&policy.source(node, None, []), &to);
    assert_eq!(from(&client).dry_run, None, "the rule in force is more specific");
    assert_eq!((from(&host).action, from(&host).dry_run), (Action::Allow, RuleId::new(2)));
}
