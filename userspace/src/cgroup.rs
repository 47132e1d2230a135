//! Where cgroup v2 is, and where this process is in it.

use std::{
    fs, io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::libc;

/// Why the cgroup hierarchy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// /proc cannot be read.
    #[error("{0}: {1}")]
    Proc(String, io::Error),
    /// There is no cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or name it with --cgroup"
    )]
    NotMounted,
}

/// The root of the cgroup v2 hierarchy as this process sees it, on hybrid systems too.
///
/// # Errors
/// None is mounted, or /proc/self/mountinfo cannot be read.
pub fn root() -> Result<PathBuf, CgroupError> {
    const MOUNTS: &str = "/proc/self/mountinfo";
    let mounts = fs::read_to_string(MOUNTS).map_err(|error| CgroupError::Proc(MOUNTS.to_owned(), error))?;
    find_root(&mounts).ok_or(CgroupError::NotMounted)
}

/// This process's cgroup v2 directory below `root`.
///
/// # Errors
/// /proc cannot be read, or has no cgroup v2 line.
pub fn own(root: &Path) -> Result<PathBuf, CgroupError> {
    of(root, std::process::id())
}

/// The cgroup v2 directory of a process, below `root`.
///
/// # Errors
/// /proc has no such process, or its file no cgroup v2 line.
pub fn of(root: &Path, pid: u32) -> Result<PathBuf, CgroupError> {
    let file = format!("/proc/{pid}/cgroup");
    let lines = fs::read_to_string(&file).map_err(|error| CgroupError::Proc(file, error))?;
    let path = lines.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(CgroupError::NotMounted)?;
    Ok(root.join(path))
}

/// The kernel's number of the cgroup with this directory.
///
/// # Errors
/// There is none.
pub fn id(directory: &Path) -> io::Result<u64> {
    Ok(fs::metadata(directory)?.ino())
}

/// The kernel's cookie of this process's network namespace: never reused, unlike an inode number.
///
/// # Errors
/// The kernel is older than 5.14 and does not tell.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: a valid socket, and a buffer of the length given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Source: proc_pid_mountinfo(5). The root of the mounted tree is the fourth field: a bind mount of a part of the
/// hierarchy is not its root.
fn find_root(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, mount_point) = (fields.next()?, fields.next()?);
        (file_system.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(mount_point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_system_has_its_root_below_the_old_hierarchy() {
        let mounts = "24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      30 24 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_root(mounts), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn without_cgroup_v2_there_is_none() {
        assert_eq!(find_root("25 24 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }
}
