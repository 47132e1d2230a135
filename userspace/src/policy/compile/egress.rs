//! Entries of the `EGRESS` trie.
//!
//! The kernel half asks for the exact port first and, where nothing covers the address there, for any port. A prefix
//! without a port must therefore be repeated for each port that has an entry around it.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use murmesh_common::{self as kernel, NetworkKey, SocketAddress};

use super::classes::Destinations;
use super::{CLOSED, NetworkEntry};
use crate::policy::{Action, Destination, DestinationPattern, Network, Outside, Policy, Protocol};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// Bits before an IPv4 address in its mapped form.
const MAPPED: u32 = 96;

/// What an entry stands for.
pub enum Node {
    /// Addresses about which the same rules speak.
    Outside(Outside),
    /// An address of this host, which is not outside.
    Here,
}

/// What becomes of a [`Node`].
pub enum Judged {
    As(usize),
    Always(kernel::Destination),
}

impl Node {
    pub fn index(self, destinations: &mut Destinations<'_>) -> Judged {
        match self {
            Self::Outside(outside) => Judged::As(destinations.add(&Destination::Outside(outside))),
            Self::Here => Judged::Always(kernel::Destination::OPEN),
        }
    }
}

impl Judged {
    pub fn destination(self, destinations: &[kernel::Destination]) -> kernel::Destination {
        match self {
            Self::As(index) => destinations[index],
            Self::Always(destination) => destination,
        }
    }
}

/// Nothing, while no rule speaks of anything outside the mesh and everything there is allowed.
pub fn nodes(policy: &Policy, here: &BTreeSet<IpAddr>) -> HashMap<NetworkEntry, Node> {
    let rules = policy.rules().values().filter_map(|rule| match &rule.destination {
        DestinationPattern::Outside(outside) => Some(*outside),
        DestinationPattern::Mesh { .. } => None,
    });
    let rules: BTreeSet<Outside> = rules.collect();
    let mut nodes = HashMap::new();
    if !rules.is_empty() || policy.defaults.egress == Action::Deny {
        let here: BTreeSet<Network> = here.iter().map(|address| Network::of(*address)).collect();
        for protocol in PROTOCOLS {
            add(&mut nodes, protocol, &rules, &here);
        }
    }
    nodes
}

/// For services of the mesh for which there is no room.
pub fn refusals(left_out: &[SocketAddr]) -> impl Iterator<Item = (NetworkEntry, kernel::Destination)> {
    left_out.iter().map(|address| {
        let network = Network::of(address.ip());
        (entry(&Outside { network, port: Some(address.port()), protocol: None }, Protocol::Tcp), CLOSED)
    })
}

/// For when there is no room: nothing gets out.
pub fn closed() -> HashMap<NetworkEntry, kernel::Destination> {
    let everything = PROTOCOLS.into_iter().flat_map(|protocol| {
        everything()
            .map(|network| (entry(&Outside { network, port: None, protocol: None }, protocol), CLOSED))
    });
    everything.collect()
}

fn everything() -> [Network; 2] {
    [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()].map(|address| {
        // Every address has as many as no bits.
        Network::around(address, 0).unwrap_or_else(|| Network::of(address))
    })
}

fn add(
    nodes: &mut HashMap<NetworkEntry, Node>,
    protocol: Protocol,
    rules: &BTreeSet<Outside>,
    here: &BTreeSet<Network>,
) {
    let mut with_port = HashMap::<u16, BTreeSet<Network>>::new();
    let mut without: BTreeSet<Network> = everything().into();
    without.extend(here);
    for rule in rules.iter().filter(|rule| rule.protocol.is_none_or(|named| named == protocol)) {
        match rule.port {
            Some(port) => with_port.entry(port).or_default().insert(rule.network),
            None => without.insert(rule.network),
        };
    }
    let mut put = |network: Network, port| {
        let outside = Outside { network, port, protocol: Some(protocol) };
        let node = if here.contains(&network) { Node::Here } else { Node::Outside(outside) };
        nodes.insert(entry(&outside, protocol), node);
    };
    for (port, networks) in with_port {
        let repeated = without.iter().filter(|network| is_inside_any(network, &networks));
        for network in repeated.chain(&networks) {
            put(*network, Some(port));
        }
    }
    for network in without {
        put(network, None);
    }
}

fn is_inside_any(network: &Network, others: &BTreeSet<Network>) -> bool {
    (0..network.length()).any(|length| {
        Network::around(network.address(), length).is_some_and(|around| others.contains(&around))
    })
}

/// The entry for the addresses of `outside`.
pub fn entry(outside: &Outside, protocol: Protocol) -> NetworkEntry {
    let address = outside.network.address();
    let port = outside.port.unwrap_or(0).to_be();
    let key = NetworkKey::new(&SocketAddress::from(SocketAddr::new(address, 0)), port, protocol.into());
    let family = if address.is_ipv4() { MAPPED } else { 0 };
    (NetworkKey::EXACT_BITS + family + u32::from(outside.network.length()), key)
}
