//! Verdicts, which must not cost more with more rules, and the preparation that each change of the rules costs once.

use divan::{Bencher, black_box};
use murmesh::{
    identity::NodeName,
    policy::{Action, Destination, Party, Policy, Rule, RuleId},
};

const RULES: [u32; 3] = [1, 1_000, 10_000];

#[divan::bench(args = RULES)]
fn verdict(bencher: Bencher<'_, '_>, rules: u32) {
    let policy = policy(rules);
    let (source, destination) = (source(&policy), destination(&policy));
    bencher.bench_local(|| {
        let verdict = policy.verdict(black_box(&source), black_box(&destination));
        assert_eq!(verdict.action, Action::Deny);
    });
}

#[divan::bench(args = RULES, sample_count = 20)]
fn first_verdict_after_a_change(bencher: Bencher<'_, '_>, rules: u32) {
    let unprepared = policy(rules);
    bencher.with_inputs(|| unprepared.clone()).bench_local_values(|policy| {
        let verdict = policy.verdict(&source(&policy), &destination(&policy));
        assert_eq!(verdict.action, Action::Deny);
    });
}

/// One rule for each of so many hosts, and the least specific last.
fn policy(rules: u32) -> Policy {
    let mut policy = Policy::default();
    for number in 1..rules {
        policy.put_rule(rule(number, Action::Allow, &format!("host/client-{number}/*"), "service/web:80"));
    }
    policy.put_rule(rule(rules, Action::Deny, "*", "*"));
    policy
}

fn rule(number: u32, action: Action, source: &str, destination: &str) -> Rule {
    let id = RuleId::new(number).expect("not 0");
    let (source, destination) =
        (source.parse().expect("a source"), destination.parse().expect("a destination"));
    Rule { id, action, source, destination, dry_run: false }
}

fn source(policy: &Policy) -> Party {
    policy.source(&node("client"), Some("nginx.service".parse().expect("a name")), [])
}

fn destination(policy: &Policy) -> Destination {
    policy.destination(&node("service"), Some("user-root".parse().expect("a name")), 8181)
}

fn node(name: &str) -> NodeName {
    name.parse().expect("a name")
}
