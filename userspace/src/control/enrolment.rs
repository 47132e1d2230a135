//! Becoming and staying a member: join once, then renew the certificate at half its life.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::backoff::{Backoff, jitter};
use super::connection::{DialError, dial};
use super::membership::{Membership, load_key};
use super::{ControlError, ControlOptions, ServerStatus};
use crate::api::v1;
use crate::identity::token::ServerAddress;
use crate::identity::{HostKey, Identity, JoinToken, tls};
use crate::seal::Sealer;

/// How long a join goes on when no server can be reached.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);
const CLOCK_CHECK: Duration = Duration::from_secs(30);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The membership that the data directory holds, or a new one by the token.
pub async fn membership(
    options: &ControlOptions,
    sealer: &Sealer,
    shutdown: &CancellationToken,
) -> Result<Membership, ControlError> {
    if let Some(membership) = Membership::load(&options.data_dir, sealer)? {
        let (trust_domain, node) = membership.name()?;
        if options.join.is_some() {
            info!(%node, %trust_domain, "already a member: --join is ignored");
        }
        if node != options.node {
            warn!(joined_as = %node, asked = %options.node, "a host keeps the name under which it joined");
        }
        return Ok(membership);
    }
    let token = options.join.as_ref().ok_or_else(|| ControlError::NotJoined(options.data_dir.clone()))?;
    let key = load_key(&options.data_dir, sealer)?;
    let answer = shutdown.run_until_cancelled(join(token, options, &key)).await;
    let answer = answer.ok_or(ControlError::Stopped)??;
    let membership = Membership::create(&options.data_dir, key, answer)?;
    info!(node = %options.node, trust_domain = %token.trust_domain, "joined the mesh");
    Ok(membership)
}

/// Tries every server of the token in turn until one answers, or refuses for good.
async fn join(
    token: &JoinToken,
    options: &ControlOptions,
    key: &HostKey,
) -> Result<v1::CertificateResponse, ControlError> {
    let started = tokio::time::Instant::now();
    let mut backoff = Backoff::new();
    loop {
        let mut failure = None;
        for server in &token.servers {
            match join_at(server, token, options, key).await {
                Ok(answer) => return Ok(answer),
                Err(error) if !may_retry(&error) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            if started.elapsed() > JOIN_PATIENCE {
                return Err(error);
            }
            warn!(%error, "joining failed, trying again");
        }
        backoff.pause().await;
    }
}

async fn join_at(
    server: &ServerAddress,
    token: &JoinToken,
    options: &ControlOptions,
    key: &HostKey,
) -> Result<v1::CertificateResponse, ControlError> {
    let tls = tls::join_client(&token.trust_domain, token.ca_fingerprint)?;
    let mut client = dial(server, tls, options.mark).await?;
    let request = v1::JoinRequest {
        token_secret: token.secret.to_vec(),
        node: options.node.to_string(),
        certificate_request: key.certificate_request()?,
    };
    finish(server, client.join(timed(request)).await)
}

/// Replaces the certificate at half its life, and at once when it has expired, for as long as it is run.
/// With it comes the current list of servers, which is also saved whenever a server tells of another one.
pub async fn keep_renewed(
    mut membership: Membership,
    mark: Option<u32>,
    identity: watch::Sender<Arc<Identity>>,
    status: watch::Sender<ServerStatus>,
) {
    let mut backoff = Backoff::new();
    let mut told = status.subscribe();
    loop {
        let due = identity.borrow().renew_at(jitter());
        tokio::select! {
            () = sleep_until(due) => {}
            () = learn_servers(&mut membership, &mut told) => {}
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

/// Saves each list of servers that the session is told, for as long as there is a session.
async fn learn_servers(membership: &mut Membership, told: &mut watch::Receiver<ServerStatus>) {
    loop {
        let servers = told.borrow_and_update().servers.clone();
        match membership.learn_servers(servers) {
            Ok(false) => {}
            Ok(true) => info!(servers = ?membership.servers(), "the servers of the mesh have changed"),
            Err(error) => warn!(%error, "the list of servers could not be saved"),
        }
        if told.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Looks at the clock again every now and then: it may be set, and the machine may sleep.
async fn sleep_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.clamp(Duration::from_millis(10), CLOCK_CHECK)).await;
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
