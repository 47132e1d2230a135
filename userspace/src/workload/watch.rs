//! Follows the cgroups of this host as they come and go.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, warn};

use super::{Naming, Users, WorkloadError, Workloads};
use crate::limited_log::LimitedLog;

/// A host may have thousands of them.
static UNWATCHED: LimitedLog = LimitedLog::new();

/// How often everything is looked at again, which repairs whatever an event missed.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);

/// How often it is looked whether a directory that was removed as a whole is there again: nothing tells of that.
const LOST_INTERVAL: Duration = Duration::from_millis(500);

/// How often the database of users is asked again, and how long it is left alone.
const USERS_INTERVAL: Duration = Duration::from_secs(10);
const USERS_PAUSE: Duration = Duration::from_millis(500);

/// The cgroups at `root` and below, kept up to date until every receiver is dropped, and the users of this host.
///
/// # Errors
/// The directory cannot be read, or the kernel has no inotify instance left.
pub fn watch(root: &Path, naming: Naming) -> Result<watch::Receiver<Workloads>, WorkloadError> {
    let failed = |error: std::io::Error| WorkloadError { path: root.to_owned(), error };
    let mut tree = Tree::new(root).map_err(|errno| failed(errno.into()))?;
    tree.scan();
    let (sender, receiver) = watch::channel(Workloads::new(root, naming, Users::default()));
    tree.publish(&sender, false);
    let readable = Readable(tree.inotify.clone());
    // SAFETY: the inotify instance owns its descriptor and keeps it until it is dropped, after the registration.
    let inotify = unsafe { AsyncFd::register_with_interest(readable, Interest::READABLE) };
    let inotify = inotify.map_err(|error| failed(error.into()))?;
    tokio::spawn(follow(tree, inotify, sender));
    Ok(receiver)
}

async fn follow(mut tree: Tree, inotify: AsyncFd<Readable>, sender: watch::Sender<Workloads>) {
    let users = sender.borrow().users.clone();
    let mut refresh = pin!(refresh(users.clone()));
    let mut ticks = interval(SCAN_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut users_changed = false;
        tokio::select! {
            () = sender.closed() => return,
            () = &mut refresh => {
                users_changed = true;
                refresh.set(self::refresh(users.clone()));
            }
            _ = ticks.tick() => tree.scan(),
            () = sleep(LOST_INTERVAL), if tree.is_lost => tree.scan(),
            readable = inotify.readable() => {
                let Ok(mut readable) = readable else { return };
                match tree.inotify.read_events() {
                    Ok(events) => events.into_iter().for_each(|event| tree.take(event)),
                    Err(Errno::EAGAIN) => readable.clear_ready(),
                    Err(errno) => {
                        warn!("cgroups that come and go are noticed late: {errno}");
                        readable.clear_ready();
                    }
                }
            }
        }
        tree.publish(&sender, users_changed);
    }
}

/// Until the database of users says something new. It is asked from time to time, and at once for users who are not
/// known.
async fn refresh(users: Arc<Users>) {
    loop {
        let again = timeout(USERS_INTERVAL, users.missing()).await.is_err();
        let asked = users.clone();
        let is_changed = spawn_blocking(move || asked.refresh(again)).await;
        if is_changed.unwrap_or_default() {
            return;
        }
        sleep(USERS_PAUSE).await;
    }
}

/// What is known of the tree.
struct Tree {
    root: PathBuf,
    inotify: Arc<Inotify>,
    watched: HashMap<WatchDescriptor, PathBuf>,
    ids: BTreeMap<PathBuf, u64>,
    is_changed: bool,
    /// The root was removed.
    is_lost: bool,
}

impl Tree {
    fn new(root: &Path) -> nix::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?);
        let (watched, ids) = (HashMap::new(), BTreeMap::new());
        Ok(Self { root: root.to_owned(), inotify, watched, ids, is_changed: true, is_lost: false })
    }

    /// Looks at everything.
    fn scan(&mut self) {
        let found = self.add(self.root.clone());
        let gone: Vec<_> = self.ids.keys().filter(|path| !found.contains(*path)).cloned().collect();
        gone.iter().for_each(|path| self.remove(path));
        self.is_lost = !found.contains(&self.root);
    }

    /// Adds a directory and all that is below. Each is watched before it is looked into, so that nothing in it is
    /// missed; to watch one that is watched already changes nothing.
    fn add(&mut self, path: PathBuf) -> BTreeSet<PathBuf> {
        let (mut found, mut directories) = (BTreeSet::new(), vec![path]);
        while let Some(directory) = directories.pop() {
            self.watch(&directory);
            let Ok(metadata) = fs::metadata(&directory) else { continue };
            if self.ids.insert(directory.clone(), metadata.ino()) != Some(metadata.ino()) {
                self.is_changed = true;
                debug!(cgroup = %directory.display(), id = metadata.ino(), "new cgroup");
            }
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            directories.extend(below.map(|entry| entry.path()));
            found.insert(directory);
        }
        found
    }

    fn watch(&mut self, directory: &Path) {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(directory, flags) {
            Ok(descriptor) => _ = self.watched.insert(descriptor, directory.to_owned()),
            Err(Errno::ENOENT) => {}
            Err(errno) => {
                if let Some(withheld) = UNWATCHED.permit() {
                    let cgroup = directory.display();
                    warn!(
                        %cgroup,
                        withheld,
                        "not watched, new cgroups in it are noticed late: {errno}; raise fs.inotify.max_user_watches if no space is left"
                    );
                }
            }
        }
    }

    fn remove(&mut self, path: &Path) {
        if self.ids.remove(path).is_some() {
            self.is_changed = true;
        }
    }

    fn take(&mut self, event: InotifyEvent) {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return self.scan();
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            let directory = self.watched.remove(&event.wd);
            self.is_lost |= directory.as_ref() == Some(&self.root);
            return;
        }
        let (Some(directory), Some(name)) = (self.watched.get(&event.wd), event.name) else { return };
        let path = directory.join(name);
        if !event.mask.contains(AddWatchFlags::IN_ISDIR) {
            return;
        }
        if event.mask.contains(AddWatchFlags::IN_CREATE) {
            self.add(path);
        } else {
            self.remove(&path);
        }
    }

    fn publish(&mut self, sender: &watch::Sender<Workloads>, users_changed: bool) {
        if !(std::mem::take(&mut self.is_changed) || users_changed) {
            return;
        }
        let known = sender.borrow().clone();
        let cgroups = self.ids.iter().filter_map(|(path, id)| Some((*id, known.cgroup(path, Users::name)?)));
        let cgroups = Arc::new(cgroups.collect());
        sender.send_modify(|workloads| workloads.cgroups = cgroups);
    }
}

/// The same inotify instance, to be waited for.
struct Readable(Arc<Inotify>);

impl AsRawFd for Readable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::WorkloadName;

    #[tokio::test]
    async fn directories_that_come_and_go_are_followed_however_deep() {
        let root = tempfile::tempdir().expect("a directory");
        let mut workloads = watch(root.path(), Naming::default()).expect("watched");
        let unit = root.path().join("a.slice/b.slice/nginx.service");
        fs::create_dir_all(unit.join("worker")).expect("made");
        let id = |path: &Path| fs::metadata(path).expect("there").ino();
        let (unit_id, worker) = (id(&unit), id(&unit.join("worker")));
        let known = workloads
            .wait_for(|now| now.cgroups.contains_key(&unit_id) && now.cgroups.contains_key(&worker))
            .await
            .expect("followed")
            .clone();
        let nginx = WorkloadName::of_unit("nginx.service").ok();
        let of = |cgroup| known.of(crate::workload::Credentials { cgroup, uid: 0, gid: None });
        assert_eq!((of(unit_id), of(worker)), (nginx.clone(), nginx));
        fs::remove_dir_all(&unit).expect("removed");
        workloads.wait_for(|now| !now.cgroups.contains_key(&unit_id)).await.expect("followed");
        fs::create_dir(&unit).expect("made again");
        let again = id(&unit);
        workloads.wait_for(|now| now.cgroups.contains_key(&again)).await.expect("followed");
    }

    #[tokio::test]
    async fn a_root_that_is_made_anew_is_followed_again() {
        let parent = tempfile::tempdir().expect("a directory");
        let root = parent.path().join("murmesh.slice");
        fs::create_dir(&root).expect("made");
        let mut workloads = watch(&root, Naming::default()).expect("watched");
        fs::remove_dir(&root).expect("removed");
        workloads.wait_for(|now| now.cgroups.is_empty()).await.expect("followed");
        fs::create_dir(&root).expect("made again");
        workloads.wait_for(|now| !now.cgroups.is_empty()).await.expect("followed");
        let unit = root.join("nginx.service");
        fs::create_dir(&unit).expect("made");
        let id = fs::metadata(&unit).expect("there").ino();
        workloads.wait_for(|now| now.cgroups.contains_key(&id)).await.expect("followed");
    }
}
