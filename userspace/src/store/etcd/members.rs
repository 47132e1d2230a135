//! Calls to the members of a cluster: one member after the other until one answers.

use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, TlsOptions};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tracing::debug;

use crate::store::StoreError;

/// How long a call may take with all its repetitions: longer than a cluster takes to elect a leader (two seconds with
/// etcd's own timers), shorter than agents and the command line wait for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// For one member. One whose cable was pulled says nothing.
pub const ATTEMPT: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Members close connections that are pinged more often than every five seconds.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections to all members, and which one is in use.
pub struct Members {
    clients: Vec<Client>,
    endpoints: Vec<String>,
    in_use: watch::Sender<usize>,
}

impl Members {
    /// Connects when first called.
    ///
    /// # Errors
    /// When there is no endpoint, or one is not usable.
    pub async fn new(endpoints: &[String], tls: Option<TlsOptions>) -> Result<Self, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_require_leader(true);
        if let Some(tls) = tls {
            options = options.with_tls(tls);
        }
        let mut clients = Vec::new();
        for endpoint in endpoints {
            let client = Client::connect([endpoint], Some(options.clone())).await;
            clients.push(client.map_err(|error| {
                StoreError::Settings(format!("{endpoint} cannot be used as a member of etcd: {error}"))
            })?);
        }
        if clients.is_empty() {
            return Err(StoreError::Settings("no member of etcd is named".to_owned()));
        }
        Ok(Self { clients, endpoints: endpoints.to_vec(), in_use: watch::Sender::new(0) })
    }

    /// Calls the member in use, and the next one when it fails, for four seconds. The call must do no harm when it is
    /// made again although it was answered by nobody.
    ///
    /// # Errors
    /// [`StoreError::NoQuorum`] when no member answers in time, or what the cluster refuses for good.
    pub async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (member, client) = self.client();
            let left = deadline.saturating_duration_since(Instant::now());
            let reason = match timeout(ATTEMPT.min(left), call(client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if !may_pass(&error) => return Err(refused(&error)),
                Ok(Err(error)) => describe(&error),
                Err(_) => "no answer in time".to_owned(),
            };
            self.failed(member, &reason);
            if Instant::now() + PAUSE >= deadline {
                return Err(self.no_quorum(reason));
            }
            sleep(PAUSE).await;
        }
    }

    /// The member in use.
    pub fn client(&self) -> (usize, Client) {
        let member = *self.in_use.borrow();
        (member, self.clients[member].clone())
    }

    /// Takes the next member into use, unless somebody else has done so already.
    pub fn failed(&self, member: usize, reason: &str) {
        debug!(endpoint = self.endpoints[member], reason, "a member of etcd failed");
        let next = (member + 1) % self.clients.len();
        self.in_use.send_if_modified(|in_use| {
            let changed = *in_use == member && next != member;
            if changed {
                *in_use = next;
            }
            changed
        });
    }

    /// Tells when another member is taken into use.
    pub fn in_use(&self) -> watch::Receiver<usize> {
        self.in_use.subscribe()
    }

    /// That nobody answers.
    pub fn no_quorum(&self, reason: String) -> StoreError {
        StoreError::NoQuorum { reason, endpoints: self.endpoints.join(", ") }
    }
}

/// Whether another member, or the same one later, may answer.
fn may_pass(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => !matches!(
            status.code(),
            Code::InvalidArgument
                | Code::NotFound
                | Code::OutOfRange
                | Code::PermissionDenied
                | Code::ResourceExhausted
                | Code::Unauthenticated
                | Code::Unimplemented
        ),
        Error::TransportError(_) | Error::IoError(_) => true,
        _ => false,
    }
}

fn refused(error: &Error) -> StoreError {
    let reason = describe(error);
    if reason.contains("too many operations") || reason.contains("too large") {
        return StoreError::TooLarge(reason);
    }
    StoreError::Database(reason)
}

/// An error with what caused it: the outermost part of one in a connection says next to nothing.
pub fn describe(error: &Error) -> String {
    let (mut text, mut source) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), std::error::Error::source(status)),
        error => (error.to_string(), std::error::Error::source(error)),
    };
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
