//! What agents ask of the server. Who asks is what the certificate says, never what the message says.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, Stream, StreamExt};
use rustls_pki_types::CertificateDer;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::credentials::{Credentials, Holder};
use super::feed::Feed;
use super::flows::{self, HostFlows};
use super::listener::Peer;
use super::plaintext;
use super::registry::{Registry, RegistryError};
use super::roots::RootRecords;
use super::rotation;
use crate::api::v1;
use crate::api::v1::mesh_server::Mesh;
use crate::catalog::Report;
use crate::identity::authority::VerifiedRequest;
use crate::identity::{Fingerprint, IdentityError, NameError, NodeName, PeerIdentity, SpiffeId, Subject};
use crate::limited_log::LimitedLog;
use crate::store::StoreError;

/// Anybody can ask to be let in.
static JOIN_REFUSED: LimitedLog = LimitedLog::new();
static RENEWAL_REFUSED: LimitedLog = LimitedLog::new();
/// And can ask for what needs the database, while that fails.
static REGISTRY_FAILED: LimitedLog = LimitedLog::new();
/// Any host of the mesh can send what is refused.
static REPORT_REFUSED: LimitedLog = LimitedLog::new();
static IDENTITY_REFUSED: LimitedLog = LimitedLog::new();
static FLOWS_REFUSED: LimitedLog = LimitedLog::new();

/// What is wrong with a server whose store does not answer.
pub const OUT_OF_TOUCH: &str = "the server does not reach its database";

/// Serves the `Mesh` interface.
pub struct MeshService {
    pub registry: Arc<Registry>,
    pub credentials: Arc<Credentials>,
    pub records: RootRecords,
    pub feed: Arc<Feed>,
    pub flows: Arc<HostFlows>,
    pub shutdown: CancellationToken,
}

#[tonic::async_trait]
impl Mesh for MeshService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::CatalogEvents, Status>> + Send>>;
    type FlowsStream = Pin<Box<dyn Stream<Item = Result<v1::FlowsWanted, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let address = request.extensions().get::<Peer>().map(|peer| peer.address);
        let v1::JoinRequest { token_secret, node, certificate_request } = request.into_inner();
        let (node, request) = (named(&node)?, verified(&certificate_request)?);
        let joined_after = match self.registry.join(&token_secret, &node, request.public_key()).await {
            Ok(joined_after) => {
                info!(%node, ?address, "host joined");
                joined_after
            }
            Err(error) => {
                if let Some(withheld) = JOIN_REFUSED.permit() {
                    warn!(%node, ?address, %error, withheld, "join refused");
                }
                return Err(refusal(&error));
            }
        };
        let holder = Holder { node: node.clone(), joined_after: Some(joined_after) };
        self.certificate(&request, Subject::Host(node), &holder)
    }

    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let v1::RenewRequest { node, certificate_request } = request.into_inner();
        let (node, request) = (named(&node)?, verified(&certificate_request)?);
        let joined_after = self.registry.authorise_renewal(&node, request.public_key()).await;
        let joined_after = joined_after.map_err(|error| {
            if let Some(withheld) = RENEWAL_REFUSED.permit() {
                warn!(%node, %error, withheld, "renewal refused");
            }
            refusal(&error)
        })?;
        let holder = Holder { node: node.clone(), joined_after: Some(joined_after) };
        self.certificate(&request, Subject::Host(node), &holder)
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let node = self.caller(&request).await?;
        let answers = self.feed.answers();
        if !*answers.borrow() {
            return Err(out_of_touch());
        }
        let watching = (self.feed.subscribe(node), answers);
        let events = stream::unfold(Some(watching), async |watching| {
            let (mut subscription, mut answers) = watching?;
            let events = tokio::select! {
                events = subscription.next() => events?,
                _ = answers.wait_for(|answers| !answers) => return Some((Err(out_of_touch()), None)),
            };
            Some((Ok(events), Some((subscription, answers))))
        });
        Ok(Response::new(Box::pin(events.take_until(self.shutdown.clone().cancelled_owned()))))
    }

    async fn report(&self, request: Request<v1::HostReport>) -> Result<Response<v1::ReportResponse>, Status> {
        let node = self.caller(&request).await?;
        let report = Report::try_from(request.into_inner());
        let report = report.and_then(|report| report.check().map(|()| report)).map_err(|error| {
            if let Some(withheld) = REPORT_REFUSED.permit() {
                warn!(%node, %error, withheld, "report refused; other hosts go by the one before");
            }
            Status::invalid_argument(error.to_string())
        })?;
        let recorded = self.registry.report(&node, &report).await.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::ReportResponse {
            revision: recorded.revision,
            contested_addresses: recorded.contested.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn report_plaintext(
        &self,
        request: Request<v1::PlaintextReport>,
    ) -> Result<Response<v1::PlaintextResponse>, Status> {
        let node = self.caller(&request).await?;
        let report = request.into_inner();
        plaintext::check(&report).map_err(|error| {
            if let Some(withheld) = REPORT_REFUSED.permit() {
                warn!(%node, %error, withheld, "report on connections in clear refused");
            }
            Status::invalid_argument(error.to_string())
        })?;
        self.registry.plaintext(&node, report).await.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::PlaintextResponse {}))
    }

    async fn sign_workload(
        &self,
        request: Request<v1::SignWorkloadRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let node = self.caller(&request).await?;
        // A server that does not reach the store signs nothing.
        self.ensure_member(&node).await?;
        // Who has been removed, of which this server has not heard yet, gets nothing that lasts.
        let joined_after = proved(&request)?.joined_after;
        let v1::SignWorkloadRequest { spiffe_id, certificate_request } = request.into_inner();
        let asked: SpiffeId =
            spiffe_id.parse().map_err(|error: NameError| Status::invalid_argument(error.to_string()))?;
        if !self.may_have(&node, &asked) && !self.may_have_now(&node, &asked).await? {
            if let Some(withheld) = IDENTITY_REFUSED.permit() {
                warn!(%node, %asked, withheld, "a host asked for an identity that is not its own; refused");
            }
            return Err(Status::permission_denied(format!(
                "host {node} may not have {asked}: it gets identities of its own workloads, and of services that \
                 name it (`murmesh service set`)"
            )));
        }
        self.certificate(&verified(&certificate_request)?, asked.subject, &Holder { node, joined_after })
    }

    async fn confirm(
        &self,
        request: Request<v1::ConfirmRequest>,
    ) -> Result<Response<v1::ConfirmResponse>, Status> {
        let node = self.caller(&request).await?;
        let v1::ConfirmRequest { roots, issuers } = request.into_inner();
        let (roots, issuers) = (held(roots)?, held(issuers)?);
        let confirmed = rotation::confirm(&self.records, &node, &roots, &issuers).await;
        confirmed.map_err(|error| refusal(&error))?;
        Ok(Response::new(v1::ConfirmResponse {}))
    }

    async fn flows(
        &self,
        request: Request<Streaming<v1::FlowReport>>,
    ) -> Result<Response<Self::FlowsStream>, Status> {
        let node = self.caller(&request).await?;
        let certificate_ends = proved(&request)?.not_after;
        let (flows, shutdown) = (self.flows.clone(), self.shutdown.clone());
        let wanted = WatchStream::new(flows.interval()).map(flows::wanted);
        let taking = tokio::spawn(async move {
            let taken = flows.take(&node, certificate_ends, request.into_inner());
            let _ = shutdown.run_until_cancelled(taken).await;
        });
        // It is of no use to go on asking a host that does not tell, or was refused.
        let ended = async { _ = taking.await };
        Ok(Response::new(Box::pin(wanted.take_until(ended))))
    }

    async fn told_flows(
        &self,
        request: Request<v1::ToldFlowsRequest>,
    ) -> Result<Response<v1::ToldFlowsResponse>, Status> {
        let id = &proved(&request)?.id;
        if !matches!(id.subject, Subject::Server(_)) {
            if let Some(withheld) = FLOWS_REFUSED.permit() {
                warn!(%id, withheld, "a host asked who connects to whom, which only servers are told; refused");
            }
            return Err(Status::permission_denied("this call needs the certificate of a server"));
        }
        Ok(Response::new(self.flows.answer(self.feed.read(|view| view.hosts.len()))))
    }
}

impl MeshService {
    /// The one place that keeps a host from being another: it has what it vouches for itself, and the services that
    /// an administrator registered it for.
    fn may_have(&self, node: &NodeName, asked: &SpiffeId) -> bool {
        let is_registered = |name| {
            self.feed.read(|view| {
                view.policy.services().get(name).is_some_and(|service| service.hosts.contains(node))
            })
        };
        asked.trust_domain == *self.credentials.trust_domain()
            && match &asked.subject {
                Subject::Workload(owner, _) => owner == node,
                Subject::Service(name) => is_registered(name),
                Subject::Host(_) | Subject::Server(_) => false,
            }
    }

    /// The host that calls, by its certificate. One that was removed must have joined again, whatever its certificate
    /// says.
    async fn caller<T: Sync>(&self, request: &Request<T>) -> Result<NodeName, Status> {
        let identity = proved(request)?;
        let Subject::Host(node) = &identity.id.subject else {
            return Err(Status::unauthenticated("this call needs the certificate of a host"));
        };
        let (is_refused, is_gone) =
            self.feed.read(|view| (view.removed.refuses(identity), view.has_removed(node)));
        if is_refused {
            return Err(not_a_member(node));
        }
        // It may have joined again by another server, of which this one has not heard yet.
        if is_gone {
            self.ensure_member(node).await?;
        }
        Ok(node.clone())
    }

    /// Asks the store, whatever this server has heard of.
    async fn ensure_member(&self, node: &NodeName) -> Result<(), Status> {
        let is_member = self.registry.is_member(node).await.map_err(|error| refusal(&error))?;
        if is_member { Ok(()) } else { Err(not_a_member(node)) }
    }

    /// As [`Self::may_have`], after what other servers have changed.
    async fn may_have_now(&self, node: &NodeName, asked: &SpiffeId) -> Result<bool, Status> {
        if !matches!(asked.subject, Subject::Service(_)) {
            return Ok(false);
        }
        match self.feed.catch_up().await {
            Ok(true) => Ok(self.may_have(node, asked)),
            Ok(false) => Err(Status::unavailable("this server is behind its database")),
            Err(error) => Err(refusal(&error.into())),
        }
    }

    fn certificate(
        &self,
        request: &VerifiedRequest,
        subject: Subject,
        holder: &Holder,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let chain = self.credentials.certify(request, subject, holder);
        let chain = chain.map_err(|error| Status::internal(error.to_string()))?;
        let der = |certificate: &CertificateDer<'_>| certificate.to_vec();
        Ok(Response::new(v1::CertificateResponse {
            trust_domain: self.credentials.trust_domain().to_string(),
            chain: chain.iter().map(der).collect(),
            bundle: self.credentials.roots().bundle.iter().map(der).collect(),
            servers: self.feed.servers().iter().map(ToString::to_string).collect(),
        }))
    }
}

/// Who calls, by its certificate.
fn proved<T>(request: &Request<T>) -> Result<&PeerIdentity, Status> {
    let identity = request.extensions().get::<Peer>().and_then(|peer| peer.identity.as_ref());
    identity.ok_or_else(|| Status::unauthenticated("this call needs a client certificate"))
}

/// Fingerprints; a mesh has two roots at most, and what a host uses is signed by them or by one that is none of them.
pub(super) fn held(list: Vec<Vec<u8>>) -> Result<Vec<Fingerprint>, Status> {
    const LIMIT: usize = 4;
    let invalid = || Status::invalid_argument("these are not fingerprints of a few roots");
    if list.len() > LIMIT {
        return Err(invalid());
    }
    list.into_iter().map(|root| root.try_into().map_err(|_| invalid())).collect()
}

pub(super) fn named(node: &str) -> Result<NodeName, Status> {
    node.parse().map_err(|error: NameError| Status::invalid_argument(error.to_string()))
}

pub(super) fn verified(certificate_request: &[u8]) -> Result<VerifiedRequest, Status> {
    VerifiedRequest::parse(certificate_request)
        .map_err(|error: IdentityError| Status::invalid_argument(error.to_string()))
}

fn not_a_member(node: &NodeName) -> Status {
    Status::unauthenticated(format!(
        "host {node} was removed from the mesh; join again with a new token (--join), made by `murmesh token create`"
    ))
}

/// For a host that would hear of nothing here: another server may know more.
fn out_of_touch() -> Status {
    Status::unavailable(format!("{OUT_OF_TOUCH}; see its log"))
}

/// Faults of the caller say what to do about them; faults of the server are logged here and only named there.
pub(super) fn refusal(error: &RegistryError) -> Status {
    match error {
        RegistryError::UnknownToken
        | RegistryError::ExpiredToken
        | RegistryError::UsedToken(_)
        | RegistryError::NodeTaken(_)
        | RegistryError::NotJoined(_) => Status::permission_denied(error.to_string()),
        error => {
            if let Some(withheld) = REGISTRY_FAILED.permit() {
                tracing::error!(%error, withheld, "the registry failed");
            }
            let quorum = matches!(error, RegistryError::Store(StoreError::NoQuorum { .. }));
            Status::unavailable(if quorum {
                "the servers' etcd has no quorum; see the server's log"
            } else {
                "the server cannot use its database; see its log"
            })
        }
    }
}
