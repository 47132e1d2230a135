//! The snapshot that tells who may reach what.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use super::LocalServices;
use crate::{
    catalog::{Catalog, Listener},
    identity::{NodeName, SpiffeId, Subject, WorkloadName},
    policy::{Action, Policy, Verdict},
};

/// The policy, and what it takes to know whom it speaks of. Before the first catalog there is none.
#[derive(Debug, Default)]
pub struct Rules(Option<Known>);

/// The two ends of a connection as they were found when it was made. Rules that come later judge these: a service that
/// has closed its listener since, or whose host has withdrawn, is still who it was.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Found {
    source: Source,
    destination: Destination,
}

impl Found {
    /// The hosts at its ends.
    pub fn hosts(&self) -> [&NodeName; 2] {
        [&self.source.node, &self.destination.node]
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Source {
    node: NodeName,
    workload: Option<WorkloadName>,
    /// On which it listens: it goes by the names of these services.
    ports: BTreeSet<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Destination {
    node: NodeName,
    workload: Option<WorkloadName>,
    port: u16,
}

#[derive(Debug)]
struct Known {
    catalog: Arc<Catalog>,
    services: Arc<LocalServices>,
    own: NodeName,
}

/// Of every connection, where there are no rules.
pub const ALLOWED: Verdict = Verdict { action: Action::Allow, rule: None, dry_run: None };

impl Rules {
    /// Those of `catalog`, on the host `own`, which serves `services`.
    pub fn new(catalog: Arc<Catalog>, services: Arc<LocalServices>, own: NodeName) -> Self {
        Self(Some(Known { catalog, services, own }))
    }

    /// Whether everything is allowed, and nothing to be reported.
    pub fn is_open(&self) -> bool {
        self.policy().is_none_or(Policy::is_open)
    }

    /// Whether `other` says the same of every connection that was made before.
    pub fn has_policy_of(&self, other: &Self) -> bool {
        match (self.policy(), other.policy()) {
            (Some(one), Some(other)) => std::ptr::eq(one, other) || one.is_open() && other.is_open(),
            _ => self.is_open() && other.is_open(),
        }
    }

    /// The ends of a connection of `caller` to `destination`, which is an address of `node`. `None` if the caller is
    /// nobody who connects to services.
    pub fn find(&self, caller: &SpiffeId, node: &NodeName, destination: SocketAddr) -> Option<Found> {
        let known = self.0.as_ref();
        let (host, workload) = match &caller.subject {
            Subject::Host(host) => (host, None),
            Subject::Workload(host, workload) => (host, Some(workload)),
            Subject::Server(_) | Subject::Service(_) => return None,
        };
        let ports = known.zip(workload).map(|(known, workload)| known.ports(host, workload));
        let source =
            Source { node: host.clone(), workload: workload.cloned(), ports: ports.unwrap_or_default() };
        let listener = known.and_then(|known| known.listener(node, destination));
        let workload = listener.and_then(|listener| listener.workload.clone());
        Some(Found {
            source,
            destination: Destination { node: node.clone(), workload, port: destination.port() },
        })
    }

    /// Whether the connection may be.
    pub fn judge(&self, found: &Found) -> Verdict {
        let Some(policy) = self.policy().filter(|policy| !policy.is_open()) else { return ALLOWED };
        let Found { source, destination } = found;
        let source = policy.source(&source.node, source.workload.clone(), source.ports.iter().copied());
        let destination =
            policy.destination(&destination.node, destination.workload.clone(), destination.port);
        policy.verdict(&source, &destination)
    }

    fn policy(&self) -> Option<&Policy> {
        self.0.as_ref().map(|known| &*known.catalog.policy)
    }
}

impl Known {
    fn ports(&self, node: &NodeName, workload: &WorkloadName) -> BTreeSet<u16> {
        let listeners = self.listeners(node).filter(|listener| listener.workload.as_ref() == Some(workload));
        listeners.map(|listener| listener.address.port()).collect()
    }

    /// This host knows of itself before the catalog does.
    fn listener(&self, node: &NodeName, destination: SocketAddr) -> Option<&Listener> {
        if *node == self.own {
            self.services.listener(destination)
        } else {
            self.catalog.hosts.get(node)?.report.listener(destination)
        }
    }

    fn listeners(&self, node: &NodeName) -> impl Iterator<Item = &Listener> {
        let own = (*node == self.own).then_some(&self.services.listeners).into_iter().flatten();
        let others = self.catalog.hosts.get(node).filter(|host| host.node != self.own);
        own.chain(others.into_iter().flat_map(|host| &host.report.listeners))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{Host, Report},
        policy::{Names, Rule, RuleId},
    };

    fn listener(port: u16, workload: &str) -> Listener {
        let workload = Some(workload.parse().expect("a name"));
        Listener { address: ([0, 0, 0, 0], port).into(), ipv6_only: false, workload }
    }

    /// Hosts `here`, where db.service listens on 5432, and `there`, where web.service listens on 80.
    fn rules(texts: &[(Action, &str, &str)]) -> Rules {
        rules_with(texts, [listener(80, "web.service")].into(), [listener(5432, "db.service")].into())
    }

    /// The same hosts with other listeners, `there` and `here`.
    fn rules_with(texts: &[(Action, &str, &str)], there: Vec<Listener>, here: BTreeSet<Listener>) -> Rules {
        let there = Report { addresses: vec![[10, 0, 0, 2].into()], listeners: there, ..Report::default() };
        let host = |node: &str, report| {
            let node: NodeName = node.parse().expect("a name");
            (node.clone(), Arc::new(Host { node, report, last_seen: None, connected: true, lost: false }))
        };
        let hosts = [host("here", Report::default()), host("there", there)].into();
        let mut policy = Policy::default();
        let hosts_known = ["here", "there"].map(|name| name.parse().expect("a name")).into();
        let trust_domain = "mesh.test".parse().expect("a name");
        let names = Names { trust_domain, hosts: hosts_known, services: BTreeSet::new() };
        for ((action, source, destination), number) in texts.iter().zip(1..) {
            policy.put_rule(Rule {
                id: RuleId::new(number).expect("not 0"),
                action: *action,
                source: crate::policy::IdentityPattern::parse_source(source, &names).expect("a pattern"),
                destination: crate::policy::DestinationPattern::parse(destination, &names)
                    .expect("a pattern"),
                dry_run: false,
            });
        }
        let catalog = Catalog { revision: 1, hosts, policy: policy.into(), ..Catalog::default() };
        let services = LocalServices {
            addresses: [[10, 0, 0, 1].into()].into(),
            listeners: here,
            ..LocalServices::default()
        };
        Rules::new(Arc::new(catalog), Arc::new(services), "here".parse().expect("a name"))
    }

    fn judge(rules: &Rules, caller: &str, node: &str, destination: &str) -> Option<(Action, Option<u32>)> {
        let caller = format!("spiffe://mesh.test/{caller}").parse().expect("an identity");
        let (node, destination) = (node.parse().expect("a name"), destination.parse().expect("an address"));
        let verdict = rules.judge(&rules.find(&caller, &node, destination)?);
        Some((verdict.action, verdict.rule.map(RuleId::number)))
    }

    #[test]
    fn a_rule_about_a_workload_holds_for_its_caller_and_its_service() {
        let rules = rules(&[
            (Action::Deny, "host/there/web.service", "host/here/db.service"),
            (Action::Deny, "here", "host/*/web.service"),
        ]);
        let denied = |rule| Some((Action::Deny, Some(rule)));
        assert_eq!(judge(&rules, "host/there/web.service", "here", "10.0.0.1:5432"), denied(1));
        assert_eq!(
            judge(&rules, "host/there/other.service", "here", "10.0.0.1:5432"),
            Some((Action::Allow, None))
        );
        assert_eq!(judge(&rules, "host/here/db.service", "there", "10.0.0.2:80"), denied(2));
        assert_eq!(
            judge(&rules, "host/here/db.service", "there", "10.0.0.2:81"),
            Some((Action::Allow, None))
        );
    }

    #[test]
    fn who_is_neither_a_host_nor_a_workload_is_no_caller() {
        let rules = rules(&[(Action::Allow, "*", "*")]);
        for caller in ["server/murmesh00", "service/web"] {
            assert_eq!(judge(&rules, caller, "here", "10.0.0.1:5432"), None, "{caller}");
        }
    }

    #[test]
    fn who_has_stopped_listening_since_is_still_who_it_was() {
        let texts =
            [(Action::Allow, "host/there/web.service", "host/here/db.service"), (Action::Deny, "*", "*")];
        let caller = "spiffe://mesh.test/host/there/web.service".parse().expect("an identity");
        let (here, db) = ("here".parse().expect("a name"), "10.0.0.1:5432".parse().expect("an address"));
        let found = rules(&texts).find(&caller, &here, db).expect("a caller");
        let later = rules_with(&texts, Vec::new(), BTreeSet::new());
        assert_eq!(later.judge(&found).action, Action::Allow);
        let anew = later.find(&caller, &here, db).expect("a caller");
        assert_eq!(later.judge(&anew).action, Action::Deny, "whoever listens there now");
        assert_eq!(rules(&texts[1..]).judge(&found).action, Action::Deny, "by other rules");
    }
}
