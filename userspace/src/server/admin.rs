//! What the operator asks of the server through its Unix socket. Every change is logged with who made it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};
use tracing::info;

use super::credentials::Credentials;
use super::feed::Feed;
use super::mesh::OUT_OF_TOUCH;
use super::registry::Registry;
use crate::admission::Refusals;
use crate::api::v1::local_server::Local;
use crate::api::{refused, unix_seconds, v1};
use crate::identity::{JoinToken, tls};
use crate::local::caller;
use crate::sandbox;

/// A token may be valid for at most a month.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(31 * 24 * 3600);

/// Serves the `Local` interface of a server.
pub struct AdminService {
    pub registry: Arc<Registry>,
    pub credentials: Arc<Credentials>,
    pub feed: Arc<Feed>,
    pub refusals: Arc<Refusals>,
}

#[tonic::async_trait]
impl Local for AdminService {
    type ObserveStream = futures_util::stream::Empty<Result<v1::ObserveResponse, Status>>;

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = caller(&request);
        let lifetime = Duration::from_secs(request.into_inner().valid_seconds);
        if lifetime.is_zero() || lifetime > MAX_TOKEN_LIFETIME {
            return Err(Status::invalid_argument("a token must be valid for 1 second to 31 days"));
        }
        let token = self.new_token(SystemTime::now() + lifetime).await?;
        let expires_at = unix_seconds(token.expires_at);
        info!(%caller, expires = %humantime::format_rfc3339_seconds(token.expires_at), "join token created");
        Ok(Response::new(v1::CreateTokenResponse { token: token.to_string(), expires_at }))
    }

    async fn members(&self, _request: Request<v1::MembersRequest>) -> Result<Response<v1::Snapshot>, Status> {
        Ok(Response::new(self.feed.snapshot()))
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let id = self.credentials.id();
        Ok(Response::new(v1::StatusResponse {
            role: "server".to_owned(),
            node: id.node().map(ToString::to_string).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: id.trust_domain.to_string(),
            spiffe_id: id.to_string(),
            certificate_expires_at: unix_seconds(self.credentials.not_after()),
            catalog_revision: self.feed.revision(),
            servers: self.feed.servers().iter().map(ToString::to_string).collect(),
            server_error: if *self.feed.answers().borrow() { String::new() } else { OUT_OF_TOUCH.to_owned() },
            sandbox: Some(sandbox::report()),
            refused: refused(&self.refusals),
            ..v1::StatusResponse::default()
        }))
    }

    async fn observe(
        &self,
        _request: Request<v1::ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        Err(Status::unimplemented("only an agent sees connections: run `murmesh observe` where one runs"))
    }

    async fn ping(&self, _request: Request<v1::PingRequest>) -> Result<Response<v1::PingResponse>, Status> {
        Err(Status::unimplemented("only an agent carries connections: run `murmesh ping` where one runs"))
    }

    async fn live_flows(
        &self,
        _request: Request<v1::LiveFlowsRequest>,
    ) -> Result<Response<v1::LiveFlowsResponse>, Status> {
        Err(Status::unimplemented("only an agent carries connections: run `murmesh top` where one runs"))
    }

    async fn whois(
        &self,
        _request: Request<v1::WhoisRequest>,
    ) -> Result<Response<v1::WhoisResponse>, Status> {
        Err(Status::unimplemented("only an agent knows processes: run `murmesh whois` where one runs"))
    }
}

impl AdminService {
    async fn new_token(&self, expires_at: SystemTime) -> Result<JoinToken, Status> {
        let secret = JoinToken::new_secret().map_err(|_| Status::internal("no randomness"))?;
        let added = self.registry.add_token(&*secret, expires_at).await;
        added.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(JoinToken {
            secret,
            ca_fingerprint: tls::fingerprint(self.credentials.roots().authority.root()),
            expires_at,
            trust_domain: self.credentials.trust_domain().clone(),
            servers: self.feed.servers(),
        })
    }
}
