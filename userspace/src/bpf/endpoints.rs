//! The endpoint map: which destinations the hooks redirect.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use aya::maps::{self, Map, MapData};
use murmesh_common::{Destination, Endpoint, SocketAddress};

use super::BpfError;

/// The `ENDPOINTS` map, and what is in it.
pub struct EndpointMap {
    map: maps::HashMap<MapData, SocketAddress, Endpoint>,
    present: HashMap<SocketAddr, IpAddr>,
}

impl EndpointMap {
    pub(super) fn new(map: Map) -> Result<Self, BpfError> {
        let map: maps::HashMap<MapData, SocketAddress, Endpoint> =
            maps::HashMap::try_from(map).map_err(BpfError::map("ENDPOINTS"))?;
        let present = map.iter().map(|entry| {
            let (destination, endpoint) = entry.map_err(BpfError::map("ENDPOINTS"))?;
            Ok((destination.into(), SocketAddr::from(endpoint.source).ip()))
        });
        let present = present.collect::<Result<_, BpfError>>()?;
        Ok(Self { map, present })
    }

    /// Removes what is not in `wanted`, a map from destinations to the address this host dials them from.
    ///
    /// # Errors
    /// The kernel does not remove an entry; those before it are removed.
    pub fn remove_others(&mut self, wanted: &HashMap<SocketAddr, IpAddr>) -> Result<(), BpfError> {
        let gone: Vec<SocketAddr> =
            self.present.keys().filter(|destination| !wanted.contains_key(destination)).copied().collect();
        for destination in gone {
            self.map.remove(&destination.into()).map_err(BpfError::map("ENDPOINTS"))?;
            self.present.remove(&destination);
        }
        Ok(())
    }

    /// Adds what is in `wanted` and missing or different.
    ///
    /// # Errors
    /// The map is full; the entries before are added, and the others stay plain connections until the next call.
    pub fn add(&mut self, wanted: &HashMap<SocketAddr, IpAddr>) -> Result<(), BpfError> {
        for (destination, source) in wanted {
            if self.present.get(destination) == Some(source) {
                continue;
            }
            let endpoint =
                Endpoint { source: SocketAddr::new(*source, 0).into(), destination: Destination::OPEN };
            self.map
                .insert(SocketAddress::from(*destination), endpoint, 0)
                .map_err(BpfError::map("ENDPOINTS"))?;
            self.present.insert(*destination, *source);
        }
        Ok(())
    }

    /// Entries in the map.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether nothing is redirected.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }
}
