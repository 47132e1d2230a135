//! Sees that the kernel half stays as the agent made it, and makes it so again.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, warn};

use super::{
    Interception, canary,
    enforce::{SharedMaps, locked},
};
use crate::{
    bpf::{Fault, KernelHalf},
    cgroup,
    proxy::Listening,
};

/// How often it looks. One look takes less than a millisecond, and two connections to the agent itself.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks at hooks, pins and maps, and connects through the hooks.
pub struct Watchdog {
    half: Arc<Mutex<KernelHalf>>,
    maps: SharedMaps,
    cgroup: PathBuf,
    /// What the workers listen on, until another agent has it.
    listening: Weak<Listening>,
    turn: AtomicUsize,
    /// What the last look of its own found, whether it was repaired or not, and when that was: `status` shows it until
    /// the next one finds nothing.
    found: Mutex<(Option<Instant>, Vec<Fault>)>,
}

impl Watchdog {
    /// Of the hooks of `interception`, `maps`, which are theirs, and what the workers listen on.
    pub fn new(interception: &Interception, maps: SharedMaps, listening: Weak<Listening>) -> Self {
        Self {
            half: interception.half(),
            maps,
            cgroup: interception.options().cgroup.clone(),
            listening,
            turn: AtomicUsize::new(0),
            found: Mutex::default(),
        }
    }

    /// Looks and repairs until it is dropped.
    ///
    /// # Errors
    /// A look panicked.
    pub async fn run(self: Arc<Self>) -> anyhow::Result<()> {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let watchdog = self.clone();
            tokio::task::spawn_blocking(move || watchdog.look_and_repair()).await?;
        }
    }

    /// What is wrong at this moment, or was at the last look. Blocks for a moment.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = self.look();
        for found in &lock(&self.found).1 {
            if !faults.contains(found) {
                faults.push(found.clone());
            }
        }
        faults
    }

    /// When it last looked, and what it found then.
    pub fn last_look(&self) -> (Option<Instant>, Vec<Fault>) {
        lock(&self.found).clone()
    }

    fn look(&self) -> Vec<Fault> {
        let mut faults = lock(&self.half).faults(&self.cgroup);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut maps = locked(&self.maps);
        match maps.altered(turn) {
            Ok(maps) => faults.extend(maps.into_iter().map(Fault::MapChanged)),
            Err(error) => faults.push(Fault::Unknown(error.to_string())),
        }
        if maps.present().is_strict() && !faults.contains(&Fault::Detached("sk_lookup")) {
            drop(maps);
            faults.extend(lock(&self.half).steered());
        }
        faults
    }

    fn look_and_repair(&self) {
        let begun = Instant::now();
        let known = lock(&self.found).1.clone();
        let mut faults = self.look();
        if !faults.is_empty() {
            *lock(&self.found) = (Some(begun), faults.clone());
        }
        let undone: Vec<_> = faults.iter().filter(|fault| fault.can_be_undone()).collect();
        if !undone.is_empty() {
            self.repair(&undone, begun);
        }
        // Through what was repaired; not before the kernel half knows of it.
        let is_told = locked(&self.maps).present().endpoints.contains_key(&canary::CANARIES[0].into());
        if is_told && let Err(error) = canary::probe() {
            faults.push(Fault::Canary(error));
        }
        let lasting = faults.iter().filter(|fault| !fault.can_be_undone());
        lasting.filter(|fault| !known.contains(fault)).for_each(|fault| error!("{fault}"));
        *lock(&self.found) = (Some(Instant::now()), faults);
    }

    fn repair(&self, faults: &[&Fault], begun: Instant) {
        let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
        error!("the kernel half is not as this agent made it: {}", words.join("; "));
        let maps = faults.iter().any(|fault| matches!(fault, Fault::MapChanged(_)));
        let restored = if maps { locked(&self.maps).restore() } else { Ok(()) };
        let attached = lock(&self.half).repair(&self.cgroup).and(restored);
        let moved = faults.iter().any(|fault| matches!(fault, Fault::Moved(_)));
        let follow = || if moved { self.follow() } else { Ok(()) };
        match attached.map_err(anyhow::Error::from).and_then(|()| follow()) {
            Ok(()) => warn!(took = ?begun.elapsed(), "the kernel half is repaired; find out who changed it"),
            Err(error) => error!("the kernel half cannot be repaired: {error:#}; restart the agent"),
        }
    }

    /// To the cgroup in which this process is now. The hooks there see connections to sockets that are made there, and
    /// take this process for the agent when all that it needs is there.
    fn follow(&self) -> anyhow::Result<()> {
        if let Some(listening) = self.listening.upgrade() {
            listening.renew()?;
        }
        let own = cgroup::id(&cgroup::own(&cgroup::root()?)?)?;
        Ok(lock(&self.half).set_agents_cgroup(own)?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
