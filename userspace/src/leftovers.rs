//! What Murmesh has on a host, and its removal.

use std::{
    fmt, fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};

use crate::{
    bpf::{BpfError, Pins},
    local::{AGENT_SOCKET, ANY_SOCKET, SERVER_SOCKET},
};

/// What tells that a directory holds Murmesh's data.
const DATA_FILES: [&str; 5] = ["membership.json", "host.key", "cache.sealed", "seal.key", "server.redb"];

/// Where an administrator puts units; those of the package are in /usr/lib and go with it.
pub const UNIT_DIRECTORY: &str = "/etc/systemd/system";

/// Units of ours, their drop-ins, and where they are enabled.
const UNITS: [&str; 6] = [
    "murmesh-agent.service",
    "murmesh-server.service",
    "murmesh-agent.service.d",
    "murmesh-server.service.d",
    "multi-user.target.wants/murmesh-agent.service",
    "multi-user.target.wants/murmesh-server.service",
];

/// Why something cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoversError {
    /// Of the kernel half.
    #[error(transparent)]
    Kernel(#[from] BpfError),
    /// A file or directory.
    #[error("{path}: {error}")]
    File {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// It may be another program's.
    #[error(
        "{0} holds nothing that Murmesh makes, and is left as it is: remove it by hand if it is Murmesh's"
    )]
    Foreign(PathBuf),
}

/// Where Murmesh is on this host.
#[derive(Debug, Clone)]
pub struct Leftovers {
    /// Where hooks and maps are pinned.
    pub bpf_dir: PathBuf,
    /// Where daemons have their sockets.
    pub run_dir: PathBuf,
    /// Keys, certificates and databases; with it go units that an administrator made. `None` keeps both.
    pub data_dir: Option<PathBuf>,
    /// Where those units are, usually [`UNIT_DIRECTORY`].
    pub unit_dir: PathBuf,
}

/// A daemon that runs.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    socket: &'static str,
    /// 0 if it is in another PID namespace.
    pid: i32,
}

impl fmt::Display for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.socket {
            AGENT_SOCKET => "an agent",
            SERVER_SOCKET => "a server",
            _ => "a sidecar",
        };
        write!(formatter, "{name} runs here (process {})", self.pid)
    }
}

impl Running {
    /// Asks it to end, as a service manager does.
    ///
    /// # Errors
    /// Rights are missing, or it is in another PID namespace.
    pub fn stop(&self) -> io::Result<()> {
        if self.pid == 0 {
            return Err(io::Error::other("it is in another PID namespace"));
        }
        Ok(kill(Pid::from_raw(self.pid), Signal::SIGTERM)?)
    }

    /// Whether it still runs; one that has ended may wait for its parent to take notice.
    pub fn is_there(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        let state = |status: &String| Some(status.rsplit_once(") ")?.1.starts_with('Z'));
        status.is_ok_and(|status| state(&status) == Some(false))
    }
}

impl Leftovers {
    /// Daemons that answer.
    pub fn running(&self) -> Vec<Running> {
        let answers = |socket: &&'static str| {
            let stream = UnixStream::connect(self.run_dir.join(socket)).ok()?;
            let pid = getsockopt(&stream, PeerCredentials).ok()?.pid();
            Some(Running { socket, pid })
        };
        ANY_SOCKET.iter().filter_map(answers).collect()
    }

    /// What there is, apart from what is in the kernel without a pin, which is nothing once no daemon runs.
    pub fn present(&self) -> Vec<PathBuf> {
        let first = [self.bpf_dir.clone()].into_iter().chain(self.run_files());
        let rest = self.data_dir.iter().cloned().chain(self.units());
        first.chain(rest).filter(|path| path.symlink_metadata().is_ok()).collect()
    }

    /// Removes it, and returns what was there. The kernel half goes first: from then on connections are plain.
    ///
    /// # Errors
    /// Something cannot be removed; what comes before it in [`Self::present`] is.
    pub fn remove(&self) -> Result<Vec<PathBuf>, LeftoversError> {
        let mut removed = Vec::new();
        if Pins::new(&self.bpf_dir).remove_all()? {
            removed.push(self.bpf_dir.clone());
        }
        for path in self.run_files() {
            removed.extend(remove(&path)?.then_some(path));
        }
        // Other files in it are another's.
        if fs::remove_dir(&self.run_dir).is_ok() {
            removed.push(self.run_dir.clone());
        }
        let Some(data_dir) = &self.data_dir else { return Ok(removed) };
        removed.extend(remove_data(data_dir)?.then(|| data_dir.clone()));
        for unit in self.units() {
            removed.extend(remove(&unit)?.then_some(unit));
        }
        Ok(removed)
    }
}

impl Leftovers {
    /// Sockets, and what else daemons put beside them under their names.
    fn run_files(&self) -> Vec<PathBuf> {
        let names: Vec<_> = ANY_SOCKET.iter().map(|socket| socket.trim_end_matches("sock")).collect();
        let entries = fs::read_dir(&self.run_dir).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| {
            entry.file_name().to_str().is_some_and(|file| names.iter().any(|name| file.starts_with(name)))
        });
        ours.map(|entry| entry.path()).collect()
    }

    fn units(&self) -> impl Iterator<Item = PathBuf> {
        let wanted = if self.data_dir.is_some() { &UNITS[..] } else { &[] };
        wanted.iter().map(|unit| self.unit_dir.join(unit))
    }
}

/// A directory that was never a daemon's must not go because of a wrong flag.
fn remove_data(directory: &Path) -> Result<bool, LeftoversError> {
    if !directory.exists() {
        return Ok(false);
    }
    let is_empty = fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty && !DATA_FILES.iter().any(|file| directory.join(file).exists()) {
        return Err(LeftoversError::Foreign(directory.to_owned()));
    }
    remove(directory)
}

/// False if there was nothing.
fn remove(path: &Path) -> Result<bool, LeftoversError> {
    let failed = |error| LeftoversError::File { path: path.to_owned(), error };
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("letter"), "dear").unwrap();
        assert!(matches!(remove_data(&home), Err(LeftoversError::Foreign(_))));
        fs::write(home.join("membership.json"), "{}").unwrap();
        assert!(remove_data(&home).unwrap() && !home.exists());
        assert!(!remove_data(&home).unwrap());
    }

    #[test]
    fn units_of_an_administrator_go_with_the_data_and_stay_with_it() {
        let root = tempfile::tempdir().unwrap();
        let (unit_dir, data_dir) = (root.path().join("etc/systemd/system"), root.path().join("data"));
        let wants = unit_dir.join("multi-user.target.wants");
        fs::create_dir_all(&wants).unwrap();
        fs::create_dir_all(unit_dir.join("murmesh-agent.service.d")).unwrap();
        fs::write(unit_dir.join("murmesh-agent.service.d/override.conf"), "[Service]\n").unwrap();
        for unit in ["murmesh-agent.service", "murmesh-server.service", "other.service"] {
            fs::write(unit_dir.join(unit), "[Service]\n").unwrap();
            std::os::unix::fs::symlink(unit_dir.join(unit), wants.join(unit)).unwrap();
        }
        fs::create_dir(&data_dir).unwrap();
        let all = Leftovers {
            bpf_dir: root.path().join("bpf"),
            run_dir: root.path().join("run"),
            data_dir: Some(data_dir.clone()),
            unit_dir: unit_dir.clone(),
        };
        let kept = Leftovers { data_dir: None, ..all.clone() };
        assert!(kept.present().is_empty() && kept.remove().unwrap().is_empty());
        assert_eq!(all.present().len(), 6);
        assert_eq!(all.remove().unwrap().len(), 6);
        assert!(all.present().is_empty() && !data_dir.exists());
        let names = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(&wants), ["other.service"]);
        let mut left = names(&unit_dir);
        left.sort();
        assert_eq!(left, ["multi-user.target.wants", "other.service"]);
    }
}
