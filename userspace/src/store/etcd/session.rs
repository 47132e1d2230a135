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
/// off and find another (five seconds and a connection): their hosts never seem to be gone meanwhile.
const TIME_TO_LIVE: i64 = 10;
/// So a member that hangs is noticed, and left, in less than three seconds.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(4);

/// A lease, and another one after it when it is lost.
pub struct Session {
    members: Arc<Members>,
    /// 0 while there is none.
    lease: watch::Sender<u64>,
}

impl Session {
    /// Without a lease, until [`Self::keep`] is run.
    pub fn new(members: Arc<Members>) -> Self {
        Self { members, lease: watch::Sender::new(0) }
    }

    /// Tells of each lease; whatever hung on the one before is gone.
    pub fn numbers(&self) -> watch::Receiver<u64> {
        self.lease.subscribe()
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
                    self.lease.send_replace(lease.id().cast_unsigned());
                    self.renew(lease.id()).await;
                    self.lease.send_replace(0);
                    warn!("the lease in etcd was lost; announcing this server again");
                }
                Err(error) => warn!(%error, "no lease in etcd"),
            }
            sleep(RENEWAL_INTERVAL).await;
        }
    }

    /// Returns when the lease is lost.
    async fn renew(&self, lease: i64) {
        let mut well = true;
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
                Ok(false) => return,
                Ok(true) if !well => {
                    info!("etcd answers again");
                    well = true;
                }
                Err(error) if well => {
                    warn!(%error, "etcd does not answer: nothing can be changed until it does");
                    well = false;
                }
                _ => {}
            }
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
