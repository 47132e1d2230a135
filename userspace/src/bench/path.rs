//! The ways to the services.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

use super::{BenchError, Processes, Service};

/// After how long without a byte a connection counts as broken.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a path is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Plain TCP, past the mesh.
    Direct,
    /// A plain dial that the hooks redirect.
    Mesh,
    /// Through a proxy that listens at an address.
    Via,
}

/// A path to be measured.
#[derive(Debug)]
pub struct Path {
    /// As it is called in the results.
    pub name: String,
    /// What it is said to be.
    pub kind: Kind,
    /// What to dial.
    pub target: Target,
    /// The proxies on it, for CPU time and memory.
    pub proxies: Processes,
}

/// Where four consecutive ports lead to the four services.
#[derive(Debug)]
pub struct Target {
    base: SocketAddr,
    mark: Option<u32>,
    opened: AtomicU64,
}

impl Target {
    /// `base` leads to the first service; `mark` exempts connections from an agent's hooks.
    pub fn new(base: SocketAddr, mark: Option<u32>) -> Self {
        Self { base, mark, opened: AtomicU64::new(0) }
    }

    /// Connects to a service.
    ///
    /// # Errors
    /// It is not reached, or the mark may not be set.
    pub fn dial(&self, service: Service) -> Result<TcpStream, BenchError> {
        let address = SocketAddr::new(self.base.ip(), service.port(self.base.port()));
        let failed = |error: io::Error| BenchError::Dial { address, error };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP));
        let socket = socket.map_err(failed)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark).map_err(BenchError::Mark)?;
        }
        socket.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
        socket.set_tcp_nodelay(true).map_err(failed)?;
        socket.connect(&address.into()).map_err(failed)?;
        self.opened.fetch_add(1, Relaxed);
        Ok(socket.into())
    }

    /// Connections made so far.
    pub fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }
}
