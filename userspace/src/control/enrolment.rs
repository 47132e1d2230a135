//! Becoming and staying a member: join once, then renew the certificate at half its life.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::backoff::{Backoff, jitter};
use super::cache::Cache;
use super::connection::{DialError, dial};
use super::membership::{Membership, load_key};
use super::{ControlError, ControlOptions, ServerStatus};
use crate::api::v1;
use crate::catalog::Catalog;
use crate::clock::sleep_until;
use crate::identity::token::ServerAddress;
use crate::identity::{HostKey, Identity, JoinToken, NodeName, Trust, tls};
use crate::seal::Sealer;

/// How long a join goes on when no server can be reached.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
/// How long after a certificate could not be saved it is tried again.
const SAVE_RETRY: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The membership that the data directory holds, or a new one by the token.
pub async fn membership(
    options: &ControlOptions,
    sealer: &Sealer,
    shutdown: &CancellationToken,
) -> Result<Membership, ControlError> {
    if let Some(membership) = Membership::load(&options.data_dir, sealer)? {
        let (trust_domain, node) = membership.name()?;
        if let Some(token) = &options.join {
            if token.trust_domain == trust_domain && !membership.is_of(token) {
                return join_again(membership, token, options, sealer, shutdown).await;
            }
            info!(%node, %trust_domain, "already a member: --join is ignored");
        }
        if node != options.node {
            warn!(joined_as = %node, asked = %options.node, "a host keeps the name under which it joined");
        }
        return Ok(membership);
    }
    let token = options.join.as_ref().ok_or_else(|| ControlError::NotJoined(options.data_dir.clone()))?;
    let key = load_key(&options.data_dir, sealer)?;
    let answer = shutdown.run_until_cancelled(join(token, &options.node, options.mark, &key)).await;
    let answer = answer.ok_or(ControlError::Stopped)??;
    let membership = Membership::create(&options.data_dir, key, answer, token)?;
    info!(node = %options.node, trust_domain = %token.trust_domain, "joined the mesh");
    Ok(membership)
}

/// A member with a token that it has not used: it was removed, or was away while the roots of the mesh were replaced.
/// It keeps its name and its key. Certificates from before may not be accepted any more. If the token does not help it
/// stays what it was.
async fn join_again(
    membership: Membership,
    token: &JoinToken,
    options: &ControlOptions,
    sealer: &Sealer,
    shutdown: &CancellationToken,
) -> Result<Membership, ControlError> {
    let (_, node) = membership.name()?;
    let key = load_key(&options.data_dir, sealer)?;
    let tried = shutdown.run_until_cancelled(try_join(token, &node, options.mark, &key)).await;
    match tried.ok_or(ControlError::Stopped)? {
        Ok(answer) => {
            Cache::forget(&options.data_dir)?;
            let membership = Membership::create(&options.data_dir, key, answer, token)?;
            info!(%node, trust_domain = %token.trust_domain, "joined the mesh again");
            Ok(membership)
        }
        Err(error) => {
            warn!(%node, %error, "the new token of --join did not help, going on as before");
            Ok(membership)
        }
    }
}

/// Tries every server of the token in turn until one answers, or refuses for good.
async fn join(
    token: &JoinToken,
    node: &NodeName,
    mark: Option<u32>,
    key: &HostKey,
) -> Result<v1::CertificateResponse, ControlError> {
    let started = tokio::time::Instant::now();
    let mut backoff = Backoff::new();
    loop {
        match try_join(token, node, mark, key).await {
            Err(error) if may_retry(&error) && started.elapsed() <= JOIN_PATIENCE => {
                warn!(%error, "joining failed, trying again");
            }
            answered => return answered,
        }
        backoff.pause().await;
    }
}

/// Each server of the token once.
async fn try_join(
    token: &JoinToken,
    node: &NodeName,
    mark: Option<u32>,
    key: &HostKey,
) -> Result<v1::CertificateResponse, ControlError> {
    let mut failure = ControlError::Stopped;
    for server in &token.servers {
        match join_at(server, token, node, mark, key).await {
            Err(error) if may_retry(&error) => failure = error,
            answered => return answered,
        }
    }
    Err(failure)
}

async fn join_at(
    server: &ServerAddress,
    token: &JoinToken,
    node: &NodeName,
    mark: Option<u32>,
    key: &HostKey,
) -> Result<v1::CertificateResponse, ControlError> {
    let tls = tls::join_client(&token.trust_domain, token.ca_fingerprint)?;
    let mut client = dial(server, tls, mark).await?;
    let request = v1::JoinRequest {
        token_secret: token.secret.to_vec(),
        node: node.to_string(),
        certificate_request: key.certificate_request()?,
    };
    finish(server, client.join(timed(request)).await)
}

/// Replaces the certificate at half its life, and at once when it has expired, for as long as it is run. With it comes
/// the current list of servers, which is also saved whenever a server tells of another one. Takes over the roots that
/// the catalog has, and has a new certificate signed when another root signs.
pub async fn keep_renewed(
    mut membership: Membership,
    mark: Option<u32>,
    identity: watch::Sender<Arc<Identity>>,
    status: watch::Sender<ServerStatus>,
    mut catalog: watch::Receiver<Arc<Catalog>>,
) {
    let mut backoff = Backoff::new();
    let mut told = status.subscribe();
    loop {
        let due = identity.borrow().renew_at(jitter());
        let is_due = tokio::select! {
            () = sleep_until(due) => true,
            () = follow_news(&mut membership, &identity, &mut catalog, &mut told) => false,
        };
        if !is_due {
            let soon = identity.borrow().renew_soon(SystemTime::now(), jitter());
            sleep_until(soon).await;
        }
        match renew(&mut membership, mark).await {
            Ok(renewed) => {
                info!(id = %renewed.id, expires = %humantime::format_rfc3339_seconds(renewed.not_after), "certificate renewed");
                identity.send_replace(renewed);
                status.send_modify(|status| status.servers = membership.servers().to_vec());
                backoff.reset();
            }
            Err(error) => warn!(%error, "the certificate could not be renewed, trying again"),
        }
        backoff.pause().await;
    }
}

/// Saves each list of servers that the session is told, for as long as there is a session, and takes over other roots,
/// until one signs that did not sign the certificate in use.
async fn follow_news(
    membership: &mut Membership,
    identity: &watch::Sender<Arc<Identity>>,
    catalog: &mut watch::Receiver<Arc<Catalog>>,
    told: &mut watch::Receiver<ServerStatus>,
) {
    loop {
        let servers = told.borrow_and_update().servers.clone();
        match membership.learn_servers(servers) {
            Ok(false) => {}
            Ok(true) => info!(servers = ?membership.servers(), "the servers of the mesh have changed"),
            Err(error) => warn!(%error, "the list of servers could not be saved"),
        }
        let trust = catalog.borrow_and_update().trust.clone();
        if !trust.roots.is_empty() {
            follow_roots(membership, identity, &trust);
            if !identity.borrow().is_signed_by(&trust.signing) {
                return;
            }
        }
        let changed = tokio::select! {
            changed = told.changed() => changed,
            changed = catalog.changed() => changed,
            () = tokio::time::sleep(SAVE_RETRY), if !membership.is_saved() => {
                membership.keep();
                Ok(())
            }
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}

fn follow_roots(membership: &mut Membership, identity: &watch::Sender<Arc<Identity>>, trust: &Trust) {
    if membership.bundle() == trust.roots {
        return;
    }
    match membership.trust(trust.roots.clone()) {
        Ok(trusting) => {
            info!(roots = trust.roots.len(), "the roots of the mesh have changed");
            identity.send_replace(trusting);
        }
        Err(error) => warn!(%error, "the new roots of the mesh cannot be used"),
    }
}

async fn renew(membership: &mut Membership, mark: Option<u32>) -> Result<Arc<Identity>, ControlError> {
    let mut failure = None;
    for server in membership.servers().to_vec() {
        match renew_at(&server, membership, mark).await {
            Ok(answer) => return membership.renew(answer),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or(ControlError::Stopped))
}

async fn renew_at(
    server: &ServerAddress,
    membership: &Membership,
    mark: Option<u32>,
) -> Result<v1::CertificateResponse, ControlError> {
    let (trust_domain, node) = membership.name()?;
    let mut client = dial(server, tls::renewal_client(&trust_domain, membership.bundle())?, mark).await?;
    let request = v1::RenewRequest {
        node: node.to_string(),
        certificate_request: membership.key().certificate_request()?,
    };
    finish(server, client.renew(timed(request)).await)
}

/// A request that may take five seconds.
pub fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// The server's answer, or its refusal in our terms.
pub fn finish<T>(
    server: &ServerAddress,
    answer: Result<tonic::Response<T>, Status>,
) -> Result<T, ControlError> {
    answer.map(tonic::Response::into_inner).map_err(|status| refused(server, &status))
}

/// A server's error with the server's name. Whether it may pass by itself depends on its code.
pub fn refused(server: &ServerAddress, status: &Status) -> ControlError {
    let retry = !matches!(
        status.code(),
        Code::PermissionDenied | Code::InvalidArgument | Code::AlreadyExists | Code::Unauthenticated
    );
    let mut message = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    ControlError::Refused { server: server.clone(), message, retry }
}

/// Whether asking again, or another server, may help.
pub fn may_retry(error: &ControlError) -> bool {
    match error {
        ControlError::Dial(DialError::Unreachable { .. }) => true,
        ControlError::Refused { retry, .. } => *retry,
        _ => false,
    }
}
