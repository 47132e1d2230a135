//! One host's watch of the catalog: a snapshot first, then each change. A watcher that falls behind gets a new snapshot:
//! memory stays bounded.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::backlog::{Behind, Follower, Told};
use super::feed::Feed;
use crate::api::v1;
use crate::identity::NodeName;

/// Bytes in one message, but for its last event.
const ENOUGH: usize = 256 << 10;
/// Between two messages to one watcher, at least. What comes alone is told at once; where much changes, as when a thousand
/// hosts join, a message for each change to each watcher would be nearly all that a server does.
const PACE: Duration = Duration::from_millis(20);
/// The same for each watcher that there is: all together are sent 5 000 messages a second at most.
const SHARE: Duration = Duration::from_micros(200);

/// The host counts as connected while this exists.
pub struct Subscription {
    feed: Arc<Feed>,
    node: NodeName,
    /// `None` while a snapshot is due.
    events: Option<Follower>,
    last: Option<Instant>,
    is_removed: bool,
}

impl Subscription {
    /// Of `node`, which `feed` counts as connected.
    pub fn new(feed: Arc<Feed>, node: NodeName) -> Self {
        Self { feed, node, events: None, last: None, is_removed: false }
    }

    /// Waits for events: a snapshot first, and again whenever this watcher has fallen behind. A host that is removed is
    /// told so, and then `None`; at once if it has fallen behind, and would not hear it.
    pub async fn next(&mut self) -> Option<v1::CatalogEvents> {
        if self.is_removed {
            return None;
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        let mut next = Some(self.wait().await?);
        if let Some(last) = self.last {
            sleep_until(last + PACE.max(SHARE * self.feed.watchers())).await;
        }
        while let Some(told) = next {
            bytes += told.encoded.len();
            self.is_removed = told.removed.as_ref() == Some(&self.node);
            events.push(told.encoded.clone());
            next = if bytes < ENOUGH && !self.is_removed { self.waiting() } else { None };
        }
        self.last = Some(Instant::now());
        Some(v1::CatalogEvents { events })
    }

    async fn wait(&mut self) -> Option<Arc<Told>> {
        if let Some(events) = &mut self.events
            && let Ok(told) = events.next().await
        {
            return Some(told);
        }
        // The first time it may have joined again by another server, of which this one has not heard yet.
        if self.last.is_some() && self.feed.read(|view| view.has_removed(&self.node)) {
            return None;
        }
        let (snapshot, events) = self.feed.begin();
        self.events = Some(events);
        Some(snapshot)
    }

    fn waiting(&mut self) -> Option<Arc<Told>> {
        self.events.as_mut()?.waiting().unwrap_or_else(|Behind| {
            self.events = None;
            None
        })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.leave(&self.node);
    }
}
