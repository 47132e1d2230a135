//! What watchers are told, kept for those that read slowly. Whoever falls further behind gets the whole catalog again.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver};

use crate::identity::NodeName;
use crate::recent::{Bounds, Recent};

/// After a start a thousand hosts connect at once, and each is news: the whole catalog is far more to read. That is a few
/// MiB, but a hostile host can have changes of nearly 1 MiB told.
pub const BOUNDS: Bounds = Bounds { count: 4096, bytes: 32 << 20 };

/// What watchers are told.
#[derive(Debug, Clone)]
pub struct Told {
    /// A `CatalogEvent`.
    pub encoded: Bytes,
    /// The host that is told to be no longer part of the mesh.
    pub removed: Option<NodeName>,
}

/// What all watchers are told.
pub struct Backlog {
    /// The order of it; what is not kept any more cannot be had.
    events: broadcast::Sender<Weak<Told>>,
    kept: Mutex<Recent<Arc<Told>>>,
}

/// One watcher's place in it.
pub struct Follower(Receiver<Weak<Told>>);

/// A watcher has fallen behind what is kept.
#[derive(Debug)]
pub struct Behind;

impl Backlog {
    /// Nobody has been told anything.
    pub fn new() -> Self {
        Self { events: broadcast::Sender::new(BOUNDS.count), kept: Mutex::new(Recent::new(BOUNDS)) }
    }

    /// Tells all watchers, in the order of these calls.
    pub fn tell(&self, told: Told) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (bytes, told) = (told.encoded.len(), Arc::new(told));
        // Fails only when nobody watches.
        let _ = self.events.send(Arc::downgrade(&told));
        kept.push(told, bytes);
    }

    /// A watcher of what is told from now on.
    pub fn follow(&self) -> Follower {
        Follower(self.events.subscribe())
    }

    /// How many follow now.
    pub fn followers(&self) -> usize {
        self.events.receiver_count()
    }
}

impl Follower {
    /// Waits for what is next. After an error others are missing, too.
    pub async fn next(&mut self) -> Result<Arc<Told>, Behind> {
        match self.0.recv().await {
            Ok(told) => told.upgrade().ok_or(Behind),
            Err(RecvError::Lagged(_)) => Err(Behind),
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// What is there already; `None` if nothing is.
    pub fn waiting(&mut self) -> Result<Option<Arc<Told>>, Behind> {
        match self.0.try_recv() {
            Ok(told) => told.upgrade().ok_or(Behind).map(Some),
            Err(TryRecvError::Lagged(_)) => Err(Behind),
            Err(TryRecvError::Empty | TryRecvError::Closed) => Ok(None),
        }
    }
}
