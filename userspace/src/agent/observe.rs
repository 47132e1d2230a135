//! What becomes of connections, from the kernel half to whoever watches on the command line.

use std::{sync::Arc, time::Duration};

use murmesh_common::{Counter, VerdictKind};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use crate::{
    api::v1,
    bpf::{Counters, KernelVerdict, Pins, Reason},
    identity::{NodeName, Subject},
    observe::{Event, Filter, Follower, Outcome, Process, Told},
    proxy::Shared,
    workload::Credentials,
};

/// Verdicts of the kernel half that wait to be told. Beyond it they wait in the kernel's ring buffer.
pub const QUEUE: usize = 1024;

/// How often the kernel half is asked whether it had to drop events.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);

/// Tells what the kernel half has to say, until it ends.
pub async fn tell(mut verdicts: mpsc::Receiver<KernelVerdict>, shared: Arc<Shared>) -> anyhow::Result<()> {
    while let Some(verdict) = verdicts.recv().await {
        let event = event(verdict, &shared);
        shared.flows.refused(&event);
        shared.incoming.let_in(&event);
        shared.observer.tell(event);
    }
    anyhow::bail!("the kernel half's verdicts cannot be read any more")
}

fn event(verdict: KernelVerdict, shared: &Shared) -> Event {
    let KernelVerdict { kind, time, reason, pid, credentials, command, destination, origin, protocol } =
        verdict;
    let rule = match reason {
        Reason::Rule(rule) => Some(rule),
        _ => None,
    };
    // What comes from another host says nothing of its caller.
    let is_local = origin.is_none();
    Event {
        time,
        outcome: match kind {
            VerdictKind::Denied | VerdictKind::PlaintextRefused => Outcome::Denied,
            VerdictKind::DryRun => Outcome::Allowed,
            VerdictKind::Plaintext => Outcome::Plaintext,
            VerdictKind::Unavailable => Outcome::Error,
        },
        process: is_local.then_some(Process { pid, uid: credentials.uid, name: Some(command) }),
        caller: if is_local { caller(shared, credentials) } else { None },
        source: origin,
        node: node(shared, destination, is_local),
        destination,
        protocol,
        rule,
        what: words(kind, reason).to_owned(),
        end: None,
    }
}

/// Looks at the snapshot only: verdicts may come in great numbers.
fn caller(shared: &Shared, credentials: Credentials) -> Option<Subject> {
    let workload = shared.workloads.get()?.known(credentials)?;
    Some(Subject::Workload(shared.node.as_ref().clone(), workload))
}

fn node(shared: &Shared, destination: std::net::SocketAddr, is_local: bool) -> Option<NodeName> {
    if !is_local || shared.services.load().serves(destination) {
        return Some(shared.node.as_ref().clone());
    }
    shared.routes.load().get(destination).map(|route| route.peer.node.as_ref().clone())
}

fn words(kind: VerdictKind, reason: Reason) -> &'static str {
    match (kind, reason) {
        (VerdictKind::DryRun, _) => "let through, a dry-run rule would refuse it",
        (VerdictKind::Plaintext, _) => "let in, in clear",
        (VerdictKind::PlaintextRefused, Reason::UnknownSource) => {
            "refused: in clear, from a host some of whose workloads the rules refuse the service"
        }
        (VerdictKind::PlaintextRefused, _) => "refused: in clear, to a strict service",
        (VerdictKind::Unavailable, _) => "refused: no instance of the service takes connections",
        (VerdictKind::Denied, Reason::Rule(_)) => "refused by a rule",
        (VerdictKind::Denied, Reason::Default) => "refused by default",
        (VerdictKind::Denied, Reason::UnknownSource) => "refused: its cgroup was not known yet",
        (VerdictKind::Denied, Reason::NoRoom) => "refused: a map is full, see `murmesh status`",
    }
}

/// What one watcher hears.
pub struct Watch {
    filter: Filter,
    follower: Follower,
    losses: Losses,
}

impl Watch {
    /// From now on. `pins` are those of the kernel half, if there is one.
    pub fn new(filter: Filter, shared: &Shared, pins: Option<&Pins>) -> Self {
        Self { filter, follower: shared.observer.follow(), losses: Losses::new(pins) }
    }

    /// The next thing to be told.
    pub async fn next(&mut self) -> v1::ObserveResponse {
        loop {
            tokio::select! {
                told = self.follower.next() => match told {
                    Told::Event(event) if self.filter.passes(&event) => return observed(&event),
                    Told::Event(_) => {}
                    Told::Lost(lost) => return lost_events(lost),
                },
                _ = self.losses.ticks.tick() => match self.losses.new_ones() {
                    0 => {}
                    lost => return lost_events(lost),
                },
            }
        }
    }
}

/// What is remembered, after how many events the kernel half has dropped.
pub fn remembered(filter: &Filter, shared: &Shared, pins: Option<&Pins>) -> Vec<v1::ObserveResponse> {
    let lost = Some(dropped_by_kernel(open(pins).as_ref())).filter(|lost| *lost > 0).map(lost_events);
    let events = shared.observer.remembered();
    let events = events.iter().filter(|event| filter.passes(event)).map(|event| observed(event));
    lost.into_iter().chain(events).collect()
}

/// Events that the kernel half drops while somebody watches.
struct Losses {
    counters: Option<Counters>,
    told: u64,
    ticks: Interval,
}

impl Losses {
    fn new(pins: Option<&Pins>) -> Self {
        let counters = open(pins);
        let told = dropped_by_kernel(counters.as_ref());
        let mut ticks = interval_at(Instant::now() + LOSS_INTERVAL, LOSS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { counters, told, ticks }
    }

    fn new_ones(&mut self) -> u64 {
        let dropped = dropped_by_kernel(self.counters.as_ref());
        dropped.saturating_sub(std::mem::replace(&mut self.told, dropped))
    }
}

/// `None` without a kernel half, or once it is detached.
fn open(pins: Option<&Pins>) -> Option<Counters> {
    Counters::open(pins?).ok()
}

fn dropped_by_kernel(counters: Option<&Counters>) -> u64 {
    counters.and_then(|counters| counters.get(Counter::VerdictEventLost).ok()).unwrap_or_default()
}

fn observed(event: &Event) -> v1::ObserveResponse {
    v1::ObserveResponse { told: Some(v1::observe_response::Told::Event(event.into())) }
}

fn lost_events(lost: u64) -> v1::ObserveResponse {
    v1::ObserveResponse { told: Some(v1::observe_response::Told::Lost(lost)) }
}
