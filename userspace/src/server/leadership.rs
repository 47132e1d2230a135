//! Which server leads: the one that announced so first, for as long as it is there.
//!
//! The leader does what only one server may do. Each of its changes is made on condition that it still leads, so that a
//! server which was cut off and does not know yet that another one leads changes nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::feed::Feed;
use super::records::LEADER;
use super::registry::{Registry, RegistryError};
use crate::identity::JoinToken;
use crate::store::{Change, Condition, Outcome, Store, StoreError, Transaction};

const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// This server's part in leading.
pub struct Leadership {
    pub store: Arc<dyn Store>,
    pub registry: Arc<Registry>,
    pub feed: Arc<Feed>,
    /// The name of this server.
    pub name: String,
}

impl Leadership {
    /// Leads whenever nobody else does, for as long as it is run.
    pub async fn keep(self) {
        let mut leader = self.feed.leader();
        loop {
            let claim = self.claim();
            let revision = self.campaign(&claim, &mut leader).await;
            info!("this server leads");
            tokio::select! {
                () = self.keep_house(revision) => {}
                () = lost(&claim, &mut leader) => {}
            }
            info!("this server leads no more");
        }
    }

    /// The name with a number that no other claim had, also not one of this server before it was restarted.
    fn claim(&self) -> String {
        let random = JoinToken::new_secret().map(|secret| HEXLOWER.encode(&secret[..8]));
        let number =
            random.unwrap_or_else(|_| humantime::format_rfc3339_nanos(SystemTime::now()).to_string());
        format!("{} {number}", self.name)
    }

    /// Waits until this server leads; returns the revision of its claim.
    async fn campaign(&self, claim: &str, leader: &mut watch::Receiver<Option<String>>) -> u64 {
        loop {
            match self.attempt(claim).await {
                Ok(Some(revision)) => return revision,
                Ok(None) => {
                    // Fails only when the feed is gone, and this server with it.
                    let _ = leader.wait_for(Option::is_none).await;
                }
                Err(error) => {
                    debug!(%error, "no leader can be elected");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The revision of the claim if it was the first; else waits until the feed knows of the other one.
    async fn attempt(&self, claim: &str) -> Result<Option<u64>, StoreError> {
        let conditions = vec![Condition::Absent(LEADER.to_owned())];
        let changes = vec![Change::Announce(LEADER.to_owned(), claim.into())];
        if let Outcome::Applied(revision) = self.store.commit(Transaction { conditions, changes }).await? {
            return Ok(Some(revision));
        }
        let Some(entry) = self.store.get(LEADER).await? else { return Ok(None) };
        if entry.value == claim.as_bytes() {
            return Ok(Some(entry.revision));
        }
        // When the feed does not know the other one yet, nobody seems to lead.
        self.feed.reached(entry.revision).await;
        Ok(None)
    }

    /// Returns when it turns out that somebody else leads.
    async fn keep_house(&self, revision: u64) {
        let fence = Condition::Unchanged(LEADER.to_owned(), revision);
        loop {
            match self.registry.keep_house(&fence, SystemTime::now()).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(RegistryError::Store(StoreError::NoQuorum { .. })) => {}
                Err(error) => warn!(%error, "housekeeping failed"),
            }
            tokio::time::sleep(HOUSEKEEPING_INTERVAL).await;
        }
    }
}

/// Waits until the claim was in force and is not any more.
async fn lost(claim: &str, leader: &mut watch::Receiver<Option<String>>) {
    let is_ours = |leader: &Option<String>| leader.as_deref() == Some(claim);
    // Fails only when the feed is gone, and this server with it.
    let _ = leader.wait_for(is_ours).await;
    let _ = leader.wait_for(|leader| !is_ours(leader)).await;
}
