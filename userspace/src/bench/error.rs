use std::{io, net::SocketAddr};

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A connection cannot be made.
    #[error("connecting to {address}: {error}; is `murmesh bench serve` running behind it?")]
    Dial {
        /// The address that was dialled.
        address: SocketAddr,
        /// What the operating system said.
        error: io::Error,
    },
    /// The mark that exempts a socket from the hooks.
    #[error("a direct connection beside an agent needs SO_MARK: {0}; run this as root")]
    Mark(io::Error),
    /// A connection failed while it was in use.
    #[error("{doing}: {error}")]
    Connection {
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        error: io::Error,
    },
    /// The service is not the one expected.
    #[error("{service} answered {received} bytes where {expected} are due: it is not `murmesh bench serve`")]
    Answer {
        /// Which service.
        service: &'static str,
        /// Bytes received.
        received: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// The hooks do not lead connections of this process to the agent.
    #[error("the mesh cannot be measured: {0}; `murmesh check` tells more")]
    Canary(String),
    /// The mesh is to be measured, and no agent runs here.
    #[error(
        "the mesh cannot be measured: no agent answers in {0}; start one, or leave `mesh` out of --paths"
    )]
    NoAgent(std::path::PathBuf),
    /// The agent runs and does not tell what it carried.
    #[error("the agent's counters cannot be read: {0}")]
    Agent(String),
    /// Connections meant for the mesh did not pass the agent.
    #[error(
        "path mesh: of {opened} connections the agent carried {carried}: this is not the mesh, and nothing was measured; does `murmesh services` list the address?"
    )]
    NotCarried {
        /// Connections opened.
        opened: u64,
        /// Connections the agent counted.
        carried: u64,
    },
    /// Connections meant to bypass the mesh passed the agent.
    #[error(
        "path direct: the agent carried {carried} connections while {opened} were opened past it: either they were intercepted (does --mark equal the agent's?) or other programs are using the mesh; repeat on a quiet host"
    )]
    Carried {
        /// Connections opened.
        opened: u64,
        /// Connections the agent counted.
        carried: u64,
    },
    /// A process cannot be looked at.
    #[error("process {process}: {error}")]
    Process {
        /// Its id.
        process: u32,
        /// What the operating system said.
        error: io::Error,
    },
    /// /proc cannot be read.
    #[error("{file}: {error}")]
    Proc {
        /// The file.
        file: &'static str,
        /// What the operating system said.
        error: io::Error,
    },
}

impl BenchError {
    pub(super) fn connection(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::Connection { doing, error }
    }
}
