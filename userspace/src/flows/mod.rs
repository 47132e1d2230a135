//! Who of this host connects to whom, and who connects to this host: counted where connections begin and end. The former is
//! told to a server while somebody looks at its page, both to whoever asks on this host.
//!
//! A flow is all connections of one client to one destination that became the same. A worker finds that of a connection in
//! its own memory: nothing is locked or allocated but for the first one.

mod open;
mod recent;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

pub use open::{FlowId, Moved, Moving, Seen};
pub use recent::{RecentFlows, Side};

use crate::{
    api::{unix_seconds, v1},
    identity::Subject,
    observe::{Event, Outcome},
    policy::RuleId,
};

/// Flows that a host remembers. Beyond it those are forgotten that were used last the longest ago, and are not open.
pub const MAX_FLOWS: usize = 1024;

/// Flows of which a host tells a server: those that were used last.
pub const MAX_TOLD: usize = 256;

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Client {
    /// Whoever has this identity: a workload of this host, or anybody on another.
    Known(Subject),
    /// Somebody on this host.
    Here,
    /// Whoever has this address.
    Elsewhere(IpAddr),
}

/// What tells one flow from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Who connects.
    pub client: Client,
    /// To what, as it was dialled.
    pub destination: SocketAddr,
    /// What becomes of it.
    pub outcome: v1::Outcome,
}

/// What is counted of one flow.
#[derive(Debug, Default)]
pub struct Flow {
    connections: AtomicU64,
    open: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    last_seen: AtomicU64,
    /// 0 for none.
    rule: AtomicU32,
}

/// All flows of one side of this host.
#[derive(Debug, Default)]
pub struct Flows(Mutex<HashMap<Key, Arc<Flow>>>);

impl Flows {
    /// The flow that `key` tells, which begins if need be.
    pub fn of(&self, key: &Key) -> Arc<Flow> {
        let mut flows = self.lock();
        if let Some(flow) = flows.get(key) {
            return flow.clone();
        }
        if flows.len() >= MAX_FLOWS {
            forget_oldest(&mut flows);
        }
        let flow = Arc::<Flow>::default();
        // Where all are open, one more is not remembered.
        if flows.len() < MAX_FLOWS {
            flows.insert(key.clone(), flow.clone());
        }
        flow
    }

    /// Counts what the kernel half refused. What it let in, in clear, servers are told otherwise.
    pub fn refused(&self, event: &Event) {
        let outcome = match event.outcome {
            Outcome::Denied => v1::Outcome::Denied,
            Outcome::Error => v1::Outcome::Error,
            Outcome::Allowed | Outcome::Plaintext => return,
        };
        let client = match (&event.caller, event.source) {
            (Some(caller @ Subject::Workload(..)), _) => Client::Known(caller.clone()),
            (None, Some(source)) => Client::Elsewhere(source.ip()),
            _ => Client::Here,
        };
        self.of(&Key { client, destination: event.destination, outcome }).began(event.rule);
    }

    /// Counts what the kernel half let in, in clear.
    pub fn let_in(&self, event: &Event) {
        if let (Outcome::Plaintext, Some(source)) = (event.outcome, event.source) {
            let (client, outcome) = (Client::Elsewhere(source.ip()), v1::Outcome::Plaintext);
            self.of(&Key { client, destination: event.destination, outcome }).began(None);
        }
    }

    /// The flows that were used last.
    pub fn report(&self) -> v1::FlowReport {
        let flows = self.lock();
        let mut told: Vec<_> = flows.iter().map(|(key, flow)| told(key, flow)).collect();
        drop(flows);
        told.sort_by_key(|flow| (flow.open == 0, std::cmp::Reverse(flow.last_seen)));
        let left_out = told.len().saturating_sub(MAX_TOLD);
        told.truncate(MAX_TOLD);
        v1::FlowReport { now: unix_seconds(SystemTime::now()), flows: told, left_out: left_out as u64 }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flow>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    /// A connection begins.
    pub fn opened(&self, rule: Option<RuleId>) {
        self.open.fetch_add(1, Relaxed);
        self.began(rule);
    }

    /// A connection that began has ended.
    pub fn ended(&self, sent: u64, received: u64, failed: bool) {
        self.open.fetch_sub(1, Relaxed);
        self.sent.fetch_add(sent, Relaxed);
        self.received.fetch_add(received, Relaxed);
        self.failed.fetch_add(failed.into(), Relaxed);
        self.last_seen.store(unix_seconds(SystemTime::now()), Relaxed);
    }

    /// A connection has begun. That is all that is known of it, or it has ended with that.
    pub fn began(&self, rule: Option<RuleId>) {
        self.connections.fetch_add(1, Relaxed);
        self.last_seen.store(unix_seconds(SystemTime::now()), Relaxed);
        self.rule.store(rule.map_or(0, RuleId::number), Relaxed);
    }
}

/// Makes room for some more, so that it is not to be made for each.
fn forget_oldest(flows: &mut HashMap<Key, Arc<Flow>>) {
    let idle = flows.iter().filter(|(_, flow)| !flow.is_open());
    let mut idle: Vec<_> = idle.map(|(key, flow)| (flow.last_seen(), key.clone())).collect();
    idle.sort_unstable_by_key(|(last_seen, _)| *last_seen);
    for (_, key) in idle.iter().take(MAX_FLOWS / 8) {
        flows.remove(key);
    }
}

impl Flow {
    fn is_open(&self) -> bool {
        self.open.load(Relaxed) != 0
    }

    fn last_seen(&self) -> u64 {
        self.last_seen.load(Relaxed)
    }
}

fn told(key: &Key, flow: &Flow) -> v1::Flow {
    let (workload, source) = match &key.client {
        Client::Known(Subject::Workload(_, workload)) => (workload.to_string(), String::new()),
        Client::Known(_) | Client::Here => (String::new(), String::new()),
        Client::Elsewhere(address) => (String::new(), address.to_string()),
    };
    v1::Flow {
        workload,
        source,
        destination: key.destination.to_string(),
        outcome: key.outcome.into(),
        connections: flow.connections.load(Relaxed),
        open: flow.open.load(Relaxed),
        failed: flow.failed.load(Relaxed),
        sent: flow.sent.load(Relaxed),
        received: flow.received.load(Relaxed),
        last_seen: flow.last_seen(),
        rule: flow.rule.load(Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> Key {
        let outcome = v1::Outcome::Allowed;
        Key { client: Client::Here, destination: ([10, 0, 0, 1], port).into(), outcome }
    }

    #[test]
    fn what_one_client_does_to_one_destination_is_one_flow() {
        let flows = Flows::default();
        flows.of(&key(80)).opened(None);
        flows.of(&key(80)).opened(RuleId::new(7));
        flows.of(&key(80)).ended(3, 4, true);
        let report = flows.report();
        let [flow] = &report.flows[..] else { panic!("{report:?}") };
        assert_eq!((flow.connections, flow.open, flow.failed, flow.rule), (2, 1, 1, 7));
        assert_eq!((flow.sent, flow.received, &*flow.destination), (3, 4, "10.0.0.1:80"));
    }

    #[test]
    fn a_refusal_is_told_with_who_was_refused() {
        let flows = Flows::default();
        flows.refused(&Event::example());
        flows.refused(&Event { caller: None, source: Some(([10, 0, 0, 9], 1).into()), ..Event::example() });
        let mut told = flows.report().flows;
        told.sort_by(|one, other| one.source.cmp(&other.source));
        assert_eq!((&*told[0].workload, told[0].rule), ("user-root", 1));
        assert_eq!((&*told[1].workload, &*told[1].source), ("", "10.0.0.9"));
        assert!(told.iter().all(|flow| flow.outcome() == v1::Outcome::Denied && flow.open == 0));
    }

    #[test]
    fn flows_are_bounded_and_those_that_are_open_stay() {
        let flows = Flows::default();
        flows.of(&key(1)).opened(None);
        for port in 2..=(2 * MAX_FLOWS as u16) {
            flows.of(&key(port)).began(None);
        }
        assert!(flows.lock().len() <= MAX_FLOWS && flows.lock().contains_key(&key(1)));
        let report = flows.report();
        assert_eq!((report.flows.len(), report.flows[0].open), (MAX_TOLD, 1));
        assert_eq!(report.left_out as usize, flows.lock().len() - MAX_TOLD);
    }

    #[test]
    fn where_all_are_open_one_more_is_left_out() {
        let flows = Flows::default();
        for port in 0..=MAX_FLOWS as u16 {
            flows.of(&key(port)).opened(None);
        }
        assert_eq!(flows.lock().len(), MAX_FLOWS);
    }
}
