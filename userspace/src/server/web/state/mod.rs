//! The mesh as the page shows it, made anew when something has changed and somebody looks.
//!
//! The whole of it is sent each time: with 300 services about 100 kB, which stay on this machine. It is made for all who
//! look together, and for at most a twentieth of a processor's time.

mod flows;
mod overview;
mod services;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{sleep_until, timeout};

use super::super::credentials::Credentials;
use super::super::feed::Feed;
use super::super::flows::HostFlows;
use crate::api::{unix_seconds, v1};
use crate::catalog::{Catalog, ReachError};
use crate::identity::JoinToken;
use flows::Flow;
use overview::{Certificates, Host, Policy, Server};
use services::Service;

/// How long a browser waits for something new until it asks again.
const PATIENCE: Duration = Duration::from_secs(20);
/// What comes together is shown together.
const PAUSE: Duration = Duration::from_millis(250);
/// Of the time between two states that it may take to make one.
const SHARE: u32 = 20;

/// Where all of it comes from.
pub struct Sources {
    pub feed: Arc<Feed>,
    pub flows: Arc<HostFlows>,
    pub credentials: Arc<Credentials>,
}

/// The mesh, for all who look at it.
pub struct Live {
    sources: Sources,
    /// Tells the versions of this server from those of the one that ran here before.
    run: String,
    latest: Mutex<Option<Made>>,
}

struct Made {
    version: String,
    state: Bytes,
    /// When another one may be made.
    next: Instant,
}

#[derive(Serialize)]
struct State<'a> {
    version: &'a str,
    /// Seconds since the Unix epoch, as all times here.
    now: u64,
    trust_domain: String,
    /// The server that tells.
    server: String,
    server_version: &'static str,
    revision: u64,
    /// Whether the server knows what it is talking about.
    reaches_store: bool,
    servers: Vec<Server>,
    hosts: Vec<Host>,
    services: Vec<Service>,
    flows: Vec<Flow>,
    /// Flows beyond those that are shown.
    left_out: u64,
    policy: Policy,
    certificates: Certificates,
}

/// One answer to whether a source would reach a destination.
#[derive(Serialize)]
struct Reached {
    source: String,
    destination: String,
    action: String,
    rule: Option<u32>,
    dry_run: Option<u32>,
}

impl Live {
    pub fn new(sources: Sources) -> Self {
        // Two servers that have no randomness would only not notice that one follows the other.
        let run = JoinToken::new_secret()
            .map_or(0, |random| u64::from_ne_bytes(std::array::from_fn(|at| random[at])));
        Self { sources, run: format!("{run:x}"), latest: Mutex::default() }
    }

    /// The state, once it is another than `known`; `None` if it stays that for a while.
    pub async fn state(&self, known: &str) -> Option<Bytes> {
        self.sources.flows.look(self.sources.feed.read(|view| view.hosts.len()));
        let (mut news, mut told) = (self.sources.feed.news(), self.sources.flows.version());
        let changed = async {
            while self.version() == known {
                // Neither ends before the server does.
                tokio::select! {
                    _ = news.changed() => {}
                    _ = told.changed() => {}
                }
            }
        };
        timeout(PATIENCE, changed).await.ok()?;
        Some(self.latest().await)
    }

    /// What the rules say of a connection that nobody makes.
    pub fn reach(&self, from: &str, to: &str) -> Result<Vec<u8>, ReachError> {
        let (catalog, trust_domain) = (self.catalog(), self.sources.credentials.trust_domain());
        let names = self.sources.feed.read(|view| view.names(trust_domain));
        let reached = catalog.reach(&names, from.trim(), to.trim())?;
        let reached: Vec<_> = reached
            .into_iter()
            .map(|reached| Reached {
                source: reached.source,
                destination: reached.destination,
                action: reached.verdict.action.to_string(),
                rule: reached.verdict.rule.map(|rule| rule.number()),
                dry_run: reached.verdict.dry_run.map(|rule| rule.number()),
            })
            .collect();
        Ok(json(&reached))
    }

    /// Made anew unless it is the latest. Whoever asks meanwhile waits for that.
    async fn latest(&self) -> Bytes {
        let mut latest = self.latest.lock().await;
        let version = self.version();
        match &*latest {
            Some(made) if made.version == version => return made.state.clone(),
            Some(made) => sleep_until(made.next.into()).await,
            None => {}
        }
        let (version, begun) = (self.version(), Instant::now());
        let state = Bytes::from(self.make(&version));
        let next = begun + (begun.elapsed() * SHARE).max(PAUSE);
        *latest = Some(Made { version, state: state.clone(), next });
        state
    }

    fn version(&self) -> String {
        let (news, told) = (*self.sources.feed.news().borrow(), *self.sources.flows.version().borrow());
        let answers = u8::from(*self.sources.feed.answers().borrow());
        format!("{}-{news}-{told}-{answers}", self.run)
    }

    /// What the server's own records say; they were checked when they were taken.
    fn catalog(&self) -> Catalog {
        Catalog::try_from(self.sources.feed.snapshot()).unwrap_or_else(|error| {
            tracing::error!(%error, "the page cannot show the catalog");
            Catalog::default()
        })
    }

    fn make(&self, version: &str) -> Vec<u8> {
        let Sources { feed, flows, credentials } = &self.sources;
        let catalog = self.catalog();
        let (plaintext, servers) = feed.read(|view| (view.plaintext.clone(), view.servers.hosts().clone()));
        let (told, now) = (flows.told(), unix_seconds(SystemTime::now()));
        let places = flows::Places::new(&catalog);
        let (flows, left_out) = flows::all(&places, &told, &plaintext, now);
        json(&State {
            version,
            now,
            trust_domain: credentials.trust_domain().to_string(),
            server: credentials.id().node().map(ToString::to_string).unwrap_or_default(),
            server_version: env!("CARGO_PKG_VERSION"),
            revision: feed.revision(),
            reaches_store: *feed.answers().borrow(),
            servers: overview::servers(&catalog),
            hosts: overview::hosts(&catalog, &told, &servers),
            services: services::all(&catalog),
            flows,
            left_out,
            policy: Policy::from(&*catalog.policy),
            certificates: Certificates::new(credentials),
        })
    }
}

/// Made of numbers and texts only: nothing in it has no form in JSON.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A mode, as the command line has it.
fn mode(mode: crate::policy::Mode) -> String {
    mode.to_string()
}

/// An outcome, as the page has it; `None` for one that this version does not know.
fn kind(outcome: v1::Outcome) -> Option<&'static str> {
    match outcome {
        v1::Outcome::Allowed => Some("encrypted"),
        v1::Outcome::Denied => Some("denied"),
        v1::Outcome::Plaintext => Some("plaintext"),
        v1::Outcome::Error => Some("unavailable"),
        v1::Outcome::Unspecified => None,
    }
}
