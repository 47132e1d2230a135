//! Between the catalog's types and what travels in the API. Everything from the wire is validated here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use prost::{DecodeError, Message as _};
use rustls_pki_types::CertificateDer;

use super::limits::{MAX_ADDRESSES, MAX_FAILING, MAX_LISTENERS, MAX_REASON_BYTES, at_most};
use super::{Catalog, Host, Listener, Report, Server};
use crate::api::{time_from_unix, unix_seconds, v1};
use crate::identity::token::ServerAddressError;
use crate::identity::{NameError, NodeName, Removed, ServiceName, Trust, fingerprints};
use crate::policy::{InvalidMessage, Policy};

const MAX_VERSION_BYTES: usize = 64;
const MAX_SERVERS: usize = 64;

/// What was wrong with a message of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A node name that is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A text that is not an IP address.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// An address by which no other host can dial this one.
    #[error("{0} is not an address by which other hosts can dial this one")]
    NotGlobal(IpAddr),
    /// Not a port number.
    #[error("{0} is not a port number")]
    Port(u32),
    /// More of something than is allowed.
    #[error("too many {what}: {count}, where {limit} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many came.
        count: usize,
        /// How many may come.
        limit: usize,
    },
    /// A text that is not the address of a server.
    #[error(transparent)]
    Server(#[from] ServerAddressError),
    /// A part of the policy.
    #[error(transparent)]
    Policy(#[from] InvalidMessage),
    /// A time that no clock shows.
    #[error("{0} is not a time at which a host was removed")]
    Time(u64),
    /// The roots of the mesh.
    #[error("the root that signs is not among those that are trusted")]
    Trust,
    /// Bytes that are not an event.
    #[error("a catalog event cannot be read: {0}")]
    Encoding(#[from] DecodeError),
    /// An event without content.
    #[error("a catalog event is empty; the server may be newer than this agent")]
    EmptyEvent,
}

impl Catalog {
    /// Takes one message of the server's watch stream.
    ///
    /// # Errors
    /// When any of its events is invalid; the catalog then has those before it.
    pub fn take(&mut self, events: &v1::CatalogEvents) -> Result<(), WireError> {
        events.events.iter().try_for_each(|event| self.apply(v1::CatalogEvent::decode(event.clone())?))
    }

    /// Takes one event.
    ///
    /// # Errors
    /// When any part of it is invalid; the catalog is then unchanged.
    pub fn apply(&mut self, event: v1::CatalogEvent) -> Result<(), WireError> {
        use v1::catalog_event::Event;
        match event.event.ok_or(WireError::EmptyEvent)? {
            Event::Snapshot(snapshot) => {
                let hosts = snapshot.hosts.into_iter().map(Host::try_from);
                let hosts = hosts.map(|host| host.map(|host| (host.node.clone(), Arc::new(host))));
                let hosts = hosts.collect::<Result<_, _>>()?;
                let mut removed = Removed::default();
                snapshot.removed_hosts.iter().try_for_each(|host| refuse(&mut removed, host))?;
                let trust = snapshot.trust.map(trust).transpose()?;
                let servers = servers(snapshot.servers.unwrap_or_default())?;
                self.policy = Arc::new(Policy::try_from(snapshot.policy.unwrap_or_default())?);
                (self.hosts, self.servers, self.removed) = (hosts, servers, Arc::new(removed));
                self.trust = trust.unwrap_or_default().into();
            }
            Event::Host(host) => {
                let host = Host::try_from(host)?;
                self.hosts.insert(host.node.clone(), Arc::new(host));
            }
            Event::HostRemoved(node) => {
                self.hosts.remove(&node.parse()?);
            }
            Event::Presences(presences) => {
                let named = presences.hosts.into_iter().map(|host| Ok((host.node.parse()?, host)));
                let named: Vec<(NodeName, v1::Presence)> = named.collect::<Result<_, NameError>>()?;
                named.iter().for_each(|(node, presence)| self.take_presence(node, presence));
            }
            Event::Trust(message) => self.trust = trust(message)?.into(),
            Event::HostRefused(host) => refuse(Arc::make_mut(&mut self.removed), &host)?,
            Event::Servers(list) => self.servers = servers(list)?,
            change => Arc::make_mut(&mut self.policy).apply(change)?,
        }
        self.revision = event.revision;
        Ok(())
    }
}

impl Catalog {
    /// One of a host that is not known says nothing.
    fn take_presence(&mut self, node: &NodeName, presence: &v1::Presence) {
        if let Some(host) = self.hosts.get_mut(node) {
            let host = Arc::make_mut(host);
            host.last_seen = time_from_unix(presence.last_seen);
            (host.connected, host.lost) = (presence.connected, presence.lost);
        }
    }
}

impl From<&Catalog> for v1::Snapshot {
    fn from(catalog: &Catalog) -> Self {
        let hosts = catalog.hosts.values().map(|host| v1::Host::from(host.as_ref())).collect();
        let servers = catalog.servers.iter().map(v1::Server::from).collect();
        let servers = Some(v1::ServerList { servers });
        let removed_hosts = removed_hosts(&catalog.removed);
        let trust = v1::Trust {
            roots: catalog.trust.roots.iter().map(|root| root.to_vec()).collect(),
            signing: catalog.trust.signing.to_vec(),
        };
        let trust = Some(trust).filter(|trust| !trust.roots.is_empty());
        let policy = Some((&*catalog.policy).into());
        Self { hosts, policy, servers, removed_hosts, trust, ejections: vec![] }
    }
}

impl TryFrom<v1::Snapshot> for Catalog {
    type Error = WireError;

    fn try_from(snapshot: v1::Snapshot) -> Result<Self, WireError> {
        let mut catalog = Self::default();
        let event = Some(v1::catalog_event::Event::Snapshot(snapshot));
        catalog.apply(v1::CatalogEvent { revision: 0, event })?;
        Ok(catalog)
    }
}

fn servers(list: v1::ServerList) -> Result<Arc<[Server]>, WireError> {
    at_most("servers", list.servers.len(), MAX_SERVERS)?;
    list.servers.into_iter().map(Server::try_from).collect()
}

impl From<&Server> for v1::Server {
    fn from(server: &Server) -> Self {
        Self {
            node: server.node.to_string(),
            addresses: server.addresses.iter().map(ToString::to_string).collect(),
            version: server.version.clone(),
            last_seen: server.last_seen.map_or(0, unix_seconds),
            connected: server.connected,
            leader: server.leader,
        }
    }
}

impl TryFrom<v1::Server> for Server {
    type Error = WireError;

    fn try_from(server: v1::Server) -> Result<Self, WireError> {
        let addresses: Result<_, ServerAddressError> =
            server.addresses.iter().map(|address| address.parse()).collect();
        Ok(Self {
            node: server.node.parse()?,
            addresses: addresses?,
            version: server.version,
            last_seen: time_from_unix(server.last_seen),
            connected: server.connected,
            leader: server.leader,
        })
    }
}

impl From<&Host> for v1::Host {
    fn from(host: &Host) -> Self {
        Self {
            node: host.node.to_string(),
            report: Some((&host.report).into()),
            last_seen: host.last_seen.map_or(0, unix_seconds),
            connected: host.connected,
            lost: host.lost,
        }
    }
}

impl TryFrom<v1::Host> for Host {
    type Error = WireError;

    fn try_from(host: v1::Host) -> Result<Self, WireError> {
        Ok(Self {
            node: host.node.parse()?,
            report: host.report.map(Report::try_from).transpose()?.unwrap_or_default(),
            last_seen: time_from_unix(host.last_seen),
            connected: host.connected,
            lost: host.lost,
        })
    }
}

impl From<&Report> for v1::HostReport {
    fn from(report: &Report) -> Self {
        let listener = |listener: &Listener| v1::Listener {
            address: listener.address.ip().to_string(),
            port: listener.address.port().into(),
            ipv6_only: listener.ipv6_only,
            workload: listener.workload.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let failing = |(service, reason): (&ServiceName, &String)| v1::Failing {
            service: service.to_string(),
            reason: reason.clone(),
        };
        Self {
            addresses: report.addresses.iter().map(ToString::to_string).collect(),
            tunnel_port: report.tunnel_port.into(),
            listeners: report.listeners.iter().map(listener).collect(),
            version: report.version.clone(),
            failing: report.failing.iter().map(failing).collect(),
        }
    }
}

impl TryFrom<v1::HostReport> for Report {
    type Error = WireError;

    fn try_from(report: v1::HostReport) -> Result<Self, WireError> {
        at_most("addresses", report.addresses.len(), MAX_ADDRESSES)?;
        at_most("listeners", report.listeners.len(), MAX_LISTENERS)?;
        at_most("failing services", report.failing.len(), MAX_FAILING)?;
        at_most("bytes in the version", report.version.len(), MAX_VERSION_BYTES)?;
        Ok(Self {
            addresses: report.addresses.iter().map(|text| dialable(text)).collect::<Result<_, _>>()?,
            tunnel_port: port(report.tunnel_port)?,
            listeners: report.listeners.into_iter().map(Listener::try_from).collect::<Result<_, _>>()?,
            version: report.version,
            failing: report.failing.into_iter().map(failing).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<v1::Listener> for Listener {
    type Error = WireError;

    fn try_from(listener: v1::Listener) -> Result<Self, WireError> {
        let (address, port) = (canonical(&listener.address)?, port(listener.port)?);
        if port == 0 {
            return Err(WireError::Port(0));
        }
        let workload = Some(listener.workload).filter(|name| !name.is_empty());
        Ok(Self {
            address: SocketAddr::new(address, port),
            ipv6_only: listener.ipv6_only && address.is_ipv6(),
            workload: workload.map(|name| name.parse()).transpose()?,
        })
    }
}

/// Every host that was removed, as it travels.
pub fn removed_hosts(removed: &Removed) -> Vec<v1::RemovedHost> {
    let host =
        |(node, at): (&NodeName, _)| v1::RemovedHost { node: node.to_string(), removed_at: unix_seconds(at) };
    removed.iter().map(host).collect()
}

fn trust(message: v1::Trust) -> Result<Trust, WireError> {
    let signing = message.signing.try_into().map_err(|_| WireError::Trust)?;
    let roots: Vec<CertificateDer<'static>> = message.roots.into_iter().map(CertificateDer::from).collect();
    if fingerprints(&roots).contains(&signing) { Ok(Trust { roots, signing }) } else { Err(WireError::Trust) }
}

fn refuse(removed: &mut Removed, host: &v1::RemovedHost) -> Result<(), WireError> {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(host.removed_at));
    removed.insert(host.node.parse()?, at.ok_or(WireError::Time(host.removed_at))?);
    Ok(())
}

fn port(number: u32) -> Result<u16, WireError> {
    u16::try_from(number).map_err(|_| WireError::Port(number))
}

/// RFC 4291 section 2.5.5.2: an IPv4-mapped IPv6 address stands for its IPv4 address.
fn canonical(text: &str) -> Result<IpAddr, WireError> {
    let address: IpAddr = text.parse().map_err(|_| WireError::Address(text.chars().take(80).collect()))?;
    Ok(address.to_canonical())
}

fn failing(message: v1::Failing) -> Result<(ServiceName, String), WireError> {
    at_most("bytes in a reason", message.reason.len(), MAX_REASON_BYTES)?;
    Ok((message.service.parse()?, message.reason))
}

fn dialable(text: &str) -> Result<IpAddr, WireError> {
    let address = canonical(text)?;
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified() {
        return Err(WireError::NotGlobal(address));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(addresses: &[&str], listeners: &[(&str, u32)]) -> v1::HostReport {
        let listener = |(address, port): &(&str, u32)| v1::Listener {
            address: (*address).to_owned(),
            port: *port,
            ipv6_only: false,
            workload: String::new(),
        };
        v1::HostReport {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            tunnel_port: 9191,
            listeners: listeners.iter().map(listener).collect(),
            version: "1".to_owned(),
            failing: vec![],
        }
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        let report = Report::try_from(report(
            &["::ffff:10.0.0.1"],
            &[("::ffff:0.0.0.0", 80), ("::ffff:10.0.0.1", 81)],
        ))
        .unwrap();
        assert_eq!(report.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(report.listeners[0].address, "0.0.0.0:80".parse().unwrap());
        assert_eq!(report.listeners[1].address, "10.0.0.1:81".parse().unwrap());
    }

    #[test]
    fn addresses_that_mean_something_else_elsewhere_are_refused() {
        for address in
            ["127.0.0.1", "::1", "0.0.0.0", "::", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1", "x"]
        {
            assert!(Report::try_from(report(&[address], &[])).is_err(), "{address}");
        }
    }

    #[test]
    fn ports_are_ports() {
        assert_eq!(Report::try_from(report(&[], &[("::", 0)])), Err(WireError::Port(0)));
        assert_eq!(Report::try_from(report(&[], &[("::", 65_536)])), Err(WireError::Port(65_536)));
    }

    #[test]
    fn an_invalid_event_leaves_the_catalog_unchanged() {
        let host = |node: &str| v1::Host { node: node.to_owned(), ..Default::default() };
        let event = |hosts| v1::CatalogEvent {
            revision: 5,
            event: Some(v1::catalog_event::Event::Snapshot(v1::Snapshot { hosts, ..Default::default() })),
        };
        let mut catalog = Catalog::default();
        catalog.apply(event(vec![host("a")])).unwrap();
        let before = catalog.clone();
        assert!(catalog.apply(event(vec![host("b"), host("not a name")])).is_err());
        assert!(catalog.apply(v1::CatalogEvent { revision: 6, event: None }).is_err());
        let presence = |node: &str| v1::Presence { node: node.to_owned(), lost: true, ..Default::default() };
        let presences = v1::Presences { hosts: vec![presence("a"), presence("not a name")] };
        let event = Some(v1::catalog_event::Event::Presences(presences));
        assert!(catalog.apply(v1::CatalogEvent { revision: 6, event }).is_err());
        assert_eq!(catalog, before);
    }

    proptest! {
        #[test]
        fn a_report_survives_the_wire(
            addresses in prop::collection::vec(any::<IpAddr>(), 0..5),
            listeners in prop::collection::vec((any::<SocketAddr>(), any::<bool>(), "|[a-z]{1,3}\\.service"), 0..5),
            failing in prop::collection::vec(("[a-z]{1,3}", ".{0,60}"), 0..3),
        ) {
            let sent = v1::HostReport {
                addresses: addresses.iter().map(ToString::to_string).collect(),
                tunnel_port: 9191,
                listeners: listeners.iter().map(|(address, ipv6_only, workload)| v1::Listener {
                    address: address.ip().to_string(),
                    port: address.port().into(),
                    ipv6_only: *ipv6_only,
                    workload: workload.clone(),
                }).collect(),
                version: "1".to_owned(),
                failing: failing.iter().map(|(service, reason)| v1::Failing {
                    service: service.clone(),
                    reason: reason.clone(),
                }).collect(),
            };
            if let Ok(report) = Report::try_from(sent) {
                prop_assert_eq!(Report::try_from(v1::HostReport::from(&report)).unwrap(), report);
            }
        }
    }
}
