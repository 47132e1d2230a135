//! What somebody else may do to the kernel half while an agent runs, and how it is undone.

use std::{fs, fs::File, io, path::Path};

use super::{
    BpfError, KernelHalf,
    attached::{attached_hooks, other_lookups},
    programs::{Attached, CLOSING_HOOK, Hook},
};
use crate::cgroup;

/// Something about the kernel half that is not as the agent left it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The kernel does not run the program of this hook.
    #[error("hook {0} was taken off")]
    Detached(&'static str),
    /// The hook would go with the agent.
    #[error("the pin of hook {0} was removed")]
    HookUnpinned(&'static str),
    /// The next agent would not find the map.
    #[error("the pin of map {0} was removed")]
    MapUnpinned(&'static str),
    /// Its entries are not those that the agent wrote.
    #[error("map {0} was changed")]
    MapChanged(&'static str),
    /// The cgroup of the hooks was removed, and the hooks went with it.
    #[error("cgroup {0} was removed; hooks are attached when it is there again")]
    NoCgroup(String),
    /// A connection through the hooks did not come to the agent.
    #[error("a test connection was not intercepted: {0}")]
    Canary(String),
    /// The hooks know the agent's own connections by its cgroup, and it is in another one.
    #[error("this agent was moved to cgroup {0}, or that was made anew")]
    Moved(String),
    /// No hook sees the agent's connections.
    #[error(
        "this agent was moved to cgroup {0}, outside of {1}, whose processes are intercepted: move it back"
    )]
    Outside(String, String),
    /// They can let others in to strict services.
    #[error(
        "programs of somebody else choose the sockets of connections that come to this host, whatever is strict: {0}; \
         bpftool link and bpftool prog tell whose they are"
    )]
    Steered(String),
    /// It could not be looked at.
    #[error("the kernel half cannot be looked at: {0}")]
    Unknown(String),
}

impl Fault {
    /// Whether to attach, pin or write something again puts it right.
    pub fn can_be_undone(&self) -> bool {
        !matches!(self, Self::NoCgroup(_) | Self::Canary(_) | Self::Outside(..) | Self::Steered(_))
    }
}

impl KernelHalf {
    /// Which hooks and pins are not as they were made. None, once detached, or while another agent takes over.
    pub fn faults(&self, cgroup: &Path) -> Vec<Fault> {
        if self.attached.is_empty() || self.is_handing_over {
            return Vec::new();
        }
        let detached = match self.detached(cgroup) {
            Ok(detached) => detached.into_iter().map(|hook| Fault::Detached(hook.name)).collect(),
            Err(BpfError::Cgroup { path, error }) if error.kind() == io::ErrorKind::NotFound => {
                vec![Fault::NoCgroup(path.display().to_string())]
            }
            Err(error) => vec![Fault::Unknown(error.to_string())],
        };
        let links = self.attached.iter().map(|attached| attached.hook.name);
        let links = links.filter(|hook| !self.pins.link(hook).exists()).map(Fault::HookUnpinned);
        let maps = self.pinned.iter().map(|(name, _)| *name);
        let maps = maps.filter(|map| !self.pins.map(map).exists()).map(Fault::MapUnpinned);
        detached.into_iter().chain(links).chain(maps).chain(self.moved(cgroup)).collect()
    }

    /// Attaches and pins again what is not, in the place where it was. Hooks first.
    ///
    /// # Errors
    /// The cgroup or the BPF file system is gone, or the kernel does not take a program.
    pub fn repair(&mut self, cgroup: &Path) -> Result<(), BpfError> {
        if self.attached.is_empty() || self.is_handing_over {
            return Ok(());
        }
        let directory =
            File::open(cgroup).map_err(|error| BpfError::Cgroup { path: cgroup.to_owned(), error })?;
        self.pins.make_directories()?;
        let detached = self.detached(cgroup)?;
        for index in 0..self.attached.len() {
            let hook = self.attached[index].hook;
            let path = self.pins.link(hook.name);
            if detached.contains(&hook) || !path.exists() {
                self.attached[index] = self.attach_again(hook, &directory, &path)?;
            }
        }
        for (name, map) in &self.pinned {
            let path = self.pins.map(name);
            if !path.exists() {
                map.pin(&path)
                    .map_err(|error| BpfError::Pin { path, error: io::Error::other(error.to_string()) })?;
            }
        }
        Ok(())
    }

    /// Whether this process is where the hooks know it to be. What it listens on is another question: sockets stay in
    /// the cgroup in which they were made.
    fn moved(&self, cgroup: &Path) -> Option<Fault> {
        let own = match cgroup::root().and_then(|root| cgroup::own(&root)) {
            Ok(own) => own,
            Err(error) => return Some(Fault::Unknown(error.to_string())),
        };
        if !own.starts_with(cgroup) {
            return Some(Fault::Outside(own.display().to_string(), cgroup.display().to_string()));
        }
        match (cgroup::id(&own), self.agents_cgroup()) {
            (Ok(id), Ok(known)) if id == known => None,
            (Ok(_), Ok(_)) => Some(Fault::Moved(own.display().to_string())),
            (Err(error), _) => Some(Fault::Unknown(error.to_string())),
            (_, Err(error)) => Some(Fault::Unknown(error.to_string())),
        }
    }

    /// Programs of others that strict services are not safe from. None, once detached, or while another agent takes over.
    pub fn steered(&self) -> Option<Fault> {
        let own = self.attached.iter().find(|attached| attached.hook.name == CLOSING_HOOK)?;
        if self.is_handing_over {
            return None;
        }
        match other_lookups((own.hook, own.program)) {
            Ok(others) if others.is_empty() => None,
            Ok(others) => {
                let numbers: Vec<String> = others.iter().map(ToString::to_string).collect();
                Some(Fault::Steered(format!("sk_lookup {}", numbers.join(" "))))
            }
            Err(error) => Some(Fault::Unknown(error.to_string())),
        }
    }

    fn detached(&self, cgroup: &Path) -> Result<Vec<Hook>, BpfError> {
        let expected = self.attached();
        let attached = attached_hooks(cgroup, &expected)?;
        Ok(expected.into_iter().map(|(hook, _)| hook).filter(|hook| !attached.contains(hook)).collect())
    }

    /// The new link is on before the old one, if it still is, goes: with what takes its place.
    fn attach_again(&mut self, hook: Hook, cgroup: &File, path: &Path) -> Result<Attached, BpfError> {
        let new = path.with_file_name(format!("{}-new", hook.name));
        let failed = |error| BpfError::Pin { path: path.to_owned(), error };
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let attached = self.attach_one(hook, cgroup, &new)?;
        fs::rename(&new, path).map_err(failed)?;
        Ok(attached)
    }
}
