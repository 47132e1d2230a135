//! Who the processes of this host are: which cgroups there are, and what workload each belongs to.

mod explicit;
mod finder;
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

pub use explicit::{Explicit, Naming};
pub use finder::Finder;
pub use users::{NamedUsers, Users};
pub use watch::watch;

use crate::identity::WorkloadName;
use explicit::Members;
use owner::Owner;

/// Why the workloads of this host cannot be told.
#[derive(Debug, thiserror::Error)]
#[error("cgroup {path}: {error}; name a cgroup v2 directory with --cgroup")]
pub struct WorkloadError {
    /// The directory.
    path: PathBuf,
    /// What the kernel said.
    error: io::Error,
}

/// To whom a process or a socket belongs, as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// The kernel's number of its cgroup.
    pub cgroup: u64,
    /// Real user id.
    pub uid: u32,
    /// Real group id. A socket has none.
    pub gid: Option<u32>,
}

/// The processes of a cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Who they are; `None` if the user of each tells.
    pub workload: Option<WorkloadName>,
    /// Users who are a workload of their own here.
    pub by_uid: BTreeMap<u32, WorkloadName>,
    /// Groups that are one, whoever the user is.
    pub by_gid: BTreeMap<u32, WorkloadName>,
}

/// The cgroups below one directory, and who is in each.
#[derive(Debug, Clone)]
pub struct Workloads {
    root: PathBuf,
    naming: Arc<Naming>,
    cgroups: Arc<HashMap<u64, Cgroup>>,
    users: Arc<Users>,
}

impl Workloads {
    /// Of `root`, with nothing in it yet.
    fn new(root: &Path, naming: Naming, users: Users) -> Self {
        Self { root: root.to_owned(), naming: naming.into(), cgroups: Arc::default(), users: users.into() }
    }

    /// By the kernel's number of each cgroup. Those whose owner is not known yet are left out.
    pub fn cgroups(&self) -> &HashMap<u64, Cgroup> {
        &self.cgroups
    }

    /// Names of users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// The workload of whom `credentials` are, as far as that is known. Never waits.
    pub fn of(&self, credentials: Credentials) -> Option<WorkloadName> {
        let name = || self.users.name(credentials.uid);
        self.cgroups.get(&credentials.cgroup)?.of(credentials, name)
    }

    /// The workload of whoever runs `program`, if it is told by that. See [`Naming::of_program`].
    pub fn of_program(&self, program: impl FnOnce() -> Option<PathBuf>) -> Option<WorkloadName> {
        self.naming.of_program(program)
    }

    /// With the cgroups that there are now, and the users who own them. Looks at all of them, which takes milliseconds,
    /// and may ask for users, which may take long.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn look(&self) -> Result<Self, WorkloadError> {
        let failed = |error| WorkloadError { path: self.root.clone(), error };
        let found = scan(&self.root).map_err(failed)?;
        let cgroups = found.iter().filter_map(|(path, id)| Some((*id, self.cgroup(path, Users::look_up)?)));
        Ok(Self { cgroups: Arc::new(cgroups.collect()), ..self.clone() })
    }

    /// The cgroup at `path`, whose owner is named by `name` if it is a user.
    fn cgroup(&self, path: &Path, name: impl Fn(&Users, u32) -> Option<WorkloadName>) -> Option<Cgroup> {
        let Members { owner, by_uid, by_gid } = self.naming.of(path.strip_prefix(&self.root).ok()?)?;
        let workload = match owner {
            Owner::Workload(workload) => Some(workload),
            Owner::User(uid) => Some(name(&self.users, uid)?),
            Owner::Caller => None,
        };
        Some(Cgroup { workload, by_uid, by_gid })
    }
}

impl Cgroup {
    /// Who it is; `name` is what the user is called.
    fn of(
        &self,
        credentials: Credentials,
        name: impl FnOnce() -> Option<WorkloadName>,
    ) -> Option<WorkloadName> {
        let by_group = credentials.gid.and_then(|gid| self.by_gid.get(&gid));
        let told = by_group.or_else(|| self.by_uid.get(&credentials.uid)).or(self.workload.as_ref());
        told.cloned().or_else(name)
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
