//! Connected to one server after another: take the catalog, give the report.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::backoff::{Backoff, random_index};
use super::confirm::confirm;
use super::connection::dial;
use super::enrolment::refused;
use super::flows;
use super::{ControlError, ServerStatus};
use crate::api::v1::mesh_client::MeshClient;
use crate::api::{unix_seconds, v1};
use crate::catalog::{Catalog, Report};
use crate::flows::Flows;
use crate::identity::token::ServerAddress;
use crate::identity::{Fingerprint, Identity, tls};

/// Messages of events that are told together at most, when they come faster than they can be told.
const AT_ONCE: usize = 256;
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a report is repeated while another host has an address of this one: it may let go.
const CONTESTED_INTERVAL: Duration = Duration::from_secs(2);

/// The agent's ends of the channels that [`super::Control`] hands out.
pub struct Session {
    pub mark: Option<u32>,
    pub identity: watch::Receiver<Arc<Identity>>,
    pub catalog: watch::Sender<Arc<Catalog>>,
    pub report: watch::Receiver<Option<Report>>,
    pub plaintext: watch::Receiver<Option<v1::PlaintextReport>>,
    pub flows: watch::Receiver<Option<Arc<Flows>>>,
    pub acknowledged: watch::Sender<Option<Report>>,
    pub status: watch::Sender<ServerStatus>,
    /// Roots that signed what workloads and services use.
    pub issuers: watch::Receiver<BTreeSet<Fingerprint>>,
    /// Cancelled when another process reports.
    pub handed_over: CancellationToken,
}

impl Session {
    /// Keeps connected to one of the servers until the channels are closed.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new();
        // Agents that start together do not all go to the same server.
        let first = random_index();
        for attempt in first.. {
            let Some(server) = self.server(attempt) else { return };
            let ended = self.serve(&server, &mut backoff).await;
            self.status.send_modify(|status| status.connected = None);
            match ended {
                Ok(()) => return,
                Err(error) => self.failed(&server, &error),
            }
            backoff.pause().await;
        }
    }

    /// One of the servers known now, each in its turn.
    fn server(&self, attempt: usize) -> Option<ServerAddress> {
        let status = self.status.borrow();
        status.servers.get(attempt % status.servers.len().max(1)).cloned()
    }

    /// Stays connected until that fails, and connects anew with each renewed identity.
    /// `Ok` means that nobody wants to know any more.
    async fn serve(&mut self, server: &ServerAddress, backoff: &mut Backoff) -> Result<(), ControlError> {
        let mut previous = None;
        loop {
            let identity = self.identity.borrow_and_update().clone();
            let mut client = dial(server, tls::api_client(&identity)?, self.mark).await?;
            let watching = client.watch(v1::WatchRequest {}).await;
            let mut events = watching.map_err(|status| refused(server, &status))?.into_inner();
            info!(%server, "connected to the server");
            // Not before: to the other hosts this one was never gone.
            drop(previous.take());
            let confirming = confirm(server, client.clone(), identity.clone(), &mut self.issuers);
            let plaintext = report_plaintext(server, client.clone(), &mut self.plaintext);
            let flows = flows::report(server, client.clone(), &mut self.flows);
            let reports = report(server, client, &mut self.report, &self.acknowledged, &self.status);
            tokio::select! {
                ended = follow(server, &mut events, &self.catalog, &self.status, backoff) => return ended,
                ended = while_ours(&self.handed_over, plaintext) => return ended,
                never = while_ours(&self.handed_over, flows) => match never {},
                ended = confirming => return ended,
                ended = while_ours(&self.handed_over, reports) => return ended,
                changed = self.identity.changed() => if changed.is_err() { return Ok(()) },
            }
            previous = Some(events);
        }
    }

    fn failed(&self, server: &ServerAddress, error: &ControlError) {
        let message = error.to_string();
        self.status.send_if_modified(|status| {
            let news = status.error.as_ref() != Some(&message);
            if news {
                warn!(%server, error = %message, "no connection to the server, trying again");
            }
            status.error = Some(message.clone());
            news
        });
    }
}

/// Until another process reports, which is no reason not to listen to the server any more.
async fn while_ours<T>(handed_over: &CancellationToken, reporting: impl Future<Output = T>) -> T {
    match handed_over.run_until_cancelled(reporting).await {
        Some(ended) => ended,
        None => std::future::pending().await,
    }
}

/// Applies the server's events; those that have come together are told together. The server counts as connected, and as
/// worth coming back to at once, when its first snapshot is in.
async fn follow(
    server: &ServerAddress,
    events: &mut tonic::Streaming<v1::CatalogEvents>,
    catalog: &watch::Sender<Arc<Catalog>>,
    status: &watch::Sender<ServerStatus>,
    backoff: &mut Backoff,
) -> Result<(), ControlError> {
    let mut current = Catalog::clone(&catalog.borrow());
    loop {
        let mut next = Some(events.message().await);
        let mut taken = 0;
        while let Some(message) = next {
            let message = message.map_err(|status| refused(server, &status))?;
            current.take(&message.ok_or_else(|| ControlError::Ended(server.clone()))?)?;
            taken += 1;
            next = if taken < AT_ONCE { events.message().now_or_never() } else { None };
        }
        learn_servers(&current, status);
        catalog.send_replace(Arc::new(current.clone()));
        backoff.reset();
        status.send_if_modified(|status| {
            let news = status.connected.as_ref() != Some(server);
            if news {
                (status.connected, status.error) = (Some(server.clone()), None);
            }
            news
        });
    }
}

/// Takes the addresses of all servers, if there are any: an agent never forgets its way back.
fn learn_servers(catalog: &Catalog, status: &watch::Sender<ServerStatus>) {
    let servers = catalog.servers.iter().flat_map(|server| &server.addresses);
    let news =
        |status: &ServerStatus| !servers.clone().eq(&status.servers) && servers.clone().next().is_some();
    status.send_if_modified(|status| {
        let news = news(status);
        if news {
            status.servers = servers.clone().cloned().collect();
        }
        news
    });
}

/// Sends the report now and whenever it changes, and repeats it while addresses are contested. One that the server
/// does not take would not be taken a second time either: the server goes on with the last one that it took.
async fn report(
    server: &ServerAddress,
    mut client: MeshClient<Channel>,
    reports: &mut watch::Receiver<Option<Report>>,
    acknowledged: &watch::Sender<Option<Report>>,
    status: &watch::Sender<ServerStatus>,
) -> Result<(), ControlError> {
    loop {
        let current = reports.borrow_and_update().clone();
        let mut contested = false;
        if let Some(report) = current {
            let mut request = tonic::Request::new(v1::HostReport::from(&report));
            request.set_timeout(REPORT_TIMEOUT);
            let answer = tokio::time::timeout(REPORT_TIMEOUT, client.report(request)).await;
            match answer.map_err(|_| ControlError::Ended(server.clone()))? {
                Ok(answer) => {
                    contested = publish_contested(status, &report, &answer.into_inner());
                    acknowledged.send_replace(Some(report));
                    publish_refusal(status, None);
                }
                Err(refusal) if refusal.code() == Code::InvalidArgument => {
                    publish_refusal(status, Some(refused(server, &refusal).to_string()));
                }
                Err(status) => return Err(refused(server, &status)),
            }
        }
        tokio::select! {
            changed = reports.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(CONTESTED_INTERVAL), if contested => {}
        }
    }
}

/// Sends what was seen of connections in clear now and whenever that changes. A server that does not take it goes on
/// with what it has.
async fn report_plaintext(
    server: &ServerAddress,
    mut client: MeshClient<Channel>,
    reports: &mut watch::Receiver<Option<v1::PlaintextReport>>,
) -> Result<(), ControlError> {
    loop {
        let current = reports.borrow_and_update().clone();
        if let Some(mut report) = current {
            report.now = unix_seconds(SystemTime::now());
            let mut request = tonic::Request::new(report);
            request.set_timeout(REPORT_TIMEOUT);
            let answer = tokio::time::timeout(REPORT_TIMEOUT, client.report_plaintext(request)).await;
            match answer.map_err(|_| ControlError::Ended(server.clone()))? {
                Ok(_) => {}
                Err(refusal) if matches!(refusal.code(), Code::InvalidArgument | Code::Unimplemented) => {
                    warn!(%server, "the server does not take who connects in clear: {}", refusal.message());
                }
                Err(status) => return Err(refused(server, &status)),
            }
        }
        if reports.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Says, in the log when that is new, why the server does not take what this host says about itself.
fn publish_refusal(status: &watch::Sender<ServerStatus>, refusal: Option<String>) {
    status.send_if_modified(|status| {
        let news = status.refusal != refusal;
        if news && let Some(refusal) = &refusal {
            warn!("the server does not take this host's report, other hosts go by the one before: {refusal}");
        }
        status.refusal = refusal;
        news
    });
}

/// Returns whether there are any. What the server names beyond the report is ignored.
fn publish_contested(
    status: &watch::Sender<ServerStatus>,
    report: &Report,
    answer: &v1::ReportResponse,
) -> bool {
    let is_contested = |address: &&IpAddr| answer.contested_addresses.contains(&address.to_string());
    let contested: Vec<_> = report.addresses.iter().filter(is_contested).copied().collect();
    let any = !contested.is_empty();
    status.send_if_modified(|status| {
        let news = status.contested != contested;
        if news && any {
            warn!(addresses = ?contested, "another host claimed addresses of this one first; through the mesh they lead there");
        } else if news {
            info!("no address of this host is claimed by another any more");
        }
        status.contested = contested;
        news
    });
    any
}
