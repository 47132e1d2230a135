//! Announces this server, and the hosts that are connected to it, to the other servers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::feed::Feed;
use super::records::{CONNECTED, RUNNING};
use crate::store::{Change, Store, StoreError, Transaction};

/// Changes in one transaction; etcd takes 128 operations unless told otherwise.
const BATCH: usize = 100;
const PAUSE: Duration = Duration::from_secs(1);

/// What a server announces.
pub struct Presence {
    pub store: Arc<dyn Store>,
    pub feed: Arc<Feed>,
    /// The name of this server.
    pub name: String,
}

impl Presence {
    /// Announces what there is, and again whatever the store has lost, for as long as it is run.
    pub async fn keep(self) {
        let (mut sessions, mut connections) = (self.store.sessions(), self.feed.connections());
        let (mut session, mut told) = (0, BTreeSet::new());
        loop {
            let current = *sessions.borrow_and_update();
            if current != session {
                (session, told) = (current, BTreeSet::new());
            }
            connections.mark_unchanged();
            let wanted = self.wanted();
            if session != 0 && wanted != told {
                match self.tell(&wanted, &told).await {
                    Ok(()) => told = wanted,
                    Err(error) => {
                        warn!(%error, "other servers are not told which hosts are connected here, trying again");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                continue;
            }
            let ended = tokio::select! {
                changed = sessions.changed() => changed.is_err(),
                changed = connections.changed() => changed.is_err(),
            };
            if ended {
                return;
            }
        }
    }

    fn wanted(&self) -> BTreeSet<String> {
        let hosts = self.feed.read(|view| view.connections.keys().cloned().collect::<Vec<_>>());
        let hosts = hosts.into_iter().map(|node| format!("{CONNECTED}{}/{node}", self.name));
        hosts.chain([format!("{RUNNING}{}", self.name)]).collect()
    }

    async fn tell(&self, wanted: &BTreeSet<String>, told: &BTreeSet<String>) -> Result<(), StoreError> {
        let new = wanted.difference(told).map(|key| Change::Announce(key.clone(), vec![]));
        let gone = told.difference(wanted).map(|key| Change::Delete(key.clone()));
        let changes: Vec<Change> = new.chain(gone).collect();
        for batch in changes.chunks(BATCH) {
            self.store.commit(Transaction { conditions: vec![], changes: batch.to_vec() }).await?;
        }
        Ok(())
    }
}
