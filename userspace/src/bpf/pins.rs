//! The directory in the BPF file system that keeps programs attached when the agent is gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use murmesh_common::LAYOUT;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tracing::info;

use super::{BpfError, HOOKS};

/// What the names of maps end with that are not in force yet.
const NEXT: &str = "_next";

/// What the name of the directory begins with that says which layout the maps have.
const LAYOUT_PREFIX: &str = "layout-";

/// `DIR/links/HOOK`, `DIR/maps/MAP`, and `DIR/layout-NUMBER`, which is empty.
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
        ensure_file_system(&self.directory)?;
        // A name with a dot is refused by the BPF file system.
        let mut aside = self.directory.clone().into_os_string();
        aside.push("-earlier");
        let earlier = Self::new(aside);
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
        for part in ["links", "maps", &layout_name(LAYOUT)] {
            fs::create_dir_all(self.directory.join(part)).map_err(|error| self.error(error))?;
        }
        Ok(earlier)
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
        let entries = fs::read_dir(&self.directory).ok()?;
        let mut names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.find_map(|name| name.strip_prefix(LAYOUT_PREFIX)?.parse().ok())
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

/// Mounts a BPF file system at /sys/fs/bpf, as systemd does at boot, if the directory is to be there and none is.
fn ensure_file_system(directory: &Path) -> Result<(), BpfError> {
    const STANDARD: &str = "/sys/fs/bpf";
    let error = |error: io::Error| BpfError::Pin { path: directory.to_owned(), error };
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if statfs(existing).map_err(|errno| error(errno.into()))?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    if !directory.starts_with(STANDARD) {
        return Err(error(io::Error::other("not in a BPF file system")));
    }
    mount(Some("bpf"), STANDARD, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| error(errno.into()))?;
    info!("mounted a BPF file system at {STANDARD}");
    Ok(())
}
