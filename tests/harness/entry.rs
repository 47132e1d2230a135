//! How a process gets into a host.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::sys::stat::Mode;
use nix::unistd::{sethostname, write};

/// What makes a process part of a host.
///
/// Not `ip netns exec`, which mounts another /sys and so hides the cgroups and the BPF file system.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    cgroup_processes: CString,
    namespace: Arc<File>,
    hosts_file: CString,
    name: String,
}

impl Entry {
    pub(crate) fn new(cgroup: &Path, namespace: File, hosts_file: &Path, name: &str) -> Result<Self> {
        Ok(Self {
            cgroup_processes: c_string(&cgroup.join("cgroup.procs"))?,
            namespace: Arc::new(namespace),
            hosts_file: c_string(hosts_file)?,
            name: name.to_owned(),
        })
    }

    /// The network namespace.
    pub(crate) fn namespace(&self) -> &File {
        &self.namespace
    }

    /// Makes `command` run in the host.
    pub(crate) fn apply(&self, command: &mut Command) {
        let entry = self.clone();
        // SAFETY: `enter` only makes system calls on values made beforehand. It doesn't allocate or take locks.
        unsafe { command.pre_exec(move || entry.enter()) };
    }

    fn enter(&self) -> io::Result<()> {
        // Children inherit the mask, and a caller that waits for signals on a thread has blocked them.
        SigSet::empty().thread_set_mask()?;
        let processes =
            open(self.cgroup_processes.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        write(&processes, b"0")?;
        setns(&*self.namespace, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
        sethostname(&self.name)?;
        let none: Option<&str> = None;
        // A slave still sees what is unmounted outside, so that it doesn't keep removed namespaces alive.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        mount(Some(self.hosts_file.as_c_str()), "/etc/hosts", none, MsFlags::MS_BIND, none)?;
        Ok(())
    }
}

fn c_string(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .with_context(|| format!("{} contains a zero byte", path.display()))
}
