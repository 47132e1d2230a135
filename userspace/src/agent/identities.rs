//! Gets certificates for the workloads and services of this host, and renews them at half their life.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::{debug, warn};

use crate::{
    catalog::Catalog,
    control::{Control, ControlError, Issuer, jitter},
    identity::{Fingerprint, Identity, SpiffeId, Subject, Trust},
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
    /// The host's own, which has the roots.
    host: watch::Receiver<Arc<Identity>>,
    catalog: watch::Receiver<Arc<Catalog>>,
    issuers: watch::Sender<BTreeSet<Fingerprint>>,
    /// The roots that everything in use was looked at for.
    trust: Arc<Trust>,
    planned: HashMap<Arc<SpiffeId>, Planned>,
}

#[derive(Debug, Clone, Copy)]
struct Planned {
    due: SystemTime,
    /// Failures since the last success.
    failures: u32,
}

impl Planned {
    /// What failed is tried again soon, also if the clock was set back since.
    fn is_due(&self, now: SystemTime) -> bool {
        self.due <= now || self.failures > 0 && self.due > now + 2 * RETRY
    }
}

impl Keeper {
    /// Has nothing to do yet.
    pub fn new(control: &Control, shared: Arc<Shared>) -> Self {
        let (requests, requested, planned) = (JoinSet::new(), HashSet::new(), HashMap::new());
        let (host, catalog) = (control.identity.clone(), control.catalog.clone());
        let (issuer, issuers) = (control.issuer(), control.issuers.clone());
        let trust = Arc::default();
        Self { issuer, shared, requests, requested, host, catalog, issuers, trust, planned }
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
        self.follow_signing();
        self.tell_issuers();
    }

    /// Gets what is `wanted`.
    pub async fn run(mut self, mut wanted: Wanted) -> anyhow::Result<()> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(id) = wanted.recv() => self.plan(id),
                Some(issued) = self.requests.join_next() => self.take(issued?),
                Ok(()) = self.host.changed() => self.follow_roots(),
                Ok(()) = self.catalog.changed() => self.follow_signing(),
                _ = ticks.tick() => {}
            }
            self.request();
        }
    }

    /// All trust the roots that the host trusts.
    fn follow_roots(&mut self) {
        let bundle = self.host.borrow_and_update().bundle.clone();
        for identity in self.shared.identities.all().into_iter().filter(|held| held.bundle != bundle) {
            let trusting = Identity {
                id: identity.id.clone(),
                chain: identity.chain.clone(),
                key: identity.key.clone_key().into(),
                bundle: bundle.clone(),
                ..*identity
            };
            if let Err(error) = self.shared.identities.put(Arc::new(trusting)) {
                warn!(id = %identity.id, "the new roots of the mesh cannot be used: {error}");
            }
        }
        self.follow_signing();
        self.tell_issuers();
    }

    /// What a root signed that does not sign any more is replaced soon, or let go if nobody uses it.
    fn follow_signing(&mut self) {
        let trust = self.catalog.borrow_and_update().trust.clone();
        if trust.roots.is_empty() || trust == self.trust {
            return;
        }
        self.trust = trust.clone();
        let now = SystemTime::now();
        for identity in self.shared.identities.all() {
            let is_due = |planned: &Planned| planned.due <= identity.renew_soon(now, 1.0);
            let id = Arc::new(identity.id.clone());
            if identity.is_signed_by(&trust.signing) || self.planned.get(&id).is_some_and(is_due) {
                continue;
            }
            if self.is_in_use(&id) {
                // Asked again when it is due, it must still be in use.
                self.shared.identities.current(&id);
                self.planned.insert(id, Planned { due: identity.renew_soon(now, jitter()), failures: 0 });
            } else {
                self.planned.remove(&id);
                self.shared.identities.remove(&id);
            }
        }
        self.tell_issuers();
    }

    fn tell_issuers(&self) {
        let held = self.shared.identities.all();
        // One that is trusted no more is none of those that are.
        let issuers = held.iter().map(|identity| identity.issuer().unwrap_or_default()).collect();
        self.issuers.send_if_modified(|told| std::mem::replace(told, issuers) != *told);
    }

    /// What is planned already has failed not long ago, or is renewed in time. That of the host itself is renewed by
    /// others.
    fn plan(&mut self, id: Arc<SpiffeId>) {
        let is_ours = matches!(id.subject, Subject::Workload(..) | Subject::Service(_));
        if is_ours && !self.requested.contains(&id) {
            // Whatever is done to the clock until there are fewer requests.
            self.planned.entry(id).or_insert(Planned { due: UNIX_EPOCH, failures: 0 });
        }
    }

    /// Asks for what is due.
    fn request(&mut self) {
        let now = SystemTime::now();
        let free = MAX_REQUESTS.saturating_sub(self.requests.len());
        let is_due = |(id, planned): (&Arc<SpiffeId>, &Planned)| {
            (planned.is_due(now) && !self.requested.contains(id)).then(|| id.clone())
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
                self.tell_issuers();
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
        let renew_at = issued.as_ref().map(|identity| self.renew_at(identity)).ok();
        let kept = issued.and_then(|identity| Ok(self.shared.identities.put(Arc::new(identity))?));
        match (kept, renew_at) {
            (Ok(()), Some(due)) => {
                debug!(%id, "certificate issued");
                self.planned.insert(id, Planned { due, failures: 0 });
                self.tell_issuers();
            }
            (kept, _) => self.failed(id, kept.err()),
        }
    }

    /// A server that has not heard yet of another root signs with the one before.
    fn renew_at(&self, identity: &Identity) -> SystemTime {
        if self.trust.roots.is_empty() || identity.is_signed_by(&self.trust.signing) {
            return identity.renew_at(jitter());
        }
        identity.renew_soon(SystemTime::now() + RETRY, jitter())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_does_not_delay_what_failed() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let failed = Planned { due: now + RETRY, failures: 1 };
        assert!(!failed.is_due(now));
        assert!(failed.is_due(now + RETRY));
        assert!(failed.is_due(now - hour));
        let issued = Planned { due: now + hour, failures: 0 };
        assert!(!issued.is_due(now) && !issued.is_due(now - hour));
    }
}
