//! Tells who a process is, also one whose cgroup or user is newer than what is known.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch},
    task::spawn_blocking,
    time::timeout,
};

use super::{Credentials, Users, Workloads};
use crate::identity::WorkloadName;

/// How long anybody waits for the file system and the database of users.
const PATIENCE: Duration = Duration::from_secs(3);

/// Cgroups that are remembered for not being below ours.
const MAX_STRANGERS: usize = 1024;

/// Reads what is followed, and looks for the rest itself, one search at a time whoever asks.
#[derive(Debug)]
pub struct Finder {
    workloads: watch::Receiver<Workloads>,
    search: Arc<AsyncMutex<Option<Found>>>,
    question: Arc<AsyncMutex<()>>,
    /// Cgroups that are not below ours, or not any more: they are not looked for each time. Their numbers are not given
    /// again.
    strangers: Mutex<HashSet<u64>>,
}

/// What the last search found.
#[derive(Debug, Clone)]
struct Found {
    begun: Instant,
    workloads: Workloads,
}

impl Finder {
    /// Of `workloads`.
    pub fn new(workloads: watch::Receiver<Workloads>) -> Self {
        let (search, question, strangers) = (Arc::default(), Arc::default(), Mutex::default());
        Self { workloads, search, question, strangers }
    }

    /// What is followed.
    pub fn workloads(&self) -> &watch::Receiver<Workloads> {
        &self.workloads
    }

    /// The workload of whom `credentials` are, as far as that is known. Never waits.
    pub fn known(&self, credentials: Credentials) -> Option<WorkloadName> {
        self.workloads.borrow().of(credentials)
    }

    /// The workload of whom `credentials` are. `None` if there is no such cgroup (any more) below ours, or if it cannot be
    /// found out in time.
    pub async fn find(&self, credentials: Credentials) -> Option<WorkloadName> {
        let known = self.known(credentials);
        if known.is_some() || self.strangers().contains(&credentials.cgroup) {
            return known;
        }
        timeout(PATIENCE, self.search(credentials)).await.ok()?
    }

    /// The workload of process `pid`, if it is one by the program that it runs.
    pub fn by_program(&self, pid: u32) -> Option<WorkloadName> {
        self.workloads.borrow().of_program(|| std::fs::read_link(format!("/proc/{pid}/exe")).ok())
    }

    async fn search(&self, credentials: Credentials) -> Option<WorkloadName> {
        let Credentials { cgroup, uid, .. } = credentials;
        let mut workloads = self.workloads.borrow().clone();
        if !workloads.cgroups.contains_key(&cgroup) {
            workloads = self.look(cgroup, Instant::now()).await?;
        }
        let Some(found) = workloads.cgroups.get(&cgroup) else {
            self.forget(cgroup);
            return None;
        };
        let users = workloads.users.clone();
        match found.of(credentials, || users.name(uid)) {
            Some(name) => Some(name),
            None => self.ask(users, uid).await,
        }
    }

    /// What a search found that had a chance to see what there was at `since`. It goes on if nobody waits any more, and
    /// the next one does not begin before.
    async fn look(&self, cgroup: u64, since: Instant) -> Option<Workloads> {
        let mut last: OwnedMutexGuard<Option<Found>> = self.search.clone().lock_owned().await;
        let fresh = last
            .as_ref()
            .filter(|found| found.begun >= since || found.workloads.cgroups.contains_key(&cgroup));
        if let Some(found) = fresh {
            return Some(found.workloads.clone());
        }
        let known = self.workloads.borrow().clone();
        let searched = spawn_blocking(move || {
            let begun = Instant::now();
            let workloads = known.look().ok()?;
            *last = Some(Found { begun, workloads: workloads.clone() });
            Some(workloads)
        });
        searched.await.ok()?
    }

    async fn ask(&self, users: Arc<Users>, uid: u32) -> Option<WorkloadName> {
        let one = self.question.clone().lock_owned().await;
        let asked = spawn_blocking(move || {
            let _one = one;
            users.look_up(uid)
        });
        asked.await.ok()?
    }

    fn forget(&self, cgroup: u64) {
        let mut strangers = self.strangers();
        if strangers.len() >= MAX_STRANGERS {
            strangers.clear();
        }
        strangers.insert(cgroup);
    }

    fn strangers(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io, os::unix::fs::MetadataExt, sync::mpsc};

    use super::*;
    use crate::workload::{Naming, users::Database};

    /// Answers when it is told to.
    #[derive(Debug)]
    struct Slow(Mutex<mpsc::Receiver<()>>);

    impl Database for Slow {
        fn name(&self, uid: u32) -> io::Result<Option<String>> {
            let _ = self.0.lock().expect("one at a time").recv();
            Ok(Some(format!("number-{uid}")))
        }

        fn uid(&self, _name: &str) -> io::Result<Option<u32>> {
            Ok(None)
        }
    }

    /// Nobody follows the directory.
    fn finder(users: Users) -> (tempfile::TempDir, Finder) {
        let root = tempfile::tempdir().expect("a directory");
        let workloads = Workloads::new(root.path(), Naming::default(), users);
        (root, Finder::new(watch::channel(workloads).1))
    }

    fn of(cgroup: u64, uid: u32) -> Credentials {
        Credentials { cgroup, uid, gid: Some(0) }
    }

    fn id(path: &std::path::Path) -> u64 {
        fs::metadata(path).expect("there").ino()
    }

    #[tokio::test]
    async fn a_cgroup_that_is_newer_than_what_is_known_is_found_and_one_that_is_gone_is_nobody() {
        let (root, finder) = finder(Users::default());
        let unit = root.path().join("nginx.service");
        fs::create_dir(&unit).expect("made");
        let cgroup = id(&unit);
        assert_eq!(finder.known(of(cgroup, 0)), None);
        assert_eq!(finder.find(of(cgroup, 0)).await, WorkloadName::of_unit("nginx.service").ok());
        fs::remove_dir(&unit).expect("removed");
        let gone = cgroup + 1_000_000;
        assert_eq!(finder.find(of(gone, 0)).await, None);
        assert!(finder.strangers().contains(&gone));
        assert_eq!(finder.find(of(id(root.path()), 0)).await, WorkloadName::of_user("root").ok());
    }

    #[tokio::test]
    async fn a_database_that_does_not_answer_keeps_nobody_waiting_who_is_told_by_a_unit() {
        let (answer, answers) = mpsc::channel();
        let (root, finder) = finder(Users::new(Box::new(Slow(Mutex::new(answers)))));
        let unit = root.path().join("nginx.service");
        fs::create_dir(&unit).expect("made");
        let finder = Arc::new(finder);
        let (waiting, cgroup) = (finder.clone(), id(root.path()));
        let waiting = tokio::spawn(async move { waiting.find(of(cgroup, 7)).await });
        assert_eq!(finder.find(of(id(&unit), 7)).await, WorkloadName::of_unit("nginx.service").ok());
        answer.send(()).expect("it is asked");
        assert_eq!(waiting.await.expect("no panic"), WorkloadName::of_user("number-7").ok());
        assert_eq!(finder.workloads.borrow().users().name(7), WorkloadName::of_user("number-7").ok());
    }
}
