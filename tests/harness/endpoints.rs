//! Endpoints that no catalog has.

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use murmesh_common::{Destination, Endpoint, SocketAddress};

use crate::host::Host;

/// Adds `destinations` to what the hooks of `host` redirect, behind the back of its agent.
pub fn add_endpoints(host: &Host, destinations: impl IntoIterator<Item = SocketAddrV4>) -> Result<()> {
    let path = host.bpf_directory().join("maps/ENDPOINTS");
    let data = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    let mut map: HashMap<_, SocketAddress, Endpoint> = HashMap::try_from(Map::HashMap(data))?;
    let source = SocketAddr::new(host.ipv4().into(), 0).into();
    for destination in destinations {
        let key = SocketAddress::from(SocketAddr::V4(destination));
        map.insert(key, Endpoint { source, destination: Destination::OPEN }, 0)
            .with_context(|| format!("adding {destination}"))?;
    }
    Ok(())
}
