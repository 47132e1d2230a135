//! The listening sockets of an agent, which outlive it.

use std::{
    fs, io,
    net::TcpListener,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::Path,
};

use super::{Answer, TakeoverError, wire, wire::Connection};
use crate::proxy::WorkerListeners;

/// Copies of all of them.
pub struct Listeners {
    /// For the command line.
    pub local: UnixListener,
    /// For the next agent.
    pub takeover: UnixListener,
    /// For tunnels and for applications.
    pub workers: Vec<WorkerListeners>,
}

/// Makes the socket for the next agent, in a directory whose socket for the command line is ours.
///
/// # Errors
/// It cannot be made.
pub fn takeover_listener(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => wire::listener(path),
    }
}

impl Listeners {
    /// Sends copies, after `offer`.
    pub(super) async fn send(&self, connection: &Connection, offer: &Answer) -> Result<(), TakeoverError> {
        connection.send(offer, &[self.local.as_raw_fd(), self.takeover.as_raw_fd()]).await?;
        for worker in &self.workers {
            let listeners = std::iter::once(&worker.tunnels).chain(&worker.applications);
            let descriptors: Vec<RawFd> = listeners.map(AsRawFd::as_raw_fd).collect();
            connection.send(&Answer::Worker, &descriptors).await?;
        }
        Ok(())
    }

    /// Receives what [`Self::send`] has sent, after the offer, with which `first` came.
    pub(super) async fn receive(
        connection: &Connection,
        first: Vec<OwnedFd>,
        workers: usize,
    ) -> Result<Self, TakeoverError> {
        let [local, takeover] =
            <[OwnedFd; 2]>::try_from(first).map_err(|_| missing())?.map(UnixListener::from);
        let mut received = Vec::new();
        while received.len() < workers {
            let (_, descriptors) = connection.receive::<Answer>().await?.ok_or(TakeoverError::Ended)?;
            let mut listeners = descriptors.into_iter().map(TcpListener::from);
            let tunnels = listeners.next().ok_or_else(missing)?;
            received.push(WorkerListeners { tunnels, applications: listeners.collect() });
        }
        Ok(Self { local, takeover, workers: received })
    }
}

fn missing() -> TakeoverError {
    TakeoverError::Protocol("a socket is missing".to_owned())
}
