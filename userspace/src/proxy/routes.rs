//! The snapshots that a stream is decided by: where destinations lead, and what this host serves to whom.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::Peer;
use crate::{
    catalog::{Catalog, Listener},
    identity::{NodeName, SpiffeId, TrustDomain},
};

/// How one destination is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The agent of the destination's host. Its tunnels go to the destination's own address, so that they take
    /// the way that the plain connection would have taken.
    pub peer: Arc<Peer>,
    /// The address from which this host dials it.
    pub source: IpAddr,
}

/// All destinations that are reached through the mesh from this host.
#[derive(Debug, Default)]
pub struct Routes(HashMap<SocketAddr, Route>);

impl Routes {
    /// Routes to every endpoint in the catalog but this host's own. `source_for` tells the address from which
    /// this host dials another; where there is no route there is nothing to redirect.
    pub fn new(
        catalog: &Catalog,
        own: &NodeName,
        trust_domain: &TrustDomain,
        mut source_for: impl FnMut(SocketAddr) -> Option<IpAddr>,
    ) -> Self {
        let mut peers: HashMap<SocketAddr, Option<(Arc<Peer>, IpAddr)>> = HashMap::new();
        let mut routes = HashMap::new();
        for (destination, endpoint) in catalog.endpoints() {
            let host = &endpoint.host;
            if host.node == *own {
                continue;
            }
            let address = SocketAddr::new(destination.ip(), host.report.tunnel_port);
            let reached = peers.entry(address).or_insert_with(|| {
                let id = SpiffeId::host(trust_domain.clone(), host.node.clone());
                Some((Arc::new(Peer { id, address }), source_for(address)?))
            });
            if let Some((peer, source)) = reached {
                routes.insert(destination, Route { peer: peer.clone(), source: *source });
            }
        }
        Self(routes)
    }

    /// The route to a destination, if it is reached through the mesh.
    pub fn get(&self, destination: SocketAddr) -> Option<&Route> {
        self.0.get(&destination)
    }

    /// Number of destinations.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is reached through the mesh.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Destinations, each with the address from which this host dials it: what the kernel half needs.
    pub fn sources(&self) -> HashMap<SocketAddr, IpAddr> {
        self.0.iter().map(|(destination, route)| (*destination, route.source)).collect()
    }
}

/// What tunnels may reach on this host, and which clients may come through them.
#[derive(Debug, Default)]
pub struct LocalServices {
    /// This host's addresses that others dial.
    pub addresses: BTreeSet<IpAddr>,
    /// Listeners that are neither exempt nor bound to loopback.
    pub listeners: BTreeSet<Listener>,
    /// Addresses of the other hosts, by node.
    pub peers: HashMap<NodeName, HashSet<IpAddr>>,
}

impl LocalServices {
    /// Whether `destination` is a service of this host. It is dialled by this very address, so that a listener
    /// that is bound to loopback only is never reached.
    pub fn serves(&self, destination: SocketAddr) -> bool {
        let port = destination.port();
        self.addresses.contains(&destination.ip())
            && self
                .listeners
                .iter()
                .any(|listener| listener.address.port() == port && listener.accepts(destination.ip()))
    }

    /// Whether a tunnel from `node`, whose connection came from `tunnel_source`, may speak for a client with
    /// address `client`: a host can only name addresses of its own.
    pub fn may_speak_for(&self, node: &NodeName, tunnel_source: IpAddr, client: IpAddr) -> bool {
        client == tunnel_source.to_canonical()
            || self.peers.get(node).is_some_and(|addresses| addresses.contains(&client))
    }
}
