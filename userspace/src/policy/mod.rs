//! Who may reach what: rules, and the verdict that they give. Pure: no clock, no files, no kernel.
//!
//! # Order of rules
//! The most specific rule decides. The source is compared first, then the destination, then the port:
//!
//! | specific | source and destination in the mesh | destination outside |
//! |---|---|---|
//! | most | `host/NODE/WORKLOAD`, `service/NAME` | the longer prefix |
//! | | `host/NODE/*` | with a port |
//! | | `host/*/WORKLOAD` | with a protocol |
//! | | `host/*/*`, `service/*` | |
//! | least | `*` | `0.0.0.0/0`, `::/0` |
//!
//! Of two destinations that are equally specific, one with a port comes first. Of two rules of equal rank, `deny`
//! comes before `allow`. Where no rule speaks the default decides. Rules about the mesh say nothing about addresses
//! outside of it, and the other way round.

mod balance;
mod check;
pub mod compile;
mod index;
mod network;
mod parse;
mod pattern;
mod rule;
mod service;
#[cfg(test)]
mod tests;
mod unconfirmed;
mod verdict;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

pub use balance::{Balance, BalanceError};
pub use check::{Check, CheckError, Probe};
pub use index::{DestinationClass, SourceClass};
pub use network::{Network, Protocol};
pub use parse::{Names, PatternError};
pub use pattern::{Component, DestinationPattern, IdentityPattern, Outside};
pub use rule::{Action, ActionError, Rule, RuleId, RuleIdError};
pub use service::{Mode, ModeError, Service};
pub use unconfirmed::{Existing, ExistingError, Unconfirmed};
pub use verdict::{Destination, Party, Verdict};
pub use wire::InvalidMessage;

use crate::identity::{NodeName, ServiceName, WorkloadName};
use index::Index;

/// What holds where no rule speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defaults {
    /// Between hosts of the mesh.
    pub mesh: Action,
    /// From hosts of the mesh to elsewhere.
    pub egress: Action,
    /// Of services that have no mode of their own.
    pub mode: Mode,
    /// Where that is strict.
    pub existing: Existing,
    /// Set while the mode goes back by itself.
    pub unconfirmed: Option<Unconfirmed>,
}

/// All rules and named services at one revision. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Where no rule speaks.
    pub defaults: Defaults,
    rules: BTreeMap<RuleId, Arc<Rule>>,
    services: BTreeMap<ServiceName, Arc<Service>>,
    /// Hosts that take no new connections through the mesh.
    pub drained: Arc<BTreeSet<NodeName>>,
    prepared: OnceLock<Arc<Prepared>>,
}

#[derive(Debug)]
struct Prepared {
    rules: Index,
    services: HashMap<NodeName, BTreeMap<u16, ServiceName>>,
}

impl Policy {
    /// Adds a rule, or replaces the one with its number.
    pub fn put_rule(&mut self, rule: Rule) {
        self.prepared = OnceLock::new();
        self.rules.insert(rule.id, Arc::new(rule));
    }

    /// Takes a rule away, if it is there.
    pub fn remove_rule(&mut self, id: RuleId) {
        self.prepared = OnceLock::new();
        self.rules.remove(&id);
    }

    /// Adds a service, or replaces the one with its name.
    pub fn put_service(&mut self, service: Service) {
        self.prepared = OnceLock::new();
        self.services.insert(service.name.clone(), Arc::new(service));
    }

    /// Takes a service away, if it is there.
    pub fn remove_service(&mut self, name: &ServiceName) {
        self.prepared = OnceLock::new();
        self.services.remove(name);
    }

    /// Whether every connection in the mesh is allowed, and no rule says anything.
    pub fn is_open(&self) -> bool {
        self.rules.is_empty() && self.defaults.mesh == Action::Allow
    }

    /// The rules, in order of their numbers.
    pub fn rules(&self) -> &BTreeMap<RuleId, Arc<Rule>> {
        &self.rules
    }

    /// The rules, in the order in which they are tried.
    pub fn rules_in_order(&self) -> Vec<&Rule> {
        let mut rules: Vec<_> = self.rules.values().map(AsRef::as_ref).collect();
        rules.sort_by_key(|rule| rule.order());
        rules
    }

    /// The named services.
    pub fn services(&self) -> &BTreeMap<ServiceName, Arc<Service>> {
        &self.services
    }

    /// The named service on `port` of `node`. Were two to claim it, the first by name has it.
    pub fn service_at(&self, node: &NodeName, port: u16) -> Option<&Arc<Service>> {
        self.services.get(self.prepared().services.get(node)?.get(&port)?)
    }

    /// The mode of whatever listens on `port` of `node`.
    pub fn mode_at(&self, node: &NodeName, port: u16) -> Mode {
        self.service_at(node, port).and_then(|service| service.mode).unwrap_or(self.defaults.mode)
    }

    /// What becomes of connections in clear to `port` of `node`, where that is strict.
    pub fn existing_at(&self, node: &NodeName, port: u16) -> Existing {
        let own = self.service_at(node, port).filter(|service| service.mode.is_some());
        own.map_or(self.defaults.existing, |service| service.existing)
    }

    /// Whether `client` may connect in clear to `port` of `node`.
    pub fn admits_plaintext(&self, node: &NodeName, port: u16, client: IpAddr) -> bool {
        let client = Network::of(client);
        self.mode_at(node, port) != Mode::Strict
            || self
                .service_at(node, port)
                .is_some_and(|service| service.exceptions.iter().any(|network| network.covers(&client)))
    }

    /// Whether connections to it are only counted: they are not encrypted, and no rule holds for them.
    pub fn is_observed(&self, destination: &Destination) -> bool {
        match destination {
            Destination::Mesh { party, port } => self.mode_at(&party.node, *port) == Mode::Observe,
            Destination::Outside(_) => false,
        }
    }

    /// Whether nobody may connect to it in clear.
    pub fn is_strict(&self, destination: &Destination) -> bool {
        match destination {
            Destination::Mesh { party, port } => self.mode_at(&party.node, *port) == Mode::Strict,
            Destination::Outside(_) => false,
        }
    }

    /// A workload as a source. It goes by the name of every service that it listens for on its host, at `ports`, and that
    /// is its own.
    pub fn source(
        &self,
        node: &NodeName,
        workload: Option<WorkloadName>,
        ports: impl IntoIterator<Item = u16>,
    ) -> Party {
        let services = ports.into_iter().filter_map(|port| self.service_at(node, port));
        let own = services.filter(|service| service.is_served_by(workload.as_ref()));
        let services = own.map(|service| service.name.clone()).collect();
        Party { node: node.clone(), workload, services }
    }

    /// What listens on `port` of `node`, as a destination. `workload` is who listens, where that is known.
    pub fn destination(&self, node: &NodeName, workload: Option<WorkloadName>, port: u16) -> Destination {
        Destination::Mesh { party: self.source(node, workload, [port]), port }
    }

    /// Whether `source` may connect to `destination`.
    pub fn verdict(&self, source: &Party, destination: &Destination) -> Verdict {
        if self.is_observed(destination) {
            return Verdict { action: Action::Allow, rule: None, dry_run: None };
        }
        self.judge(&self.source_class(source), &self.destination_class(destination))
    }

    /// What rules can know of a source. Only valid for the policy that made it, and equal for sources about which
    /// that says the same of every destination.
    pub fn source_class(&self, source: &Party) -> SourceClass {
        self.prepared().rules.source_class(source)
    }

    /// What rules can know of a destination; as [`Self::source_class`]. An [`Outside`] destination may be a whole
    /// network, any port and any protocol: then only what covers all of it counts.
    pub fn destination_class(&self, destination: &Destination) -> DestinationClass {
        self.prepared().rules.destination_class(destination)
    }

    /// The patterns of rules that cover the sources of a class.
    pub(crate) fn source_patterns<'a>(
        &'a self,
        class: &'a SourceClass,
    ) -> impl Iterator<Item = &'a IdentityPattern> {
        self.prepared().rules.source_patterns(class)
    }

    /// The patterns of rules that cover the destinations of a class.
    pub(crate) fn destination_patterns<'a>(
        &'a self,
        class: &'a DestinationClass,
    ) -> impl Iterator<Item = &'a DestinationPattern> {
        self.prepared().rules.destination_patterns(class)
    }

    /// Whether sources of one class may connect to destinations of another.
    pub fn judge(&self, source: &SourceClass, destination: &DestinationClass) -> Verdict {
        let default = if destination.is_outside() { self.defaults.egress } else { self.defaults.mesh };
        let (mut enforced, mut all) = (None, None);
        for decisions in self.prepared().rules.ranks(source, destination) {
            all = all.or(decisions.all());
            enforced = decisions.enforced;
            if enforced.is_some() {
                break;
            }
        }
        let action = enforced.map_or(default, |(action, _)| action);
        let dry_run = all.filter(|(other, _)| *other != action).map(|(_, rule)| rule);
        Verdict { action, rule: enforced.map(|(_, rule)| rule), dry_run }
    }

    fn prepared(&self) -> &Prepared {
        self.prepared.get_or_init(|| {
            let mut services = HashMap::<NodeName, BTreeMap<u16, ServiceName>>::new();
            for service in self.services.values() {
                for node in &service.hosts {
                    let ports = services.entry(node.clone()).or_default();
                    ports.entry(service.port).or_insert_with(|| service.name.clone());
                }
            }
            Arc::new(Prepared { rules: Index::new(self.rules.values().map(AsRef::as_ref)), services })
        })
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.defaults == other.defaults
            && self.rules == other.rules
            && self.services == other.services
            && self.drained == other.drained
    }
}

impl Eq for Policy {}
