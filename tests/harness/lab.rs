//! A set of hosts.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::host::Host;
use crate::interrupt::wait_if_interrupted;
use crate::record::{Owner, Record, lock};
use crate::sweep::{remove, sweep_locked};
use crate::topology::Topology;
use crate::{is_root, switch};

/// Hosts on one switch. See the crate's documentation.
#[derive(Debug)]
pub struct Lab {
    record: Record,
    hosts: Vec<Host>,
    removed_on_drop: bool,
}

impl Lab {
    /// Makes a lab with a name of its own that is removed when this is dropped.
    pub fn new(topology: Topology) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        Self::create(&name, Some(Owner::this_process()?), topology)
    }

    /// Makes a lab that stays until it is removed by name.
    pub fn persistent(name: &str, topology: Topology) -> Result<Self> {
        let mut lab = Self::create(name, None, topology)?;
        lab.removed_on_drop = false;
        Ok(lab)
    }

    /// Opens a lab that another process made. Dropping it leaves the lab as it is.
    pub fn open(name: &str) -> Result<Self> {
        let record = Record::load(name)?;
        let hosts = record.hosts.iter().map(|host| Host::open(&record, host)).collect::<Result<_>>()?;
        Ok(Self { record, hosts, removed_on_drop: false })
    }

    fn create(name: &str, owner: Option<Owner>, topology: Topology) -> Result<Self> {
        if !is_root() {
            bail!("making hosts needs root: they are network namespaces and cgroups");
        }
        let record = Record::new(name, owner, topology.placements()?)?;
        register(&record)?;
        // From here on, dropping the lab removes whatever the next steps managed to make.
        let mut lab = Self { record, hosts: Vec::new(), removed_on_drop: true };
        switch::create(&lab.record).with_context(|| format!("making the network of the lab {name:?}"))?;
        lab.hosts =
            lab.record.hosts.iter().map(|host| Host::create(&lab.record, host)).collect::<Result<_>>()?;
        Ok(lab)
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.name() == name);
        found.with_context(|| {
            let names: Vec<&str> = self.hosts.iter().map(Host::name).collect();
            format!("the lab {:?} has no host {name:?}; it has {}", self.record.name, names.join(", "))
        })
    }

    /// All hosts, servers first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.removed_on_drop {
            return;
        }
        wait_if_interrupted();
        if let Err(error) = remove(&self.record.name) {
            eprintln!("{error:#}. What is left goes when the next lab is made.");
        }
    }
}

/// Writes the record before anything else is made, so that a crash leaves nothing that [`crate::sweep()`] misses.
fn register(record: &Record) -> Result<()> {
    let _lock = lock()?;
    sweep_locked()?;
    let directory = record.directory();
    if directory.exists() {
        bail!("a lab called {:?} exists. Remove it first: cargo xtask lab down --name {0}", record.name);
    }
    fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
    record.save()
}
