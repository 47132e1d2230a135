//! What the workers listen on, for the next agent, and others in its place: a socket stays in the cgroup in which it was
//! made, and the hooks of that one are those that see its connections.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;

use super::worker::{Listen, WorkerListeners, Workers};

/// Copies of what the workers listen on.
pub struct Listening {
    listen: Listen,
    mark: Option<u32>,
    workers: Vec<mpsc::UnboundedSender<WorkerListeners>>,
    copies: Mutex<Vec<WorkerListeners>>,
}

impl Listening {
    /// `copies` are those of what `workers` listen on, at `listen`.
    pub fn new(workers: &Workers, listen: Listen, mark: Option<u32>, copies: Vec<WorkerListeners>) -> Self {
        Self { listen, mark, workers: workers.listeners(), copies: Mutex::new(copies) }
    }

    /// Has the workers accept at the same ports on new sockets, which are in the cgroup in which this process is now.
    /// Connections that wait to be accepted on the old ones are reset.
    ///
    /// # Errors
    /// No descriptor is left, or a port may not be used. The old ones stay then.
    pub fn renew(&self) -> anyhow::Result<()> {
        let make = |_| WorkerListeners::new(&self.listen, self.mark);
        let new = self.workers.iter().map(make).collect::<anyhow::Result<Vec<_>>>()?;
        *self.locked() = new.iter().map(WorkerListeners::copy).collect::<io::Result<_>>()?;
        for (worker, listeners) in self.workers.iter().zip(new) {
            // One that accepts no more needs none.
            let _ = worker.send(listeners);
        }
        Ok(())
    }

    /// Copies, for a process that takes over from this one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn copies(&self) -> io::Result<Vec<WorkerListeners>> {
        self.locked().iter().map(WorkerListeners::copy).collect()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<WorkerListeners>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
