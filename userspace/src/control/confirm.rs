//! Tells the servers which roots this host trusts and which have signed what it uses, so that nothing of it is taken
//! away before that is possible.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tonic::transport::Channel;

use super::ControlError;
use super::enrolment::{finish, timed};
use crate::api::v1;
use crate::api::v1::mesh_client::MeshClient;
use crate::identity::token::ServerAddress;
use crate::identity::{Fingerprint, Identity, fingerprints};

/// Says it once, and again at each change of `others`, the roots that signed for workloads and services. `host` changes
/// only with a new connection.
pub async fn confirm(
    server: &ServerAddress,
    mut client: MeshClient<Channel>,
    host: Arc<Identity>,
    others: &mut watch::Receiver<BTreeSet<Fingerprint>>,
) -> Result<(), ControlError> {
    let own = host.issuer();
    loop {
        let mut issuers = others.borrow_and_update().clone();
        // One that is trusted no more is none of those that are.
        issuers.insert(own.unwrap_or_default());
        let request = v1::ConfirmRequest {
            roots: fingerprints(&host.bundle).iter().map(|root| root.to_vec()).collect(),
            issuers: issuers.iter().map(|root| root.to_vec()).collect(),
        };
        finish(server, client.confirm(timed(request)).await)?;
        if others.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
