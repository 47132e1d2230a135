//! Whether an instance of a named service takes new connections, and why not.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Catalog, Host};
use crate::identity::NodeName;
use crate::policy::Service;

/// Why an instance takes no new connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unavailable {
    /// Its host has not joined, or was removed.
    NoHost,
    /// An administrator has drained its host.
    HostDrained,
    /// An administrator has drained it.
    Drained,
    /// No server hears of its host any more.
    HostLost,
    /// Nothing on its host listens on the service's port, at an address that others can dial.
    NotListening,
    /// Somebody does, but another workload than the service's.
    Stranger,
    /// Its host's check of it fails.
    Failing(String),
}

impl Catalog {
    /// Why the instance of `service` on `node` takes no new connections; `None` if it does.
    pub fn unavailable(&self, service: &Service, node: &NodeName) -> Option<Unavailable> {
        let Some(host) = self.hosts.get(node) else { return Some(Unavailable::NoHost) };
        if self.policy.drained.contains(node) {
            return Some(Unavailable::HostDrained);
        }
        if service.drained.contains(node) {
            return Some(Unavailable::Drained);
        }
        if host.lost {
            return Some(Unavailable::HostLost);
        }
        if !host.serves(service) {
            let is_taken =
                host.report.listeners.iter().any(|listener| listener.address.port() == service.port);
            return Some(if is_taken { Unavailable::Stranger } else { Unavailable::NotListening });
        }
        // What its host found by a check that is not wanted any more counts for nothing.
        let failing = host.report.failing.get(&service.name).filter(|_| service.check.is_some());
        failing.cloned().map(Unavailable::Failing)
    }

    /// The instances of `service`, each with its host, which may be missing.
    pub fn instances<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a NodeName, Option<&'a Host>, Option<Unavailable>)> {
        service
            .hosts
            .iter()
            .map(|node| (node, self.hosts.get(node).map(AsRef::as_ref), self.unavailable(service, node)))
    }

    /// The host that has a named service at `address`, whether it listens or not.
    pub fn named_at(&self, address: SocketAddr) -> Option<&NodeName> {
        let is_named = |host: &&Arc<Host>| {
            host.report.addresses.contains(&address.ip())
                && self.policy.service_at(&host.node, address.port()).is_some()
        };
        self.hosts.values().find(is_named).map(|host| &host.node)
    }
}

impl Host {
    /// Whether it listens on the port of `service` under its name.
    pub fn serves(&self, service: &Service) -> bool {
        self.report.listeners.iter().any(|listener| {
            listener.address.port() == service.port && service.is_served_by(listener.workload.as_ref())
        })
    }
}

impl Unavailable {
    /// In one word, from a bounded set.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoHost => "absent",
            Self::HostDrained | Self::Drained => "drained",
            Self::HostLost => "lost",
            Self::NotListening | Self::Stranger => "down",
            Self::Failing(_) => "failing",
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoHost => "no such host is in the mesh",
            Self::HostDrained => "the host is drained",
            Self::Drained => "drained",
            Self::HostLost => "no server hears of the host",
            Self::NotListening => "nothing listens on the port",
            Self::Stranger => "another workload listens on the port",
            Self::Failing(reason) => reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Listener, Report};
    use crate::policy::{Check, Probe};

    fn world(change: impl FnOnce(&mut Catalog, &mut Host, &mut Service)) -> Option<Unavailable> {
        let node: NodeName = "fcs00".parse().unwrap();
        let address = "0.0.0.0:8181".parse().unwrap();
        let report = Report {
            listeners: vec![Listener { address, ipv6_only: false, workload: None }],
            ..Report::default()
        };
        let mut host = Host { node: node.clone(), report, last_seen: None, connected: false, lost: false };
        let mut service = Service::new("fortune".parse().unwrap(), [node.clone()], 8181);
        let mut catalog = Catalog::default();
        change(&mut catalog, &mut host, &mut service);
        catalog.hosts.insert(node.clone(), Arc::new(host));
        catalog.unavailable(&service, &node)
    }

    fn failing(host: &mut Host) {
        host.report.failing.insert("fortune".parse().unwrap(), "tcp: connection refused".to_owned());
    }

    #[test]
    fn what_listens_is_available_unless_something_speaks_against_it() {
        assert_eq!(world(|_, _, _| {}), None);
        let drain = |policy: &mut crate::policy::Policy| {
            policy.drained = Arc::new(["fcs00".parse().unwrap()].into());
        };
        assert_eq!(
            world(|catalog, _, _| drain(Arc::make_mut(&mut catalog.policy))),
            Some(Unavailable::HostDrained)
        );
        let drained = world(|_, _, service| service.drained = service.hosts.clone());
        assert_eq!(drained, Some(Unavailable::Drained));
        assert_eq!(world(|_, host, _| host.lost = true), Some(Unavailable::HostLost));
        assert_eq!(world(|_, host, _| host.report.listeners.clear()), Some(Unavailable::NotListening));
        let kept = world(|_, _, service| service.workload = "web.service".parse().ok());
        assert_eq!(kept, Some(Unavailable::Stranger));
        let other = Service::new("other".parse().unwrap(), ["fcs09".parse().unwrap()], 1);
        let absent = Catalog::default().unavailable(&other, &"fcs09".parse().unwrap());
        assert_eq!(absent, Some(Unavailable::NoHost));
    }

    #[test]
    fn a_check_counts_while_it_is_wanted() {
        assert_eq!(world(|_, host, _| failing(host)), None);
        let checked = world(|_, host, service| {
            failing(host);
            service.check = Some(Check::from(Probe::Tcp));
        });
        assert_eq!(checked.map(|reason| reason.to_string()), Some("tcp: connection refused".to_owned()));
    }
}
