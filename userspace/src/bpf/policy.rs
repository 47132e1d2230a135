//! The maps that say who may connect to what, and what is redirected.

use std::net::SocketAddr;

use aya::maps::{Array, HashMap, LpmTrie, Map, MapData};
use murmesh_common::{
    DenialKey, Destination, Endpoint, NetworkKey, PolicyState, SocketAddress, SourceClass, UserKey, Verdict,
    VerdictKey, WorkloadEntry,
};
use nix::libc;
use tracing::debug;

use super::{BpfError, mirror::Named};
use crate::policy::compile::{Change, Tables, changes, removals};

/// Names of the maps, as in `ebpf/programs`.
pub(super) const POLICY_MAPS: [&str; 10] = [
    "ENDPOINTS",
    "WORKLOADS",
    "USERS",
    "VERDICTS",
    "EGRESS",
    "PORTS",
    "EXCEPTIONS",
    "ADDRESSES",
    "DENIALS",
    "POLICY",
];

/// The maps that are named in `POLICY_MAPS`, and what is in them.
pub struct PolicyMaps {
    endpoints: Named<HashMap<MapData, SocketAddress, Endpoint>>,
    workloads: Named<HashMap<MapData, u64, WorkloadEntry>>,
    users: Named<HashMap<MapData, UserKey, SourceClass>>,
    verdicts: Named<HashMap<MapData, VerdictKey, Verdict>>,
    egress: Named<LpmTrie<MapData, NetworkKey, Destination>>,
    ports: Named<HashMap<MapData, u16, u32>>,
    exceptions: Named<LpmTrie<MapData, NetworkKey, u32>>,
    addresses: Named<HashMap<MapData, [u32; 4], u32>>,
    denials: Named<HashMap<MapData, DenialKey, u32>>,
    state: Named<Array<MapData, PolicyState>>,
    present: Tables,
}

impl PolicyMaps {
    /// From wherever `map` finds each.
    pub(super) fn new(mut map: impl FnMut(&'static str) -> Result<Map, BpfError>) -> Result<Self, BpfError> {
        let [endpoints, workloads, users, verdicts, egress, ports, exceptions, addresses, denials, state] =
            POLICY_MAPS;
        let mut maps = Self {
            endpoints: Named::new(endpoints, map(endpoints)?)?,
            workloads: Named::new(workloads, map(workloads)?)?,
            users: Named::new(users, map(users)?)?,
            verdicts: Named::new(verdicts, map(verdicts)?)?,
            egress: Named::new(egress, map(egress)?)?,
            ports: Named::new(ports, map(ports)?)?,
            exceptions: Named::new(exceptions, map(exceptions)?)?,
            addresses: Named::new(addresses, map(addresses)?)?,
            denials: Named::new(denials, map(denials)?)?,
            state: Named::new(state, map(state)?)?,
            present: Tables::default(),
        };
        maps.present = maps.read()?;
        Ok(maps)
    }

    /// Names of the maps that do not hold what was written into them, as far as `Named::differs` sees in this `turn`.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn altered(&mut self, turn: usize) -> Result<Vec<&'static str>, BpfError> {
        let state = self.state.map().get(&0, 0).map_err(BpfError::map("POLICY"))?;
        let present = &self.present;
        let differs = [
            self.endpoints.differs(&present.endpoints, turn)?,
            self.workloads.differs(&present.workloads, turn)?,
            self.users.differs(&present.users, turn)?,
            self.verdicts.differs(&present.verdicts, turn)?,
            self.egress.differs(&present.egress, turn)?,
            self.ports.differs(&present.ports, turn)?,
            self.exceptions.differs(&present.exceptions, turn)?,
            self.addresses.differs(&present.addresses, turn)?,
            self.denials.differs(&present.denials, turn)?,
            state != present.state,
        ];
        let named = POLICY_MAPS.into_iter().zip(differs);
        Ok(named.filter(|(_, differs)| *differs).map(|(name, _)| name).collect())
    }

    /// Makes the maps hold again what was written into them.
    ///
    /// # Errors
    /// The kernel does not answer, or does not take an entry; the maps are still taken for what was written.
    pub fn restore(&mut self) -> Result<(), BpfError> {
        let wanted = self.present.clone();
        self.present = self.read()?;
        let restored = self.remove_endpoints(&wanted).and_then(|()| self.update(&wanted));
        self.present = wanted;
        restored
    }

    fn read(&mut self) -> Result<Tables, BpfError> {
        Ok(Tables {
            state: self.state.map().get(&0, 0).map_err(BpfError::map("POLICY"))?,
            endpoints: self.endpoints.entries()?,
            workloads: self.workloads.entries()?,
            users: self.users.entries()?,
            verdicts: self.verdicts.entries()?,
            egress: self.egress.entries()?,
            ports: self.ports.entries()?,
            exceptions: self.exceptions.entries()?,
            addresses: self.addresses.entries()?,
            denials: self.denials.entries()?,
        })
    }

    /// What is in them.
    pub fn present(&self) -> &Tables {
        &self.present
    }

    /// Destinations that are known by their exact address.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.present.endpoints.keys().map(|address| SocketAddr::from(*address))
    }

    /// Takes away the endpoints that are not in `wanted`.
    ///
    /// # Errors
    /// The kernel does not remove an entry; those before it are removed.
    pub fn remove_endpoints(&mut self, wanted: &Tables) -> Result<(), BpfError> {
        self.write(removals(&self.present, wanted))
    }

    /// Makes everything be as in `wanted`, and never lets anything through meanwhile that neither the rules from
    /// before nor those from after let through.
    ///
    /// # Errors
    /// The kernel does not take an entry; those before it are written, and the others with the next call.
    pub fn update(&mut self, wanted: &Tables) -> Result<(), BpfError> {
        self.write(changes(&self.present, wanted))
    }

    /// Carries out changes in their order.
    ///
    /// # Errors
    /// The kernel does not take an entry; those before it are written.
    pub fn write(&mut self, changes: Vec<Change>) -> Result<(), BpfError> {
        if !changes.is_empty() {
            debug!(changes = changes.len(), "writing maps");
        }
        for change in changes {
            match change {
                Change::Endpoint(address, endpoint) => self.endpoints.write(address, endpoint)?,
                Change::Workload(cgroup, entry) => self.workloads.write(cgroup, entry)?,
                Change::User(uid, class) => self.users.write(uid, class)?,
                Change::Verdict(key, verdict) => self.verdicts.write(key, verdict)?,
                Change::Egress(entry, destination) => self.egress.write(entry, destination)?,
                Change::Port(port, mode) => self.ports.write(port, mode)?,
                Change::Exception(entry, value) => self.exceptions.write(entry, value)?,
                Change::Address(address, owner) => self.addresses.write(address, owner)?,
                Change::Denial(key, denied) => self.denials.write(key, denied)?,
                Change::State(state) => {
                    self.state.map().set(0, state, 0).map_err(BpfError::map("POLICY"))?;
                }
                Change::Wait => wait_for_programs(),
            }
            self.present.apply(change);
        }
        Ok(())
    }
}

/// Until every program that runs now has ended: the hooks are RCU read-side critical sections, and this command of
/// membarrier(2) waits for one grace period. Milliseconds. Kernels with `nohz_full` CPUs refuse it, and there the
/// time that the system calls around it take must do.
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes plain numbers, and touches no memory of ours.
    let _ = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}
