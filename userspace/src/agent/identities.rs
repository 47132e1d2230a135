//! Gets certificates for the workloads and services of this host, and renews them at half their life.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use crate::{
    control::{ControlError, Issuer, jitter},
    identity::{Identity, SpiffeId, Subject},
    limited_log::LimitedLog,
    proxy::{Shared, Wanted},
};

/// How often it is looked for what is due.
const INTERVAL: Duration = Duration::from_millis(250);

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often one that nobody has yet is tried for, before somebody must ask again.
const MAX_ATTEMPTS: u32 = 3;

/// Requests at a time.
const MAX_REQUESTS: usize = 16;

/// Any workload can have its first connection while no server answers.
static NOT_ISSUED: LimitedLog = LimitedLog::new();

type Issued = (Arc<SpiffeId>, Result<Identity, ControlError>);

/// Does so for as long as it is run.
pub struct Keeper {
    issuer: Issuer,
    shared: Arc<Shared>,
    requests: JoinSet<Issued>,
    requested: HashSet<Arc<SpiffeId>>,
    planned: HashMap<Arc<SpiffeId>, Planned>,
}

#[derive(Debug, Clone, Copy)]
struct Planned {
    due: SystemTime,
    /// Failures since the last success.
    failures: u32,
}

impl Keeper {
    /// Has nothing to do yet.
    pub fn new(issuer: Issuer, shared: Arc<Shared>) -> Self {
        let (requests, requested, planned) = (JoinSet::new(), HashSet::new(), HashMap::new());
        Self { issuer, shared, requests, requested, planned }
    }

    /// Puts into use what was kept on disk, to be renewed in time.
    pub fn adopt(&mut self, kept: Vec<Identity>) {
        for identity in kept {
            let (id, due) = (Arc::new(identity.id.clone()), identity.renew_at(jitter()));
            match self.shared.identities.put(Arc::new(identity)) {
                Ok(()) => drop(self.planned.insert(id, Planned { due, failures: 0 })),
                Err(error) => warn!(%id, "a certificate from disk is unusable: {error}"),
            }
        }
    }

    /// Gets what is `wanted`.
    pub async fn run(mut self, mut wanted: Wanted) -> anyhow::Result<()> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(id) = wanted.recv() => self.plan(id),
                Some(issued) = self.requests.join_next() => self.take(issued?),
                _ = ticks.tick() => {}
            }
            self.request();
        }
    }

    /// What is planned already has failed not long ago, or is renewed in time. That of the host itself is renewed by
    /// others.
    fn plan(&mut self, id: Arc<SpiffeId>) {
        let is_ours = matches!(id.subject, Subject::Workload(..) | Subject::Service(_));
        if is_ours && !self.requested.contains(&id) {
            self.planned.entry(id).or_insert(Planned { due: SystemTime::now(), failures: 0 });
        }
    }

    /// Asks for what is due.
    fn request(&mut self) {
        let now = SystemTime::now();
        let free = MAX_REQUESTS.saturating_sub(self.requests.len());
        let is_due = |(id, planned): (&Arc<SpiffeId>, &Planned)| {
            (planned.due <= now && !self.requested.contains(id)).then(|| id.clone())
        };
        let due: Vec<_> = self.planned.iter().filter_map(is_due).take(free).collect();
        for id in due {
            if !self.is_in_use(&id) {
                self.leave(id, now);
                continue;
            }
            let issuer = self.issuer.clone();
            self.requested.insert(id.clone());
            self.requests.spawn(async move {
                let issued = issuer.issue(&id.subject).await;
                (id, issued)
            });
        }
    }

    /// Does not renew one that nobody uses, and lets it go when it has ended: until then somebody may need it while no
    /// server answers.
    fn leave(&mut self, id: Arc<SpiffeId>, now: SystemTime) {
        let held = self.shared.identities.held(&id);
        let left = held.and_then(|current| current.identity.not_after.duration_since(now).ok());
        match left {
            Some(left) => {
                let due = now + (left / 2).max(RETRY);
                self.planned.insert(id, Planned { due, failures: 0 });
            }
            None => {
                self.planned.remove(&id);
                self.shared.identities.remove(&id);
            }
        }
    }

    /// Whether somebody has used it since this was asked last, or it is that of a service.
    fn is_in_use(&self, id: &SpiffeId) -> bool {
        let current = self.shared.identities.held(id);
        current.is_none_or(|current| current.take_used())
            || self.shared.services.load().identities.contains(id)
    }

    fn take(&mut self, (id, issued): Issued) {
        self.requested.remove(&id);
        let renew_at = issued.as_ref().map(|identity| identity.renew_at(jitter())).ok();
        let kept = issued.and_then(|identity| Ok(self.shared.identities.put(Arc::new(identity))?));
        match (kept, renew_at) {
            (Ok(()), Some(due)) => {
                debug!(%id, "certificate issued");
                self.planned.insert(id, Planned { due, failures: 0 });
            }
            (kept, _) => self.failed(id, kept.err()),
        }
    }

    fn failed(&mut self, id: Arc<SpiffeId>, error: Option<ControlError>) {
        if let (Some(error), Some(withheld)) = (error, NOT_ISSUED.permit()) {
            warn!(%id, withheld, "no certificate: {error}");
        }
        let failures = self.planned.get(&id).map_or(0, |planned| planned.failures) + 1;
        if failures >= MAX_ATTEMPTS && self.shared.identities.held(&id).is_none() {
            self.planned.remove(&id);
            return;
        }
        let due = SystemTime::now() + RETRY.mul_f64(1.0 + 0.5 * jitter());
        self.planned.insert(id, Planned { due, failures });
    }
}
