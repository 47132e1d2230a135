//! The cgroups of a lab, in the version 2 hierarchy.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::patience::deadline;

/// How long killed processes may take to go.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Where the cgroup v2 hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside v1 controllers.
pub(crate) fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    find_mount_point(&mounts)
        .context("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// The mount point is the fifth field, the type follows the lone hyphen (proc_pid_mountinfo(5)).
fn find_mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        filesystem.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Kills every process in `cgroup` and below, waits until they are gone, and removes the directories.
pub(crate) fn remove(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    fs::write(cgroup.join("cgroup.kill"), "1")
        .with_context(|| format!("killing what runs in {}", cgroup.display()))?;
    wait_until_empty(cgroup)?;
    remove_directories(cgroup)
}

/// The kernel signals a change of `cgroup.events` as exceptional data.
fn wait_until_empty(cgroup: &Path) -> Result<()> {
    let deadline = deadline(KILL_DEADLINE);
    let mut events = File::open(cgroup.join("cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.contains("populated 0") {
            return Ok(());
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            bail!(
                "processes in {} are still there {KILL_DEADLINE:?} after they were killed",
                cgroup.display()
            );
        }
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], PollTimeout::try_from(remaining)?)?;
    }
}

fn remove_directories(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_directories(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup).with_context(|| format!("removing {}", cgroup.display()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::find_mount_point;

    #[test]
    fn hierarchy_is_found_beside_version_1_controllers() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      39 31 0:36 / /sys/fs/cgroup/pids rw,relatime shared:5 - cgroup cgroup rw,pids\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount_point(mounts).as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount_point("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw"), None);
    }
}
