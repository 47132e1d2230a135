//! Keeps on disk what it takes to go on without a server, at a bounded rate.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::watch,
    time::{sleep, sleep_until},
};
use tracing::warn;

use crate::{
    bpf::{BpfError, Pins},
    catalog::Catalog,
    control::{Cache, ControlError},
    identity::Identity,
    proxy::Shared,
};

/// Between two savings, when rules or certificates changed: what they forbid must hold after a restart too.
const SOON: Duration = Duration::from_millis(200);

/// Between two savings, when something else changed.
const LATER: Duration = Duration::from_secs(5);

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Saves catalog and certificates when they change.
pub struct Memory {
    cache: Arc<Cache>,
    catalog: watch::Receiver<Arc<Catalog>>,
    shared: Arc<Shared>,
    /// The revision that is on disk.
    saved: Arc<watch::Sender<u64>>,
}

/// What was saved last.
struct Saved {
    catalog: Arc<Catalog>,
    /// Ends of the certificates.
    identities: Vec<SystemTime>,
    at: Instant,
}

impl Memory {
    /// Has nothing on disk yet but, perhaps, what is in `catalog` now.
    pub fn new(cache: Arc<Cache>, catalog: watch::Receiver<Arc<Catalog>>, shared: Arc<Shared>) -> Self {
        let saved = Arc::new(watch::Sender::new(catalog.borrow().revision));
        Self { cache, catalog, shared, saved }
    }

    /// The revision that is on disk; 0 for none.
    pub fn saved(&self) -> Arc<watch::Sender<u64>> {
        self.saved.clone()
    }

    /// Does so for as long as it is run.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut certificates = self.shared.identities.changes();
        let (mut last, mut due) = (None, None);
        loop {
            // News that keep coming put nothing off.
            due = self.pause(last.as_ref()).map(|pause| {
                let earliest = Instant::now() + pause;
                due.map_or(earliest, |due: Instant| due.min(earliest))
            });
            tokio::select! {
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    due = None;
                    match self.save().await {
                        Ok(saved) => last = Some(saved),
                        Err(error) => {
                            warn!("what this host knows is not kept on disk: {error}");
                            sleep(RETRY).await;
                        }
                    }
                }
                changed = self.catalog.changed() => changed?,
                changed = certificates.changed() => changed?,
            }
        }
    }

    /// How long until the next saving; `None` if there is nothing new to be saved.
    fn pause(&self, last: Option<&Saved>) -> Option<Duration> {
        let catalog = self.catalog.borrow();
        if catalog.revision == 0 {
            return None;
        }
        let Some(last) = last else { return Some(SOON) };
        let between = if holds(&catalog) != holds(&last.catalog) || self.ends() != last.identities {
            SOON
        } else if tells_more(&last.catalog, &catalog) {
            LATER
        } else {
            return None;
        };
        Some(between.saturating_sub(last.at.elapsed()))
    }

    async fn save(&mut self) -> Result<Saved, ControlError> {
        let catalog = self.catalog.borrow_and_update().clone();
        let identities = self.shared.identities.all();
        let saved = Saved { catalog: catalog.clone(), identities: ends(&identities), at: Instant::now() };
        let (cache, revision) = (self.cache.clone(), catalog.revision);
        let written = tokio::task::spawn_blocking(move || cache.save(&catalog, &identities)).await;
        written.unwrap_or(Err(ControlError::Stopped))?;
        self.saved.send_replace(revision);
        Ok(saved)
    }

    fn ends(&self) -> Vec<SystemTime> {
        ends(&self.shared.identities.all())
    }
}

/// Beside the maps, which outlive an agent that is killed: whether what is on disk is older than they are.
pub struct Mark {
    pins: Pins,
    last: Option<Arc<Catalog>>,
}

impl Mark {
    /// Of the maps at `pins`.
    pub fn new(pins: Pins) -> Self {
        Self { pins, last: None }
    }

    /// To be called before the maps get what `catalog` forbids.
    ///
    /// # Errors
    /// It cannot be marked: whoever is started next could go back to what is on disk.
    pub fn set(&mut self, catalog: &Arc<Catalog>) -> Result<(), BpfError> {
        let is_news = self.last.as_ref().is_none_or(|last| holds(last) != holds(catalog));
        if is_news && catalog.revision > 0 {
            self.pins.set_revision(catalog.revision)?;
            self.last = Some(catalog.clone());
        }
        Ok(())
    }
}

/// What must hold after a restart too.
fn holds(catalog: &Catalog) -> impl PartialEq {
    (catalog.policy.clone(), catalog.removed.clone(), catalog.trust.clone())
}

fn ends(identities: &[Arc<Identity>]) -> Vec<SystemTime> {
    let mut ends: Vec<_> = identities.iter().map(|identity| identity.not_after).collect();
    ends.sort();
    ends
}

/// Whether there is more to it than which hosts are connected.
fn tells_more(before: &Catalog, now: &Catalog) -> bool {
    let same = |(before, now): (_, _)| {
        let (before, now): (&Arc<crate::catalog::Host>, &Arc<crate::catalog::Host>) = (before, now);
        before.node == now.node && before.report == now.report
    };
    before.hosts.len() != now.hosts.len() || !before.hosts.values().zip(now.hosts.values()).all(same)
}
