//! Which ports of this host a rule could refuse to which hosts of the mesh. What comes from these in clear is refused
//! there: in clear nobody can tell which of their workloads it is, and the kernel of the host that it comes from knows no
//! service that is too new, and none at a link-local address.
//!
//! Who listens here does not matter: a listener may be newer than all that is known of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use murmesh_common::{DenialKey, Group};

use super::classes::Numbers;
use super::{Full, Tables, View};
use crate::identity::{NodeName, WorkloadName};
use crate::policy::{
    Action, Component, DestinationClass, DestinationPattern, IdentityPattern, Mode, Policy, SourceClass,
};

/// Ports that could be refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Closed {
    /// All that are not in `ports`.
    others: bool,
    /// Those that differ from the others.
    ports: BTreeSet<u16>,
}

impl Closed {
    const EVERYTHING: Self = Self { others: true, ports: BTreeSet::new() };

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn has(&self, port: u16) -> bool {
        self.others != self.ports.contains(&port)
    }

    fn and(&self, other: &Self) -> Self {
        let others = self.others || other.others;
        let ports = self.ports.union(&other.ports).copied();
        Self { others, ports: ports.filter(|port| (self.has(*port) || other.has(*port)) != others).collect() }
    }
}

/// Fills in denials, and the group of neighbours. Returns the groups of the hosts that rules could refuse something.
pub fn put<'a>(
    tables: &mut Tables,
    view: &View<'a>,
    numbers: &mut Numbers,
    room: usize,
    full: &mut Vec<Full>,
) -> HashMap<&'a NodeName, Group> {
    let denying = Denying::new(view.who.policy, view.who.node);
    let mut closed = denying.closed(view.mesh.values().copied().filter(|node| *node != view.who.node));
    let together = closed.values().fold(Closed::default(), |one, other| one.and(other));
    let each: std::collections::HashSet<_> = closed.values().chain([&together]).collect();
    let wanted = each.into_iter().map(|closed| 1 + closed.ports.len()).sum();
    if wanted > room {
        full.push(Full {
            map: "DENIALS",
            room,
            wanted,
            consequence: "hosts that a rule refuses any port reach none in clear",
            option: "--max-verdicts",
        });
        closed.values_mut().for_each(|closed| *closed = Closed::EVERYTHING);
    }
    let together = closed.values().fold(Closed::default(), |one, other| one.and(other));
    let mut give = |closed: Closed| {
        let group = numbers.group(closed.clone());
        let key = |port: u16| DenialKey { group, port: port.to_be(), padding: 0 };
        tables.denials.insert(key(0), u32::from(closed.others));
        let ports = closed.ports.iter().map(|port| (key(*port), u32::from(!closed.others)));
        tables.denials.extend(ports);
        group
    };
    if !together.is_nothing() {
        tables.state.neighbours = give(together);
    }
    closed.into_iter().map(|(node, closed)| (node, give(closed))).collect()
}

/// What rules that refuse something say, and where.
struct Denying<'a> {
    policy: &'a Policy,
    /// Source patterns.
    sources: BTreeSet<&'a IdentityPattern>,
    /// Ports about which the same rules speak, and what listeners there can be: by no name of their own, and by each
    /// that such a rule has. Whatever rule refuses a workload that goes by several names refuses one with the name
    /// that it has of these, too.
    destinations: HashMap<Vec<DestinationClass>, Vec<u16>>,
    /// Those of the ports that are only observed: no rule is enforced there.
    observed: BTreeSet<u16>,
}

impl<'a> Denying<'a> {
    fn new(policy: &'a Policy, here: &NodeName) -> Self {
        let rules = policy.rules().values();
        let denying = rules.filter(|rule| rule.action == Action::Deny && !rule.dry_run);
        let about = |pattern: &'a DestinationPattern| match pattern {
            DestinationPattern::Mesh { identity, port } if may_be_of(identity, here) => {
                Some((identity, *port))
            }
            _ => None,
        };
        let denied = denying.filter_map(|rule| Some((&rule.source, about(&rule.destination)?)));
        let denied: Vec<_> = denied.collect();
        let mut workloads = BTreeMap::<_, BTreeSet<Option<&WorkloadName>>>::new();
        for (_, (identity, port)) in &denied {
            if let Some(workload) = workload(identity) {
                workloads.entry(*port).or_default().insert(Some(workload));
            }
        }
        let named = policy.services().values().filter(|service| service.hosts.contains(here));
        if denied.is_empty() && policy.defaults.mesh == Action::Allow {
            let (sources, destinations, observed) = Default::default();
            return Self { policy, sources, destinations, observed };
        }
        let ports = policy.rules().values().filter_map(|rule| about(&rule.destination)?.1);
        let ports: BTreeSet<_> = named.map(|service| service.port).chain(ports).chain([0]).collect();
        let is_observed = |port: &u16| policy.mode_at(here, *port) == Mode::Observe;
        let observed = ports.iter().copied().filter(is_observed).collect();
        let mut destinations = HashMap::<_, Vec<u16>>::new();
        for port in ports {
            let on = |port: Option<u16>| workloads.get(&port).into_iter().flatten().copied();
            let own = policy.service_at(here, port).map(|service| service.workload.as_ref());
            let listeners = [None].into_iter().chain(own).chain(on(None)).chain(on(Some(port)));
            let listeners: BTreeSet<_> = listeners.collect();
            let class = |listener: Option<&WorkloadName>| {
                policy.destination_class(&policy.destination(here, listener.cloned(), port))
            };
            destinations.entry(listeners.into_iter().map(class).collect()).or_default().push(port);
        }
        let sources = denied.into_iter().map(|(source, _)| source).collect();
        Self { policy, sources, destinations, observed }
    }

    /// What could be refused to each of `nodes`; those to which nothing could are left out.
    fn closed<'b>(&self, nodes: impl Iterator<Item = &'b NodeName>) -> HashMap<&'b NodeName, Closed> {
        let mut known = HashMap::new();
        let nodes: BTreeSet<_> = nodes.collect();
        let closed = nodes.into_iter().map(|node| {
            let sources = self.sources(node);
            let closed = known.entry(sources).or_insert_with_key(|sources| self.closed_to(sources)).clone();
            (node, closed)
        });
        closed.filter(|(_, closed)| !closed.is_nothing()).collect()
    }

    /// The workloads that there can be on a host, as far as these rules tell them apart; as with destinations.
    fn sources(&self, node: &NodeName) -> BTreeSet<SourceClass> {
        if self.sources.is_empty() && self.policy.defaults.mesh == Action::Allow {
            return BTreeSet::new();
        }
        let class =
            |workload, port: Option<u16>| self.policy.source_class(&self.policy.source(node, workload, port));
        let of_node = self.sources.iter().filter(|pattern| may_be_of(pattern, node));
        let mut classes: BTreeSet<_> = of_node
            .filter_map(|pattern| workload(pattern))
            .map(|name| class(Some(name.clone()), None))
            .collect();
        classes.insert(class(None, None));
        if self.sources.iter().any(|pattern| matches!(pattern, IdentityPattern::Service(_))) {
            let services = self.policy.services().values().filter(|service| service.hosts.contains(node));
            classes.extend(services.map(|service| class(service.workload.clone(), Some(service.port))));
        }
        classes
    }

    fn closed_to(&self, sources: &BTreeSet<SourceClass>) -> Closed {
        let is_denied = |destinations: &[DestinationClass]| {
            let denied =
                |source| destinations.iter().any(|to| self.policy.judge(source, to).action == Action::Deny);
            sources.iter().any(denied)
        };
        let (mut denied, mut allowed) = (BTreeSet::new(), BTreeSet::new());
        for (destinations, ports) in &self.destinations {
            if is_denied(destinations) { &mut denied } else { &mut allowed }.extend(ports);
        }
        denied.retain(|port| !self.observed.contains(port));
        allowed.extend(&self.observed);
        // 0 stands for all others.
        let others = denied.remove(&0);
        allowed.remove(&0);
        Closed { others, ports: if others { allowed } else { denied } }
    }
}

/// Whether something on `node` can be what the pattern says. Which services it has is told by the policy.
fn may_be_of(pattern: &IdentityPattern, node: &NodeName) -> bool {
    match pattern {
        IdentityPattern::Workload(Component::Exactly(name), _) => name == node,
        IdentityPattern::Workload(Component::Any, _) | IdentityPattern::Service(_) | IdentityPattern::Any => {
            true
        }
    }
}

/// The one workload of which the pattern speaks.
fn workload(pattern: &IdentityPattern) -> Option<&WorkloadName> {
    match pattern {
        IdentityPattern::Workload(_, Component::Exactly(name)) => Some(name),
        _ => None,
    }
}
