//! What the kernel half counts of connections in clear.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use aya::{
    Pod,
    maps::{MapData, MapError, PerCpuHashMap},
};
use murmesh_common::{PlaintextClient, PlaintextCount, SocketAddress};

use super::{BpfError, Pins, programs::open_pinned, verdicts::uptime};

const PORTS: &str = "PLAINTEXT_PORTS";
const CLIENTS: &str = "PLAINTEXT_CLIENTS";

/// Connections in clear from other hosts that services of this host got, by port and by client, since the programs
/// were loaded.
pub struct Plaintext {
    ports: PerCpuHashMap<MapData, u16, PlaintextCount>,
    clients: PerCpuHashMap<MapData, PlaintextClient, PlaintextCount>,
}

/// How many there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// From hosts of the mesh.
    pub from_mesh: u64,
    /// From elsewhere.
    pub from_outside: u64,
    /// When the last one was made.
    pub last: SystemTime,
}

impl Plaintext {
    /// Opens the maps that are pinned below `pins`.
    ///
    /// # Errors
    /// They are not pinned there.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        let ports = PerCpuHashMap::try_from(open_pinned(pins, PORTS)?).map_err(BpfError::map(PORTS))?;
        let clients = PerCpuHashMap::try_from(open_pinned(pins, CLIENTS)?).map_err(BpfError::map(CLIENTS))?;
        Ok(Self { ports, clients })
    }

    /// By port.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn ports(&self) -> Result<Vec<(u16, Counted)>, BpfError> {
        let counted = counted(&self.ports).map_err(BpfError::map(PORTS))?;
        Ok(counted.into_iter().map(|(port, count)| (u16::from_be(port), count)).collect())
    }

    /// By port and client. Of very many clients those that were seen last.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn clients(&self) -> Result<Vec<(u16, IpAddr, Counted)>, BpfError> {
        let counted = counted(&self.clients).map_err(BpfError::map(CLIENTS))?;
        let client = |(client, count): (PlaintextClient, Counted)| {
            let address = SocketAddress { ip: client.ip, ..SocketAddress::default() };
            (u16::from_be(client.port), SocketAddr::from(address).ip(), count)
        };
        Ok(counted.into_iter().map(client).collect())
    }
}

fn counted<K: Pod>(map: &PerCpuHashMap<MapData, K, PlaintextCount>) -> Result<Vec<(K, Counted)>, MapError> {
    let (now, uptime) = (SystemTime::now(), uptime());
    let mut counted = Vec::new();
    for entry in map.iter() {
        let (key, cpus) = entry?;
        let last = cpus.iter().map(|cpu| cpu.last).max().unwrap_or_default();
        let age = uptime.saturating_sub(Duration::from_nanos(last));
        let count = Counted {
            from_mesh: cpus.iter().map(|cpu| cpu.from_mesh).sum(),
            from_outside: cpus.iter().map(|cpu| cpu.from_outside).sum(),
            last: now.checked_sub(age).unwrap_or(now),
        };
        counted.push((key, count));
    }
    Ok(counted)
}
