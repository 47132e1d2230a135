//! The kernel half, seen from the agent: loading, attaching and pinning it, and its maps.

mod attached;
mod events;
mod mirror;
mod pins;
mod plaintext;
mod policy;
mod programs;
mod records;
mod repair;
mod swap;
mod verdicts;

pub use attached::{attached_hooks, exclusive_program};
pub use events::{forward_log, listener_events};
pub use pins::Pins;
pub use plaintext::{Counted, Plaintext};
pub use policy::{PolicyMaps, wait_for_programs};
pub use programs::{Counters, HOOKS, Hook, KernelHalf, LoadOptions};
pub use records::Records;
pub use repair::Fault;
pub use swap::Programs;
pub use verdicts::{KernelVerdict, Reason, verdict_events};

use std::{io, path::PathBuf};

/// `SO_MARK` of the agent's own sockets: "mm". A host whose routing rules use the same mark can choose another.
pub const DEFAULT_MARK: u32 = 0x6d6d;

/// Why the kernel half cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// A directory or file of the BPF file system.
    #[error("{path}: {error}; is a BPF file system mounted there (mount -t bpf bpf /sys/fs/bpf)?")]
    Pin {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The cgroup to attach to.
    #[error("cgroup {path}: {error}; name a cgroup v2 directory with --cgroup")]
    Cgroup {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel did not take the programs.
    #[error("the kernel does not load the programs: {0}; `murmesh check` tells what this kernel lacks")]
    Load(#[from] aya::EbpfError),
    /// The kernel did not take or attach one program.
    #[error("hook {hook}: {error}; `murmesh check` tells what this kernel lacks")]
    Hook {
        /// Its name.
        hook: &'static str,
        /// What the kernel said.
        #[source]
        error: aya::programs::ProgramError,
    },
    /// A map is missing or of another form, or an operation on it failed.
    #[error("map {map}: {error}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        error: aya::maps::MapError,
    },
    /// What an agent that is to be taken over has attached.
    #[error(
        "the running agent has attached other hooks than this version has: {0}; stop it, and start this one without --take-over"
    )]
    OtherHooks(String),
    /// This agent took too long.
    #[error("the running agent has given up waiting for this one")]
    GivenUp,
    /// Something about the kernel cannot be asked.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

impl BpfError {
    fn map(map: &'static str) -> impl Fn(aya::maps::MapError) -> Self {
        move |error| Self::Map { map, error }
    }

    fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::System { what, error }
    }
}
