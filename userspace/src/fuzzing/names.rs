use std::{collections::BTreeSet, fmt::Display, str::FromStr};

use crate::{
    agent::Upstream,
    identity::{NodeName, ServiceName, SpiffeId, TrustDomain, WorkloadName, tls::service_port},
    policy::{DestinationPattern, IdentityPattern, Mode, Names, Network, Outside, Probe, RuleId},
    seal::KeyId,
};

/// Names, patterns, networks and probes, as they come from the command line, other hosts and certificates: what is
/// taken means the same when it is written again.
pub fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    again::<NodeName>(text);
    again::<ServiceName>(text);
    again::<WorkloadName>(text);
    again::<TrustDomain>(text);
    again::<SpiffeId>(text);
    again::<IdentityPattern>(text);
    again::<DestinationPattern>(text);
    again::<Outside>(text);
    again::<Network>(text);
    again::<Probe>(text);
    again::<Mode>(text);
    again::<RuleId>(text);
    again::<KeyId>(text);
    let _ = (text.parse::<Upstream>(), service_port(text));
    let _ = (WorkloadName::of_unit(text), WorkloadName::of_user(text), WorkloadName::of_cgroup(text));
    plain(text);
}

fn again<T: FromStr + Display + PartialEq>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let written = value.to_string();
    assert!(written.parse::<T>().is_ok_and(|read| read == value), "{text:?} is written as {written:?}");
}

/// What an administrator writes, with plain names.
fn plain(text: &str) {
    let names = Names {
        trust_domain: "mesh.test".parse().expect("a name"),
        hosts: BTreeSet::from(["fcc00", "fcs00"].map(|name| name.parse().expect("a name"))),
        services: BTreeSet::from(["fortune".parse().expect("a name")]),
    };
    if let Ok(source) = IdentityPattern::parse_source(text, &names) {
        assert!(source.to_string().parse::<IdentityPattern>().is_ok_and(|read| read == source));
    }
    if let Ok(destination) = DestinationPattern::parse(text, &names) {
        assert!(destination.to_string().parse::<DestinationPattern>().is_ok_and(|read| read == destination));
    }
}
