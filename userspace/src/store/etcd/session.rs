//! The lease that everything hangs on which a server announces: when the server is gone, so is that.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::Error;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tracing::{info, warn};

use super::members::Members;
use crate::store::StoreError;

/// How long what was announced outlives its server, in seconds. Longer than agents take to leave a server that is cut
/// off and find another (seven seconds and a connection): their hosts never seem to be gone meanwhile.
const TIME_TO_LIVE: i64 = 10;
/// So a member that hangs is noticed, and left, in less than three seconds.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(4);

/// A lease, and another one after it when it is lost.
pub struct Session {
    members: Arc<Members>,
    /// 0 while there is none.
    lease: watch::Sender<u64>,
    answers: watch::Sender<bool>,
}

impl Session {
    /// Without a lease, until [`Self::keep`] is run.
    pub fn new(members: Arc<Members>) -> Self {
        Self { members, lease: watch::Sender::new(0), answers: watch::Sender::new(true) }
    }

    /// Tells of each lease; whatever hung on the one before is gone.
    pub fn numbers(&self) -> watch::Receiver<u64> {
        self.lease.subscribe()
    }

    /// Whether etcd answers. That it does not is found out within five seconds, before the lease ends.
    pub fn answers(&self) -> watch::Receiver<bool> {
        self.answers.subscribe()
    }

    /// The lease, which is waited for.
    ///
    /// # Errors
    /// [`StoreError::NoQuorum`] when there is none in time.
    pub async fn lease(&self) -> Result<i64, StoreError> {
        let mut numbers = self.numbers();
        match timeout(PATIENCE, numbers.wait_for(|number| *number != 0)).await {
            Ok(Ok(number)) => Ok(number.cast_signed()),
            _ => Err(self.members.no_quorum("no lease was granted".to_owned())),
        }
    }

    /// Keeps a lease for as long as it is run.
    pub async fn keep(self: Arc<Self>) {
        loop {
            let granted = self
                .members
                .call(|client| async move { client.lease_client().grant(TIME_TO_LIVE, None).await });
            match granted.await {
                Ok(lease) => {
                    self.found(None);
                    self.lease.send_replace(lease.id().cast_unsigned());
                    self.renew(lease.id()).await;
                    self.lease.send_replace(0);
                    warn!("the lease in etcd was lost; announcing this server again");
                }
                Err(error) => self.found(Some(&error)),
            }
            sleep(RENEWAL_INTERVAL).await;
        }
    }

    /// Returns when the lease is lost.
    async fn renew(&self, lease: i64) {
        loop {
            sleep(RENEWAL_INTERVAL).await;
            let renewed = self.members.call(|client| async move {
                match client.lease_client().keep_alive(lease).await {
                    Ok(_) => Ok(true),
                    Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                    Err(Error::GRpcStatus(status)) if status.code() == Code::NotFound => Ok(false),
                    Err(error) => Err(error),
                }
            });
            match renewed.await {
                Ok(kept) => {
                    self.found(None);
                    if !kept {
                        return;
                    }
                }
                Err(error) => self.found(Some(&error)),
            }
        }
    }

    /// Tells whether etcd answers.
    fn found(&self, failure: Option<&StoreError>) {
        let news = self.answers.send_if_modified(|answers| {
            let before = std::mem::replace(answers, failure.is_none());
            before != *answers
        });
        match failure {
            _ if !news => {}
            Some(error) => {
                warn!(%error, "etcd does not answer: hosts are sent to other servers, and nothing can be changed")
            }
            None => info!("etcd answers again"),
        }
    }

    /// Takes everything back that hangs on the lease.
    pub async fn end(&self) {
        let lease = self.lease.send_replace(0).cast_signed();
        if lease != 0 {
            // Without it, the lease ends by itself.
            let _ =
                self.members.call(|client| async move { client.lease_client().revoke(lease).await }).await;
        }
    }
}
