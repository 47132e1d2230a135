//! The snapshot that tells who may reach what.

use std::{net::SocketAddr, sync::Arc};

use super::LocalServices;
use crate::{
    catalog::{Catalog, Listener},
    identity::{NodeName, SpiffeId, Subject, WorkloadName},
    policy::{Action, Party, Verdict},
};

/// The policy, and what it takes to know whom it speaks of.
#[derive(Debug, Default)]
pub struct Rules(Option<Known>);

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
        if catalog.policy.is_open() { Self(None) } else { Self(Some(Known { catalog, services, own })) }
    }

    /// Whether everything is allowed, and nothing to be reported.
    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Whether `caller` may connect to `destination`, which is an address of `node`. `None` if the caller is nobody
    /// who connects to services.
    pub fn judge(&self, caller: &SpiffeId, node: &NodeName, destination: SocketAddr) -> Option<Verdict> {
        let Some(known) = &self.0 else { return Some(ALLOWED) };
        let policy = &known.catalog.policy;
        let workload = known.listener(node, destination).and_then(|listener| listener.workload.clone());
        let service = policy.destination(node, workload, destination.port());
        Some(policy.verdict(&known.party(caller)?, &service))
    }
}

impl Known {
    /// By all the names that rules can call it: a workload goes by those of the services that it listens for, too.
    fn party(&self, caller: &SpiffeId) -> Option<Party> {
        let policy = &self.catalog.policy;
        match &caller.subject {
            Subject::Host(node) => Some(policy.source(node, None, [])),
            Subject::Workload(node, workload) => {
                let ports =
                    self.listeners(node).filter(|listener| listener.workload.as_ref() == Some(workload));
                let ports = ports.map(|listener| listener.address.port());
                Some(policy.source(node, Some(WorkloadName::clone(workload)), ports))
            }
            Subject::Server(_) | Subject::Service(_) => None,
        }
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        catalog::{Host, Report},
        policy::{Names, Policy, Rule, RuleId},
    };

    fn listener(port: u16, workload: &str) -> Listener {
        let workload = Some(workload.parse().expect("a name"));
        Listener { address: ([0, 0, 0, 0], port).into(), ipv6_only: false, workload }
    }

    /// Hosts `here`, where db.service listens on 5432, and `there`, where web.service listens on 80.
    fn rules(texts: &[(Action, &str, &str)]) -> Rules {
        let there = Report {
            addresses: vec![[10, 0, 0, 2].into()],
            listeners: vec![listener(80, "web.service")],
            ..Report::default()
        };
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
            listeners: [listener(5432, "db.service")].into(),
            ..LocalServices::default()
        };
        Rules::new(Arc::new(catalog), Arc::new(services), "here".parse().expect("a name"))
    }

    fn judge(rules: &Rules, caller: &str, node: &str, destination: &str) -> Option<(Action, Option<u32>)> {
        let caller = format!("spiffe://mesh.test/{caller}").parse().expect("an identity");
        let (node, destination) = (node.parse().expect("a name"), destination.parse().expect("an address"));
        let verdict = rules.judge(&caller, &node, destination)?;
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
}
