//! The snapshot that tells what this host serves to whom, and as whom.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use crate::{
    catalog::{Listener, choose},
    identity::{NodeName, ServiceName, SpiffeId, Subject},
    policy::Service,
};

/// What tunnels may reach on this host, and which clients may come through them.
#[derive(Debug, Default)]
pub struct LocalServices {
    /// This host's addresses that others dial.
    pub addresses: BTreeSet<IpAddr>,
    /// Listeners that are neither exempt nor bound to loopback.
    pub listeners: BTreeSet<Listener>,
    /// Addresses of the other hosts, by node.
    pub peers: HashMap<NodeName, HashSet<IpAddr>>,
    /// The other hosts, by address.
    pub hosts: HashMap<IpAddr, NodeName>,
    /// Named services of this host, by port.
    pub named: BTreeMap<u16, Arc<Service>>,
    /// Those whose names were others a moment ago.
    pub formerly_named: Vec<FormerlyNamed>,
    /// Who its services are, but those that are this host itself.
    pub identities: HashSet<Arc<SpiffeId>>,
}

/// A service whose name was taken from it. Other hosts may hear of that later than this one, and have tunnels to it.
#[derive(Debug, Clone)]
pub struct FormerlyNamed {
    /// As it was.
    pub service: Arc<Service>,
    /// Until when the name is still good enough.
    pub until: Instant,
}

impl LocalServices {
    /// Whether `destination` is a service of this host. It is dialled by this very address, so that a listener
    /// that is bound to loopback only is never reached.
    pub fn serves(&self, destination: SocketAddr) -> bool {
        self.listener(destination).is_some()
    }

    /// The listener that takes connections to `destination`, if it is a service of this host.
    pub fn listener(&self, destination: SocketAddr) -> Option<&Listener> {
        if self.addresses.contains(&destination.ip()) { choose(&self.listeners, destination) } else { None }
    }

    /// Who serves `destination`: a named service, else a workload. `None` if that is not told apart from this host,
    /// or is none of its services.
    pub fn subject(&self, node: &NodeName, destination: SocketAddr) -> Option<Subject> {
        let listener = self.listener(destination)?;
        let service = self.name(listener).cloned().map(Subject::Service);
        let workload = || Some(Subject::Workload(node.clone(), listener.workload.clone()?));
        service.or_else(workload)
    }

    /// The name of the service that a listener is, if it has one.
    fn name(&self, listener: &Listener) -> Option<&ServiceName> {
        let service = self.named.get(&listener.address.port())?;
        service.is_served_by(listener.workload.as_ref()).then_some(&service.name)
    }

    /// Whether `destination`, one of its services, is who `subject` says. This host vouches for all of them, and
    /// whoever listens stays who it is when its port gets a name.
    pub fn is_served_by(&self, destination: SocketAddr, subject: &Subject) -> bool {
        let Some(listener) = self.listener(destination) else { return false };
        match subject {
            Subject::Host(_) => true,
            Subject::Service(presented) => {
                self.name(listener) == Some(presented) || self.had_name(listener, presented)
            }
            Subject::Workload(_, presented) => listener.workload.as_ref() == Some(presented),
            Subject::Server(_) => false,
        }
    }

    fn had_name(&self, listener: &Listener, name: &ServiceName) -> bool {
        self.formerly_named.iter().any(|FormerlyNamed { service, until }| {
            service.port == listener.address.port()
                && service.name == *name
                && service.is_served_by(listener.workload.as_ref())
                && Instant::now() < *until
        })
    }

    /// Whether a tunnel from `node`, whose connection came from `tunnel_source`, may speak for a client with
    /// address `client`: a host can only name addresses of its own.
    pub fn may_speak_for(&self, node: &NodeName, tunnel_source: IpAddr, client: IpAddr) -> bool {
        client == tunnel_source.to_canonical()
            || self.peers.get(node).is_some_and(|addresses| addresses.contains(&client))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn listener(address: &str) -> Listener {
        Listener { address: address.parse().expect("an address"), ipv6_only: false, workload: None }
    }

    fn named(name: &str, port: u16, workload: Option<&str>) -> (u16, Arc<Service>) {
        let service = Service {
            workload: workload.map(|workload| workload.parse().expect("a name")),
            ..Service::new(name.parse().expect("a name"), [], port)
        };
        (port, service.into())
    }

    #[test]
    fn a_service_is_a_listener_on_an_address_of_this_host() {
        let services = LocalServices {
            addresses: BTreeSet::from([ip("10.0.0.1"), ip("10.0.0.5")]),
            listeners: BTreeSet::from([
                listener("0.0.0.0:80"),
                listener("10.0.0.5:81"),
                listener("127.0.0.1:82"),
            ]),
            ..LocalServices::default()
        };
        let serves = |address: &str| services.serves(address.parse().expect("an address"));
        assert!(["10.0.0.1:80", "10.0.0.5:80", "10.0.0.5:81"].into_iter().all(serves));
        let others =
            ["10.0.0.1:81", "10.0.0.1:82", "127.0.0.1:80", "127.0.0.1:82", "10.0.0.9:80", "10.0.0.1:22"];
        assert!(!others.into_iter().any(serves));
    }

    #[test]
    fn a_host_speaks_for_its_own_addresses_only() {
        let node = |name: &str| name.parse().expect("a name");
        let services = LocalServices {
            peers: HashMap::from([
                (node("a"), HashSet::from([ip("10.0.0.2"), ip("10.0.0.3")])),
                (node("b"), HashSet::from([ip("10.0.0.4")])),
            ]),
            ..LocalServices::default()
        };
        let may =
            |name: &str, client: &str| services.may_speak_for(&node(name), ip("::ffff:10.0.0.2"), ip(client));
        assert!(may("a", "10.0.0.3"), "another address of the host");
        assert!(may("unknown", "10.0.0.2"), "where the tunnel itself comes from, as an IPv4 address");
        assert!(!may("a", "10.0.0.4"), "an address of another host");
        assert!(!may("unknown", "10.0.0.3"), "a host that the catalog does not have");
    }

    #[test]
    fn a_service_is_who_listens_unless_it_has_a_name() {
        let workload = "web.service".parse().ok();
        let services = LocalServices {
            addresses: BTreeSet::from([ip("10.0.0.1")]),
            listeners: BTreeSet::from([
                Listener { workload: workload.clone(), ..listener("0.0.0.0:80") },
                Listener { workload, ..listener("0.0.0.0:81") },
                listener("0.0.0.0:82"),
                Listener { workload: "user-mallory".parse().ok(), ..listener("0.0.0.0:83") },
            ]),
            named: [named("shop", 81, None), named("bank", 83, Some("bank.service"))].into(),
            ..LocalServices::default()
        };
        let node = "here".parse().expect("a name");
        let at = |port| SocketAddr::new(ip("10.0.0.1"), port);
        let subject = |port| services.subject(&node, at(port)).map(|subject| subject.to_string());
        assert_eq!(subject(80).as_deref(), Some("host/here/web.service"));
        assert_eq!(subject(81).as_deref(), Some("service/shop"));
        assert_eq!((subject(82), subject(84)), (None, None));
        assert_eq!(subject(83).as_deref(), Some("host/here/user-mallory"), "it is the bank's port");
        let bank = Subject::Service("bank".parse().expect("a name"));
        assert!(!services.is_served_by(at(83), &bank));
        let [web, shop] = [80, 81].map(|port| services.subject(&node, at(port)).expect("told apart"));
        assert!(services.is_served_by(at(80), &web) && services.is_served_by(at(81), &shop));
        assert!(services.is_served_by(at(81), &web), "it listens there, too");
        let others = [(82, &web), (80, &shop), (82, &shop)];
        assert!(!others.into_iter().any(|(port, subject)| services.is_served_by(at(port), subject)));
        assert!(
            [80, 81, 82]
                .into_iter()
                .all(|port| services.is_served_by(at(port), &Subject::Host(node.clone())))
        );
    }

    #[test]
    fn a_name_is_good_enough_for_a_moment_after_it_was_lost() {
        let (now, at) = (Instant::now(), SocketAddr::new(ip("10.0.0.1"), 81));
        let minute = now + Duration::from_secs(60);
        let lost = |workload, until| LocalServices {
            addresses: BTreeSet::from([ip("10.0.0.1")]),
            listeners: BTreeSet::from([listener("0.0.0.0:81")]),
            formerly_named: vec![FormerlyNamed { service: named("shop", 81, workload).1, until }],
            ..LocalServices::default()
        };
        let service = |name: &str| Subject::Service(name.parse().expect("a name"));
        assert!(lost(None, minute).is_served_by(at, &service("shop")));
        assert!(!lost(None, now).is_served_by(at, &service("shop")), "for a moment only");
        assert!(!lost(None, minute).is_served_by(at, &service("other")));
        assert!(!lost(Some("web.service"), minute).is_served_by(at, &service("shop")), "it was another's");
    }
}
