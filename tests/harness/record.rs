//! What is written down about a lab, so that other processes can enter or remove it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::topology::Placement;

/// Where labs keep their files.
pub(crate) const DIRECTORY: &str = "/run/murmesh-lab";

const BPF_DIRECTORY: &str = "/sys/fs/bpf/murmesh-lab";

/// A lab, as found in its `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) name: String,
    /// The process that the lab ends with; none for a lab that stays until it is taken down.
    pub(crate) owner: Option<Owner>,
    pub(crate) hosts: Vec<HostRecord>,
}

/// A host of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    pub(crate) name: String,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Ipv6Addr,
    /// Name of its network namespace.
    pub(crate) namespace: String,
}

/// A process, told apart from a later one with the same id by when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pid: u32,
    /// In clock ticks since boot (proc_pid_stat(5), field 22).
    start_time: u64,
}

impl Owner {
    pub(crate) fn this_process() -> Result<Self> {
        let pid = std::process::id();
        Ok(Self { pid, start_time: start_time(pid).context("reading our own start time from /proc")? })
    }

    pub(crate) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

impl Record {
    pub(crate) fn new(name: &str, owner: Option<Owner>, placements: Vec<Placement>) -> Result<Self> {
        if name.is_empty() || name.len() > 32 || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        {
            bail!("{name:?} cannot name a lab: use 1 to 32 letters, digits and hyphens");
        }
        let host = |Placement { name: host, ipv4, ipv6 }| HostRecord {
            namespace: namespace_name(name, &host),
            name: host,
            ipv4,
            ipv6,
        };
        Ok(Self { name: name.to_owned(), owner, hosts: placements.into_iter().map(host).collect() })
    }

    /// Reads the record of the lab called `name`.
    pub(crate) fn load(name: &str) -> Result<Self> {
        let path = directory(name).join("state.json");
        let text = fs::read(&path).with_context(|| {
            let labs = existing_labs().unwrap_or_default();
            let others =
                if labs.is_empty() { "none is up".to_owned() } else { format!("up: {}", labs.join(", ")) };
            format!("there is no lab {name:?} ({others}). Make it with `cargo xtask lab up --name {name}`")
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a lab's record", path.display()))
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = self.directory().join("state.json");
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    pub(crate) fn directory(&self) -> PathBuf {
        directory(&self.name)
    }

    pub(crate) fn bpf_directory(&self) -> PathBuf {
        Path::new(BPF_DIRECTORY).join(&self.name)
    }

    pub(crate) fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup::mount_point()?.join("murmesh-lab").join(&self.name))
    }

    /// The namespace of the bridge that the hosts are plugged into.
    pub(crate) fn switch_namespace(&self) -> String {
        namespace_name(&self.name, "switch")
    }

    /// The text of `/etc/hosts`, the same on every host.
    ///
    /// A name has one address. With both, clients would try IPv6 first, also where a service has IPv4 only.
    pub(crate) fn hosts_file(&self) -> String {
        let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
        for host in &self.hosts {
            text += &format!("{} {name}\n{} ip6-{name}\n", host.ipv4, host.ipv6, name = host.name);
        }
        text
    }
}

/// Names of the labs on this machine.
pub fn existing_labs() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Held while a lab's record is made or stale ones are removed; freed when it is dropped.
pub(crate) fn lock() -> Result<File> {
    fs::create_dir_all(DIRECTORY).with_context(|| format!("making {DIRECTORY} (labs need root)"))?;
    let lock = File::create(Path::new(DIRECTORY).join("lock"))?;
    lock.lock().context("locking the list of labs")?;
    Ok(lock)
}

fn directory(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn namespace_name(lab: &str, host: &str) -> String {
    format!("murmesh-lab.{lab}.{host}")
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}
