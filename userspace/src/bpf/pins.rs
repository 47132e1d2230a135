//! The directory in the BPF file system that keeps programs attached when the agent is gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use murmesh_common::LAYOUT;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{BpfError, HOOKS};

/// What the names of maps end with that are not in force yet.
const NEXT: &str = "_next";

/// What the name of the directory begins with that says which layout the maps have.
const LAYOUT_PREFIX: &str = "layout-";

/// What the name of the directory begins with that says since which revision of the catalog rules are as in the maps.
const REVISION_PREFIX: &str = "catalog-";

/// Parent of the usual directory, so that a user who may not write elsewhere in the file system can have it.
const PARENT: &str = "/sys/fs/bpf/murmesh";

/// `DIR/links/HOOK`, `DIR/maps/MAP`, and `DIR/layout-NUMBER` and `DIR/catalog-NUMBER`, which are empty.
#[derive(Debug, Clone)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Pins below `directory`, which need not exist.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Makes the directory empty and ready, and returns what was there before: an earlier agent's hooks, still in
    /// force, to be removed once ours are.
    ///
    /// # Errors
    /// The BPF file system is missing and cannot be mounted, or the directory cannot be made.
    pub fn prepare(&self) -> Result<Pins, BpfError> {
        self.ensure_file_system()?;
        let earlier = self.earlier();
        // Both are there when a start was cut short. Ours count only if every hook is on: what is in force is never
        // given up for less.
        if self.is_complete() {
            earlier.remove()?;
        } else if earlier.directory.exists() {
            self.take_back(&earlier)?;
        }
        if self.directory.exists() {
            fs::rename(&self.directory, &earlier.directory).map_err(|error| self.error(error))?;
        }
        self.make_directories()?;
        // What is taken from the earlier maps is as new as they are.
        self.set_revision(self.revision())?;
        Ok(earlier)
    }

    /// Mounts a BPF file system at /sys/fs/bpf, as systemd does at boot, if the directory is to be there and none is.
    ///
    /// # Errors
    /// The directory is elsewhere, or nothing can be mounted.
    pub fn ensure_file_system(&self) -> Result<(), BpfError> {
        const STANDARD: &str = "/sys/fs/bpf";
        let directory = &self.directory;
        let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let found = statfs(existing).map_err(|errno| self.error(errno.into()))?;
        if found.filesystem_type() == BPF_FS_MAGIC {
            return Ok(());
        }
        if !directory.starts_with(STANDARD) {
            return Err(self.error(io::Error::other("not in a BPF file system")));
        }
        mount(Some("bpf"), STANDARD, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|errno| self.error(errno.into()))
    }

    /// Makes the directories for what is pinned, as far as they are missing.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn make_directories(&self) -> Result<(), BpfError> {
        for part in ["links", "maps", &layout_name(LAYOUT)] {
            fs::create_dir_all(self.directory.join(part)).map_err(|error| self.error(error))?;
        }
        Ok(())
    }

    /// Replaces what is here by what [`Self::prepare`] had put aside.
    ///
    /// # Errors
    /// A file cannot be removed or renamed.
    pub fn take_back(&self, earlier: &Self) -> Result<(), BpfError> {
        self.remove()?;
        match fs::rename(&earlier.directory, &self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.error(error)),
            _ => Ok(()),
        }
    }

    /// Removes what agents left pinned here, also one whose start was cut short. False if that was nothing.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove_all(&self) -> Result<bool, BpfError> {
        let earlier = self.earlier();
        let is_there = self.directory.exists() || earlier.directory.exists();
        self.remove()?;
        earlier.remove()?;
        Ok(is_there)
    }

    /// What an earlier agent pinned is put there. A name with a dot is refused by the BPF file system.
    fn earlier(&self) -> Self {
        let mut aside = self.directory.clone().into_os_string();
        aside.push("-earlier");
        Self::new(aside)
    }

    fn is_complete(&self) -> bool {
        HOOKS.iter().all(|hook| self.link(hook.name).exists())
    }

    /// Where a hook's link is pinned.
    pub fn link(&self, hook: &str) -> PathBuf {
        self.directory.join("links").join(hook)
    }

    /// Where a map is pinned.
    pub fn map(&self, map: &str) -> PathBuf {
        self.directory.join("maps").join(map)
    }

    /// Where a map is pinned whose programs are not in force yet.
    pub(super) fn next_map(&self, map: &str) -> PathBuf {
        self.map(&format!("{map}{NEXT}"))
    }

    /// The layout of the maps, if it is said.
    pub(super) fn layout(&self) -> Option<u32> {
        self.numbers(LAYOUT_PREFIX).into_iter().next()
    }

    /// The first revision of the catalog with the rules that are in the maps, or were to be put there; 0 if nobody said.
    /// An agent that knows only an earlier one must not go by that.
    pub fn revision(&self) -> u64 {
        [self, &self.earlier()].into_iter().flat_map(|pins| pins.numbers(REVISION_PREFIX)).max().unwrap_or(0)
    }

    /// To be called before the rules of `revision` are put into the maps.
    ///
    /// # Errors
    /// A directory cannot be made or removed.
    pub fn set_revision(&self, revision: u64) -> Result<(), BpfError> {
        let name = |revision| self.directory.join(format!("{REVISION_PREFIX}{revision}"));
        fs::create_dir_all(name(revision)).map_err(|error| self.error(error))?;
        let others = self.numbers::<u64>(REVISION_PREFIX).into_iter().filter(|number| *number != revision);
        others.map(name).try_for_each(fs::remove_dir).map_err(|error| self.error(error))
    }

    fn numbers<T: FromStr>(&self, prefix: &str) -> Vec<T> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect()
    }

    /// The hooks whose links are pinned.
    ///
    /// # Errors
    /// There is no agent's directory.
    pub(super) fn hooks(&self) -> Result<Vec<String>, BpfError> {
        let names = |error| self.error(error);
        let entries = fs::read_dir(self.directory.join("links")).map_err(names)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// Removes what an agent has pinned that did not come to take over.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn drop_next(&self) -> Result<(), BpfError> {
        self.next_maps()?
            .iter()
            .try_for_each(|(path, _)| fs::remove_file(path))
            .map_err(|error| self.error(error))
    }

    /// The maps that are pinned as the next ones, and with them this version's layout, take the place of the earlier.
    ///
    /// # Errors
    /// A file cannot be renamed.
    pub(super) fn settle(&self) -> Result<(), BpfError> {
        let renamed = self.next_maps()?.iter().try_for_each(|(path, name)| fs::rename(path, self.map(name)));
        let moved = renamed.and_then(|()| match self.layout() {
            Some(LAYOUT) => Ok(()),
            Some(earlier) => fs::rename(
                self.directory.join(layout_name(earlier)),
                self.directory.join(layout_name(LAYOUT)),
            ),
            None => fs::create_dir(self.directory.join(layout_name(LAYOUT))),
        });
        moved.map_err(|error| self.error(error))
    }

    /// With the name that each will have.
    fn next_maps(&self) -> Result<Vec<(PathBuf, String)>, BpfError> {
        let entries = fs::read_dir(self.directory.join("maps")).map_err(|error| self.error(error))?;
        let next = entries.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((entry.path(), name.strip_suffix(NEXT)?.to_owned()))
        });
        Ok(next.collect())
    }

    /// Removes the links of all hooks but one.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn keep_hook(&self, hook: &str) -> Result<(), BpfError> {
        let mut others = self.hooks()?.into_iter().filter(|other| other != hook);
        others.try_for_each(|other| fs::remove_file(self.link(&other))).map_err(|error| self.error(error))
    }

    /// Removes every pin, links first: with its last reference a link is detached. Nothing there is fine.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self) -> Result<(), BpfError> {
        for part in ["links", "maps", ""] {
            match remove_tree(&self.directory.join(part)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.error(error)),
                _ => {}
            }
        }
        if self.directory.starts_with(PARENT) {
            // Fails while something else is pinned there, or where it is for systemd to remove.
            let _ = fs::remove_dir(PARENT);
        }
        Ok(())
    }

    fn error(&self, error: io::Error) -> BpfError {
        BpfError::Pin { path: self.directory.clone(), error }
    }
}

fn layout_name(layout: u32) -> String {
    format!("{LAYOUT_PREFIX}{layout}")
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { remove_tree(&path)? } else { fs::remove_file(path)? }
    }
    fs::remove_dir(directory)
}
