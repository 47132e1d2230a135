//! What the host is set up for.

use std::{fs, path::Path};

use nix::{
    sys::{
        resource::{Resource, getrlimit},
        statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
    },
    unistd::geteuid,
};

use super::{CheckOptions, Finding};
use crate::{cgroup, discovery::listening_sockets};

const GROUP: &str = "host";

/// Descriptors below which a busy host runs out: two for each connection.
const ENOUGH_DESCRIPTORS: u64 = 65_536;

/// cgroup v2, BPF file system, capabilities, clock, descriptors, and the socket monitor.
pub fn check(options: &CheckOptions) -> Vec<Finding> {
    vec![
        cgroup_root(),
        cgroup_to_attach(options),
        bpf_file_system(&options.bpf_dir),
        capabilities(),
        clock(),
        descriptors(),
        socket_monitor(),
    ]
}

fn cgroup_root() -> Finding {
    const NAME: &str = "cgroup v2";
    match cgroup::root() {
        Ok(root) if root == Path::new("/sys/fs/cgroup") => {
            Finding::fine(GROUP, NAME, root.display().to_string())
        }
        Ok(root) => {
            Finding::fine(GROUP, NAME, format!("{} (beside version 1: a hybrid system)", root.display()))
        }
        Err(error) => {
            Finding::failed(GROUP, NAME, error.to_string(), "mount -t cgroup2 none /sys/fs/cgroup/unified")
        }
    }
}

fn cgroup_to_attach(options: &CheckOptions) -> Finding {
    const NAME: &str = "cgroup to attach to";
    let Some(path) = options.cgroup.clone().or_else(|| cgroup::root().ok()) else {
        return Finding::failed(GROUP, NAME, "none", "name one with --cgroup");
    };
    let shown = path.display();
    match statfs(&path) {
        Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => {
            Finding::fine(GROUP, NAME, shown.to_string())
        }
        Ok(_) => Finding::failed(
            GROUP,
            NAME,
            format!("{shown} is not in cgroup v2"),
            "choose another with --cgroup",
        ),
        Err(errno) => {
            Finding::failed(GROUP, NAME, format!("{shown}: {errno}"), "choose another with --cgroup")
        }
    }
}

fn bpf_file_system(directory: &Path) -> Finding {
    const NAME: &str = "BPF file system";
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match statfs(existing) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
            Finding::fine(GROUP, NAME, format!("{} (pins go to {})", existing.display(), directory.display()))
        }
        _ if directory.starts_with("/sys/fs/bpf") => Finding::warning(
            GROUP,
            NAME,
            "not mounted at /sys/fs/bpf",
            "the agent mounts it; or: mount -t bpf bpf /sys/fs/bpf",
        ),
        _ => Finding::failed(
            GROUP,
            NAME,
            format!("{} is in none", directory.display()),
            "choose a directory below /sys/fs/bpf with --bpf-dir",
        ),
    }
}

/// Source: linux/capability.h.
fn capabilities() -> Finding {
    const NAME: &str = "capabilities";
    const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let missing: Vec<&str> =
        NEEDED.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Finding::fine(
            GROUP,
            NAME,
            format!("CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF (uid {})", geteuid()),
        );
    }
    Finding::failed(
        GROUP,
        NAME,
        format!("missing: {}", missing.join(", ")),
        "run this, and the agent, as root",
    )
}

/// Certificates are valid from five minutes before they are made: a clock that is far off makes them useless.
fn clock() -> Finding {
    const NAME: &str = "clock";
    const STA_UNSYNC: i32 = 0x0040;
    let mut state = std::mem::MaybeUninit::<nix::libc::timex>::zeroed();
    // SAFETY: an all-zero `timex` asks for nothing to be changed, and the kernel fills it in.
    let (result, state) = unsafe { (nix::libc::adjtimex(state.as_mut_ptr()), state.assume_init()) };
    if result >= 0 && state.status & STA_UNSYNC == 0 {
        Finding::fine(GROUP, NAME, "synchronised, says the kernel")
    } else {
        let hint = "run a time service (systemd-timesyncd, chrony); hosts may differ by up to five minutes";
        Finding::warning(GROUP, NAME, "not known to be synchronised", hint)
    }
}

fn descriptors() -> Finding {
    const NAME: &str = "file descriptors";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= ENOUGH_DESCRIPTORS => Finding::fine(GROUP, NAME, format!("up to {hard}")),
        Ok((_, hard)) => Finding::warning(
            GROUP,
            NAME,
            format!("up to {hard} for each process: about {} connections at a time", hard / 2),
            format!("raise the hard limit (LimitNOFILE=) to {ENOUGH_DESCRIPTORS} or more"),
        ),
        Err(errno) => Finding::warning(GROUP, NAME, errno.to_string(), "run this as root"),
    }
}

fn socket_monitor() -> Finding {
    const NAME: &str = "listing of listeners";
    match listening_sockets() {
        Ok(sockets) => Finding::fine(GROUP, NAME, format!("{} listening TCP sockets", sockets.len())),
        Err(error) => {
            Finding::failed(GROUP, NAME, error.to_string(), "without it no service of this host is meshed")
        }
    }
}
