//! Who the processes of this host are: which cgroups there are, and what workload each belongs to.

mod owner;
mod users;
mod watch;

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use users::Users;
pub use watch::watch;

use crate::identity::WorkloadName;

/// Why the workloads of this host cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("cgroup {path}: {error}; name a cgroup v2 directory with --cgroup")]
pub struct WorkloadError {
    /// The directory.
    path: PathBuf,
    /// What the kernel said.
    error: io::Error,
}

/// The cgroups below one directory, and who is in each.
#[derive(Debug, Clone)]
pub struct Workloads {
    root: PathBuf,
    cgroups: Arc<HashMap<u64, Option<WorkloadName>>>,
    users: Arc<Users>,
}

impl Workloads {
    /// As they are now.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn scan(root: &Path) -> Result<Self, WorkloadError> {
        let scanned = scan(root).map_err(|error| WorkloadError { path: root.to_owned(), error })?;
        let cgroups = scanned.into_iter().filter_map(|(path, id)| Some((id, owner::of(root, &path)?)));
        Ok(Self { root: root.to_owned(), cgroups: Arc::new(cgroups.collect()), users: Arc::default() })
    }

    /// By the kernel's number of each cgroup; `None` where the user of a process tells who it is.
    pub fn cgroups(&self) -> &HashMap<u64, Option<WorkloadName>> {
        &self.cgroups
    }

    /// Names of users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// The workload of a process of user `uid` in a cgroup; `None` if there is no such cgroup (any more) below ours.
    /// One that is newer than this snapshot is looked for in the file system.
    pub fn of(&self, cgroup: u64, uid: u32) -> Option<WorkloadName> {
        let owner = match self.cgroups.get(&cgroup) {
            Some(owner) => owner.clone(),
            None => Self::scan(&self.root).ok()?.cgroups.get(&cgroup)?.clone(),
        };
        Some(owner.unwrap_or_else(|| self.users.name(uid)))
    }
}

/// Every cgroup at `root` and below, with its number: what `bpf_get_current_cgroup_id` answers is the inode number of
/// the directory. One that goes away meanwhile is left out.
fn scan(root: &Path) -> io::Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::from([(root.to_owned(), fs::metadata(root)?.ino())]);
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let Ok(metadata) = entry.metadata() else { continue };
            found.insert(entry.path(), metadata.ino());
            directories.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_is_newer_than_the_snapshot_is_found_and_one_that_is_gone_is_nobody() {
        let root = tempfile::tempdir().expect("a directory");
        let workloads = Workloads::scan(root.path()).expect("readable");
        let unit = root.path().join("nginx.service");
        fs::create_dir(&unit).expect("made");
        let id = fs::metadata(&unit).expect("there").ino();
        assert_eq!(workloads.of(id, 0), WorkloadName::of_unit("nginx.service").ok());
        fs::remove_dir(&unit).expect("removed");
        assert_eq!(workloads.of(id, 0), None);
        let own = fs::metadata(root.path()).expect("there").ino();
        assert_eq!(workloads.of(own, 0), WorkloadName::of_user("root").ok());
    }
}
