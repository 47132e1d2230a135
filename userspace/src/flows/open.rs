//! What connections that are open have moved so far. The worker that carries them knows, and adds it up when asked: a flow's
//! own counters are only touched when a connection begins and when it ends.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{Flow, Flows, Key};
use crate::policy::RuleId;

/// Tells a flow from all others that have a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId(usize);

/// What the open connections of a flow have moved, seen from the programs on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moving {
    /// Bytes from them.
    pub sent: u64,
    /// Bytes to them.
    pub received: u64,
    /// The longest round trip to the other agent.
    pub round_trip: Option<Duration>,
}

/// That of all flows.
#[derive(Debug, Default)]
pub struct Moved(HashMap<FlowId, Moving>);

/// A flow with all that is known of it.
#[derive(Debug)]
pub struct Seen {
    flow: Arc<Flow>,
    /// Whose it is.
    pub key: Key,
    /// Connections since the agent was started.
    pub connections: u64,
    /// Those that are open.
    pub open: u64,
    /// Those that were allowed and failed.
    pub failed: u64,
    /// What those that have ended have moved, or all of them [by now](Self::by_now).
    pub moved: Moving,
    /// When one began or ended last, in seconds since the Unix epoch.
    pub last_seen: u64,
    /// The rule that decided last.
    pub rule: Option<RuleId>,
}

impl FlowId {
    /// That of a flow which is in use: the place in memory, which nobody else has meanwhile.
    pub fn of(flow: &Arc<Flow>) -> Self {
        Self(Arc::as_ptr(flow).addr())
    }
}

impl Moved {
    /// Adds what connections of a flow have moved.
    pub fn add(&mut self, flow: FlowId, moving: Moving) {
        self.0.entry(flow).or_default().add(moving);
    }

    /// Adds what others have moved.
    pub fn add_all(&mut self, others: Self) {
        for (flow, moving) in others.0 {
            self.add(flow, moving);
        }
    }
}

impl Moving {
    fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.round_trip = self.round_trip.max(other.round_trip);
    }
}

impl Flows {
    /// All that are remembered, without what open connections have moved.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().iter().map(|(key, flow)| Seen::new(key, flow)).collect()
    }
}

impl Seen {
    fn new(key: &Key, flow: &Arc<Flow>) -> Self {
        let told = super::told(key, flow);
        Self {
            flow: flow.clone(),
            key: key.clone(),
            connections: told.connections,
            open: told.open,
            failed: told.failed,
            moved: Moving { sent: told.sent, received: told.received, round_trip: None },
            last_seen: told.last_seen,
            rule: RuleId::new(told.rule),
        }
    }

    /// With what open connections have moved. One that has ended since the flow was looked at is in neither, for now.
    #[must_use]
    pub fn by_now(mut self, moved: &Moved) -> Self {
        if let Some(moving) = moved.0.get(&FlowId::of(&self.flow)) {
            self.moved.add(*moving);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::v1, flows::Client};

    #[test]
    fn what_is_open_is_added_to_what_has_ended() {
        let flows = Flows::default();
        let outcome = v1::Outcome::Allowed;
        let flow = flows.of(&Key { client: Client::Here, destination: ([10, 0, 0, 1], 80).into(), outcome });
        flow.opened(RuleId::new(3));
        flow.opened(RuleId::new(3));
        flow.ended(100, 10, false);
        let milliseconds = |count| Some(Duration::from_millis(count));
        let (mut moved, mut more) = (Moved::default(), Moved::default());
        moved.add(FlowId::of(&flow), Moving { sent: 1, received: 2, round_trip: milliseconds(4) });
        more.add(FlowId::of(&flow), Moving { sent: 5, received: 0, round_trip: milliseconds(3) });
        more.add(FlowId::of(&Arc::default()), Moving { sent: 7, ..Moving::default() });
        moved.add_all(more);
        let [seen] = &flows.seen().into_iter().map(|seen| seen.by_now(&moved)).collect::<Vec<_>>()[..] else {
            panic!("one flow")
        };
        assert_eq!((seen.connections, seen.open, seen.failed, seen.rule), (2, 1, 0, RuleId::new(3)));
        assert_eq!(seen.moved, Moving { sent: 106, received: 12, round_trip: milliseconds(4) });
    }
}
