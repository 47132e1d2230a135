//! Certificates for the workloads and services of this host.

use std::sync::Arc;

use tokio::sync::watch;

use super::connection::dial;
use super::enrolment::{finish, may_retry, timed};
use super::{ControlError, ServerStatus};
use crate::api::v1;
use crate::identity::token::ServerAddress;
use crate::identity::{HostKey, Identity, IdentityError, SpiffeId, Subject, tls};

/// Asks the servers for certificates. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Issuer {
    pub(super) identity: watch::Receiver<Arc<Identity>>,
    pub(super) status: watch::Receiver<ServerStatus>,
    pub(super) mark: Option<u32>,
}

impl Issuer {
    /// A fresh identity for `subject`, with a key made here: for [`Subject::Workload`] of this host, or for
    /// [`Subject::Service`] that this host is registered for. The server in use is asked first, then the others.
    ///
    /// # Errors
    /// [`ControlError::Refused`] without `retry` when this host may not have it; anything else may pass by itself.
    pub async fn issue(&self, subject: &Subject) -> Result<Identity, ControlError> {
        let key = HostKey::generate()?;
        let mut failure = ControlError::Stopped;
        for server in self.servers() {
            match self.issue_at(&server, subject, &key).await {
                Err(error) if may_retry(&error) => failure = error,
                answered => return answered,
            }
        }
        Err(failure)
    }

    async fn issue_at(
        &self,
        server: &ServerAddress,
        subject: &Subject,
        key: &HostKey,
    ) -> Result<Identity, ControlError> {
        let host = self.identity.borrow().clone();
        let wanted = SpiffeId { trust_domain: host.id.trust_domain.clone(), subject: subject.clone() };
        let mut client = dial(server, tls::api_client(&host)?, self.mark).await?;
        let request = v1::SignWorkloadRequest {
            spiffe_id: wanted.to_string(),
            certificate_request: key.certificate_request()?,
        };
        let answer = finish(server, client.sign_workload(timed(request)).await)?;
        let der = |list: Vec<Vec<u8>>| list.into_iter().map(Into::into).collect();
        let identity = Identity::new(key, der(answer.chain), der(answer.bundle))?;
        if identity.id == wanted {
            Ok(identity)
        } else {
            Err(IdentityError::Certificate("the server made it for another identity").into())
        }
    }

    /// All that are known, the one in use first.
    fn servers(&self) -> Vec<ServerAddress> {
        let status = self.status.borrow();
        let mut servers = status.servers.clone();
        servers.sort_by_key(|server| status.connected.as_ref() != Some(server));
        servers
    }
}
