//! Endpoints and rules that no catalog has.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData};
use murmesh_common::{
    Destination, Endpoint, NetworkKey, PolicyState, Protocol, SocketAddress, Verdict, VerdictKey,
    WorkloadEntry,
};

use crate::host::Host;

/// The class of the processes in a host's cgroup.
const SOURCE: u32 = 1;

/// The networks outside the mesh that rules name: as many of this length, from here on.
const OUTSIDE: (Ipv4Addr, u32) = (Ipv4Addr::new(20, 0, 0, 0), 24);

/// Adds `destinations` to what the hooks of `host` redirect, behind the back of its agent.
pub fn add_endpoints(host: &Host, destinations: impl IntoIterator<Item = SocketAddrV4>) -> Result<()> {
    put_endpoints(host, destinations.into_iter().map(|destination| (destination, Destination::OPEN)))
}

/// Makes the hooks of `host` enforce `rules` rules in the mesh and as many outside of it, all about what runs in its
/// cgroup. Each of `destinations` is what one of them is about, and that allows it, but for `denied`.
pub fn add_rules(
    host: &Host,
    rules: u32,
    destinations: impl IntoIterator<Item = SocketAddrV4>,
    denied: SocketAddrV4,
) -> Result<()> {
    let mut workloads = hash::<u64, WorkloadEntry>(host, "WORKLOADS")?;
    let cgroup = std::fs::metadata(host.cgroup()).context("looking at the host's cgroup")?.ino();
    workloads.insert(cgroup, WorkloadEntry { class: SOURCE, ..WorkloadEntry::default() }, 0)?;
    let mut verdicts = hash::<VerdictKey, Verdict>(host, "VERDICTS")?;
    let allowed = Verdict { denied: 0, rule: 0, dry_run: 0 };
    let forbidden = Verdict { denied: 1, rule: 1, dry_run: 0 };
    for class in 0..=rules {
        let verdict = if class == 0 { forbidden } else { allowed };
        verdicts.insert(VerdictKey { source: SOURCE, destination: class }, verdict, 0)?;
    }
    let about = |class| Destination { class, flags: Destination::BY_SOURCE, verdict: forbidden };
    let numbered =
        (0..).zip(destinations).map(|(number, destination)| (destination, about(1 + number % rules)));
    put_endpoints(host, numbered.chain([(denied, about(0))]))?;
    put_networks(host, rules, about(1))
}

fn put_endpoints(host: &Host, endpoints: impl Iterator<Item = (SocketAddrV4, Destination)>) -> Result<()> {
    let mut map = hash::<SocketAddress, Endpoint>(host, "ENDPOINTS")?;
    let source = SocketAddr::new(host.ipv4().into(), 0).into();
    for (address, destination) in endpoints {
        let key = SocketAddress::from(SocketAddr::V4(address));
        map.insert(key, Endpoint { source, destination }, 0).with_context(|| format!("adding {address}"))?;
    }
    Ok(())
}

/// And everything else outside the mesh, which nothing but the default is about, as if it depended on the source.
fn put_networks(host: &Host, rules: u32, destination: Destination) -> Result<()> {
    const MAPPED: u32 = 96;
    let mut trie = LpmTrie::<_, NetworkKey, Destination>::try_from(Map::LpmTrie(open(host, "EGRESS")?))?;
    let (first, length) = OUTSIDE;
    let network = |number: u32| Ipv4Addr::from_bits(first.to_bits() + (number << (32 - length)));
    let networks = (0..rules).map(|number| (network(number), length));
    for (address, length) in networks.chain([(Ipv4Addr::UNSPECIFIED, 0)]) {
        let address = SocketAddress::from(SocketAddr::new(address.into(), 0));
        let key = NetworkKey::new(&address, 0, Protocol::Tcp);
        trie.insert(&Key::new(NetworkKey::EXACT_BITS + MAPPED + length, key), destination, 0)?;
    }
    let mut state = Array::<_, PolicyState>::try_from(Map::Array(open(host, "POLICY")?))?;
    state.set(0, PolicyState { egress: 1, ..PolicyState::default() }, 0)?;
    Ok(())
}

fn hash<K: Pod, V: Pod>(host: &Host, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(HashMap::try_from(Map::HashMap(open(host, name)?))?)
}

fn open(host: &Host, name: &str) -> Result<MapData> {
    let path = host.bpf_directory().join("maps").join(name);
    MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))
}
