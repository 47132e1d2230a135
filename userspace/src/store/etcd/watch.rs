//! A watch of everything below a prefix, which is taken up at another member where it broke off.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, Event, EventType, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::MAX_RESPONSE_BYTES;
use super::members::{ATTEMPT, Members, describe};
use crate::store::{Applied, Change, StoreError, Watch};

const PAUSE: Duration = Duration::from_millis(100);

/// See [`crate::store::Store::watch`].
pub struct EtcdWatch {
    members: Arc<Members>,
    in_use: watch::Receiver<usize>,
    prefix: String,
    /// Of the last transaction that was told.
    revision: u64,
    pending: VecDeque<Arc<Applied>>,
    open: Option<(usize, WatchStream)>,
}

impl EtcdWatch {
    /// Of what comes after `revision`.
    pub fn new(members: Arc<Members>, prefix: String, revision: u64) -> Self {
        let in_use = members.in_use();
        Self { members, in_use, prefix, revision, pending: VecDeque::new(), open: None }
    }

    async fn open(&mut self) -> Result<(usize, WatchStream), (usize, String)> {
        self.in_use.mark_unchanged();
        let (member, client) = self.members.client();
        let first = self.revision.cast_signed() + 1;
        let options = WatchOptions::new().with_prefix().with_start_revision(first);
        let mut client = client.watch_client().max_decoding_message_size(MAX_RESPONSE_BYTES);
        match timeout(ATTEMPT, client.watch(self.prefix.as_str(), Some(options))).await {
            Ok(Ok(stream)) => Ok((member, stream)),
            Ok(Err(error)) => Err((member, describe(&error))),
            Err(_) => Err((member, "no answer in time".to_owned())),
        }
    }

    /// What the open stream says next; `Ok(None)` when another member is in use now.
    async fn heard(&mut self) -> Result<Option<WatchResponse>, (usize, String)> {
        let (member, mut stream) = match self.open.take() {
            Some(open) => open,
            None => self.open().await?,
        };
        let said = tokio::select! {
            said = stream.message() => said,
            _ = self.in_use.changed() => return Ok(None),
        };
        match said {
            Ok(Some(response)) if !response.canceled() || response.compact_revision() > 0 => {
                self.open = Some((member, stream));
                Ok(Some(response))
            }
            Ok(Some(response)) => Err((member, response.cancel_reason().to_owned())),
            Ok(None) => Err((member, "the stream ended".to_owned())),
            Err(Error::GRpcStatus(status)) => Err((member, status.message().to_owned())),
            Err(error) => Err((member, describe(&error))),
        }
    }

    fn take(&mut self, events: &[Event]) {
        for (revision, change) in events.iter().filter_map(|event| change(event, &self.prefix)) {
            if revision <= self.revision {
                continue;
            }
            match self.pending.back_mut() {
                Some(last) if last.revision == revision => {
                    if let Some(applied) = Arc::get_mut(last) {
                        applied.changes.push(change);
                    }
                }
                _ => self.pending.push_back(Arc::new(Applied { revision, changes: vec![change] })),
            }
        }
    }
}

/// The members never split a revision between two responses unless they are asked to.
fn change(event: &Event, prefix: &str) -> Option<(u64, Change)> {
    let found = event.kv()?;
    let key = found.key_str().ok()?.strip_prefix(prefix)?.to_owned();
    let change = match event.event_type() {
        EventType::Put => Change::Put(key, found.value().to_vec()),
        EventType::Delete => Change::Delete(key),
    };
    Some((found.mod_revision().cast_unsigned(), change))
}

#[tonic::async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Arc<Applied>, StoreError> {
        loop {
            if let Some(applied) = self.pending.pop_front() {
                self.revision = applied.revision;
                return Ok(applied);
            }
            match self.heard().await {
                Ok(Some(response)) if response.compact_revision() > 0 => {
                    return Err(StoreError::Compacted(self.revision));
                }
                Ok(Some(response)) => self.take(response.events()),
                Ok(None) => {}
                Err((member, reason)) => {
                    self.members.failed(member, &reason);
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
