//! The directory in the BPF file system that keeps programs attached when the agent is gone.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tracing::info;

use super::{BpfError, HOOKS};

/// `DIR/links/HOOK` and `DIR/maps/MAP`.
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
        Ok(earlier)
    }

    /// Makes the directories for what is pinned, as far as they are missing.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn make_directories(&self) -> Result<(), BpfError> {
        for part in ["links", "maps"] {
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
