//! Agents that were taken over, and still carry streams: what they tell, for `murmesh status`.

use std::{
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::AbortHandle;
use tracing::info;

use super::{
    Answer, Older, Request, TakeoverError,
    wire::{Connection, MAX_DESCRIPTORS},
};

/// All of them.
#[derive(Clone, Default)]
pub struct OlderAgents(Arc<Mutex<Vec<Entry>>>);

struct Entry {
    agent: Older,
    connection: Arc<Connection>,
    listening: AbortHandle,
}

impl OlderAgents {
    /// Those that carry streams now.
    pub fn now(&self) -> Vec<Older> {
        self.entries().iter().map(|entry| entry.agent.clone()).collect()
    }

    /// Listens to one until it ends. Needs a tokio runtime.
    pub(super) fn follow(&self, agent: Older, connection: Connection) {
        let (pid, connection) = (agent.pid, Arc::new(connection));
        let (all, heard) = (self.clone(), connection.clone());
        let mut entries = self.entries();
        let listening = tokio::spawn(async move {
            while let Ok(Some((Answer::Draining(streams), _))) = heard.receive().await {
                all.entries().iter_mut().filter(|entry| entry.agent.pid == pid).for_each(|entry| {
                    entry.agent.streams = streams;
                });
            }
            all.entries().retain(|entry| entry.agent.pid != pid);
            info!(pid, "an older agent has ended");
        });
        entries.push(Entry { agent, connection, listening: listening.abort_handle() });
    }

    /// Passes them on to the agent that takes over, and listens to them no more.
    pub(super) async fn pass_on(&self, successor: &Connection) -> Result<(), TakeoverError> {
        let mut entries = std::mem::take(&mut *self.entries());
        entries.iter().for_each(|entry| entry.listening.abort());
        entries.truncate(MAX_DESCRIPTORS);
        let agents = entries.iter().map(|entry| entry.agent.clone()).collect();
        let descriptors: Vec<_> = entries.iter().map(|entry| entry.connection.as_raw_fd()).collect();
        successor.send(&Answer::Yours(agents), &descriptors).await
    }

    /// Tells them that their streams are not to go on for long.
    pub async fn stop(&self) {
        let connections: Vec<_> = self.entries().iter().map(|entry| entry.connection.clone()).collect();
        for connection in connections {
            // One that has ended needs not be told.
            let _ = connection.send(&Request::Stop, &[]).await;
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
