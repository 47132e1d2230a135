//! What a daemon gives up as it starts: capabilities, new privileges, core dumps, and to write files that are none of
//! its business.
//!
//! Threats: whoever gets a daemon to run his code has what the daemon has, and no more than that is left to it. Keys are
//! in its memory: no file is made of that, and no process of its user reads it (`PR_SET_DUMPABLE`, proc(5)).
//! Units of systemd do the same from outside, and more; this holds for daemons that are started by hand, too.

mod capabilities;
mod files;
mod limits;
mod report;

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::PathBuf,
    sync::OnceLock,
};

use nix::{errno::Errno, sys::prctl, unistd::geteuid};
use tracing::info;

pub use capabilities::{Capabilities, Capability, drop_all};
use files::Confinement;
pub use limits::raise_descriptor_limit;
pub use report::report;

/// Below this a port takes a capability (`net.ipv4.ip_unprivileged_port_start`).
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// How far this process is kept from writing files.
static CONFINEMENT: OnceLock<Confinement> = OnceLock::new();

/// Why a daemon cannot give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Its capabilities.
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// There is too little to begin with.
    #[error(
        "this process lacks {0}, and cannot work without: run it as root, or with AmbientCapabilities= in its unit"
    )]
    Missing(String),
    /// Something else.
    #[error("{what} cannot be given up: {error}")]
    Process {
        /// What.
        what: &'static str,
        /// What the kernel said.
        error: Errno,
    },
}

/// What a daemon cannot do without.
#[derive(Debug, Default)]
pub struct Needs {
    /// What it does that takes them.
    pub capabilities: Capabilities,
    /// Where it makes, changes and removes files, with the mode of each if it has to be made.
    pub directories: Vec<(PathBuf, u32)>,
    /// Files that it reads, which may belong to anybody.
    pub files: Vec<PathBuf>,
    /// Ports that it listens on.
    pub ports: Vec<u16>,
    /// Whether it asks what processes of others run: Landlock would keep it from that.
    pub looks_into_processes: bool,
    /// Whether it runs programs: another version of itself, checks of services.
    pub runs_programs: bool,
}

impl Needs {
    /// With those that follow from who this process is, and whose files it needs.
    fn capabilities(&self) -> Capabilities {
        let mut wanted = self.capabilities.clone();
        if self.ports.iter().any(|port| (1..FIRST_UNPRIVILEGED_PORT).contains(port)) {
            wanted.insert(Capability::CAP_NET_BIND_SERVICE);
        }
        // Root in the directory of a unit's user, or with a key that belongs to somebody else.
        let paths = self.directories.iter().map(|(path, _)| path).chain(&self.files);
        let owner = geteuid().as_raw();
        if paths.filter_map(|path| fs::metadata(path).ok()).any(|found| found.uid() != owner) {
            wanted.extend([Capability::CAP_CHOWN, Capability::CAP_DAC_OVERRIDE, Capability::CAP_FOWNER]);
        }
        wanted
    }

    /// What cannot be made is told of by whoever uses it.
    fn make_directories(&self) {
        for (path, mode) in &self.directories {
            let _ = DirBuilder::new().recursive(true).mode(*mode).create(path);
        }
    }
}

/// Gives up all but what is needed, for good and for all programs that this process runs. To be called before any
/// thread is started: capabilities and Landlock are a thread's own, and its children's.
///
/// # Errors
/// Something that is needed is not there, or the kernel refuses. Landlock is no error: not every kernel has it.
pub fn enter(needs: &Needs) -> Result<(), SandboxError> {
    let missing = capabilities::missing(&needs.capabilities)?;
    if !missing.is_empty() {
        return Err(SandboxError::Missing(missing.join(", ")));
    }
    needs.make_directories();
    limits::forbid_core_dumps()?;
    raise_descriptor_limit();
    let failed = |what| move |error| SandboxError::Process { what, error };
    prctl::set_no_new_privs().map_err(failed("new privileges"))?;
    let _ = CONFINEMENT.set(files::confine(needs));
    capabilities::keep(&needs.capabilities())?;
    prctl::set_dumpable(false).map_err(failed("core dumps"))
}

/// Says in the log what is left.
pub fn log() {
    let left = report();
    let capabilities =
        if left.capabilities.is_empty() { "none".to_owned() } else { left.capabilities.join(" ") };
    let (uid, files, descriptors) = (left.uid, left.files, left.descriptors);
    info!(uid, %capabilities, %files, descriptors, core_dumps = left.core_dumps, "sandbox");
}
