//! What an agent knows of the mesh: its hosts, what they listen on, which addresses lead to them, and who may reach
//! what.

mod endpoints;
mod instance;
mod limits;
mod reach;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

pub use endpoints::Endpoint;
pub use instance::Unavailable;
pub use limits::MAX_REASON_BYTES;
pub use reach::{Reach, ReachError};
pub use wire::{WireError, removed_hosts};

use crate::identity::token::ServerAddress;
use crate::identity::{NodeName, Removed, ServiceName, Trust, WorkloadName};
use crate::policy::{Mode, Policy, Service};

/// All hosts of the mesh at one revision. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Grows with every durable change; 0 before the first snapshot.
    pub revision: u64,
    /// Every host that has joined.
    pub hosts: BTreeMap<NodeName, Arc<Host>>,
    /// Who may reach what.
    pub policy: Arc<Policy>,
    /// Hosts that were removed, and whose certificates are refused.
    pub removed: Arc<Removed>,
    /// The roots of the mesh.
    pub trust: Arc<Trust>,
    /// Every server of the mesh, by name.
    pub servers: Arc<[Server]>,
}

/// One server of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub node: NodeName,
    /// Where agents find it.
    pub addresses: Vec<ServerAddress>,
    /// Its version.
    pub version: String,
    /// When other servers last heard of it, if ever.
    pub last_seen: Option<SystemTime>,
    /// Whether it runs and reaches the store.
    pub connected: bool,
    /// Whether it does what only one server may do.
    pub leader: bool,
}

/// One host as the server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub node: NodeName,
    /// What it last said about itself; nothing before its first report.
    pub report: Report,
    /// When the server last heard of it, if ever.
    pub last_seen: Option<SystemTime>,
    /// Whether its agent is connected to a server now.
    pub connected: bool,
    /// It is not connected, and that is not just so for a moment: its services are taken for dead.
    pub lost: bool,
}

/// What a host says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Every address by which others may dial it. Never loopback, link-local, multicast or unspecified,
    /// and never IPv4-mapped.
    pub addresses: Vec<IpAddr>,
    /// Where its agent accepts tunnels; 0 when it does not.
    pub tunnel_port: u16,
    /// Its listening TCP sockets.
    pub listeners: Vec<Listener>,
    /// Version of its agent.
    pub version: String,
    /// Named services of the host whose check fails, and how.
    pub failing: BTreeMap<ServiceName, String>,
}

/// One listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listener {
    /// The address that it is bound to; the IP address may be unspecified ("any").
    pub address: SocketAddr,
    /// For an IPv6 address: IPv4 clients are not accepted.
    pub ipv6_only: bool,
    /// Who listens; `None` where its host does not tell workloads apart.
    pub workload: Option<WorkloadName>,
}

impl Catalog {
    /// Addresses of the hosts, and whose they are.
    pub fn addresses(&self) -> BTreeMap<IpAddr, &NodeName> {
        let hosts = self.hosts.values();
        hosts.flat_map(|host| host.report.addresses.iter().map(|address| (*address, &host.node))).collect()
    }

    /// The named services of `node` that are strict there while nothing listens on their port, as far as the host tells:
    /// what a packet filter forwards from it, to a container for example, is not held back by the kernel half.
    pub fn unheld_services(&self, node: &NodeName) -> impl Iterator<Item = &Service> {
        let host = self.hosts.get(node).filter(|host| host.connected);
        let ports: BTreeSet<_> = host
            .iter()
            .flat_map(|host| host.report.listeners.iter().map(|listener| listener.address.port()))
            .collect();
        let services = self.policy.services().values().filter(move |_| host.is_some()).map(AsRef::as_ref);
        services.filter(move |service| {
            service.hosts.contains(node)
                && !ports.contains(&service.port)
                && self.policy.mode_at(node, service.port) == Mode::Strict
        })
    }
}

impl Report {
    /// The listener that takes connections to `destination`. One that is bound to just this address comes before one
    /// for any; among equals the first in their order, so that every host names the same.
    pub fn listener(&self, destination: SocketAddr) -> Option<&Listener> {
        if self.addresses.contains(&destination.ip()) { choose(&self.listeners, destination) } else { None }
    }
}

/// The listener that takes connections to `destination`, an address of its host; as [`Report::listener`].
pub fn choose<'a>(
    listeners: impl IntoIterator<Item = &'a Listener>,
    destination: SocketAddr,
) -> Option<&'a Listener> {
    let (ip, port) = (destination.ip(), destination.port());
    let accepting =
        listeners.into_iter().filter(|listener| listener.address.port() == port && listener.accepts(ip));
    accepting.min_by_key(|listener| listener.preference(destination))
}

impl Listener {
    /// Of those that accept connections to `destination`, the least takes them.
    fn preference(&self, destination: SocketAddr) -> impl Ord + use<'_> {
        (self.address.ip() != destination.ip(), self)
    }

    /// Whether the listener takes connections made to `address`, which is one of its host's.
    pub fn accepts(&self, address: IpAddr) -> bool {
        match self.address.ip() {
            IpAddr::V4(any) if any.is_unspecified() => address.is_ipv4(),
            IpAddr::V6(any) if any.is_unspecified() => address.is_ipv6() || !self.ipv6_only,
            exact => exact == address,
        }
    }
}
