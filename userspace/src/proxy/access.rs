//! The access log: one line when a stream opens and one when it ends, whatever ends it.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{
    Shared,
    access_log::{self, Close, Line},
    ending::Ending,
    live::Forbidden,
    relay::{RelayError, Totals},
    tally::Figures,
    traffic::Counter,
};
use crate::{
    flows::{Flow, FlowId},
    identity::SpiffeId,
    observe::{End, Event, Outcome, Process},
    policy::{Action, Protocol, Verdict},
    workload::Credentials,
};

/// Reason of the end of a stream that did not fail.
const ENDED: &str = "ended";

/// Which half of a connection this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client is on this host.
    Outbound,
    /// The service is on this host.
    Inbound,
}

impl Direction {
    /// Both, in their order.
    pub const ALL: [Self; 2] = [Self::Outbound, Self::Inbound];

    /// As the log has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// The process that called `connect`, as the kernel half saw it. It may be gone by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Thread group, which is what users call a process.
    pub pid: u32,
    /// To whom it belonged when it connected.
    pub credentials: Credentials,
}

/// Who is connected.
#[derive(Debug, Clone)]
pub struct Parties {
    /// On this host, where that is known.
    pub local: Option<Arc<SpiffeId>>,
    /// On the other.
    pub peer: Arc<SpiffeId>,
}

/// An open stream. The line about its end is written when this is dropped.
pub struct AccessRecord {
    shared: Arc<Shared>,
    direction: Direction,
    client: SocketAddr,
    destination: SocketAddr,
    parties: Parties,
    caller: Option<Caller>,
    verdict: Verdict,
    /// Of a service that has several, if it is not the one that was dialled.
    instance: Option<Box<SocketAddr>>,
    /// What the caller was called at the beginning, if anybody followed then.
    process_name: Option<Box<str>>,
    opened: Instant,
    totals: Totals,
    /// Those of its service.
    figures: Arc<Figures>,
    /// Where it is counted, beside all that are like it.
    flow: Option<Arc<Flow>>,
    /// What ended it; a task that is dropped did not get to say.
    result: Option<Result<(), (Ending, String)>>,
}

impl AccessRecord {
    /// Writes the line about the beginning.
    pub fn open(
        shared: Arc<Shared>,
        direction: Direction,
        client: SocketAddr,
        destination: SocketAddr,
        parties: Parties,
        caller: Option<Caller>,
        verdict: Verdict,
    ) -> Self {
        shared.traffic.add(Counter::StreamsTotal, 1);
        shared.traffic.add(Counter::StreamsActive, 1);
        let service = match direction {
            Direction::Outbound => Some(&parties.peer),
            Direction::Inbound => parties.local.as_ref(),
        };
        let figures = shared.tally.of(service.map(|id| &id.subject));
        figures.begin(direction);
        let opened = Instant::now();
        let totals = Totals::default();
        let named = caller.filter(|_| shared.observer.is_followed());
        let process_name = named.and_then(|caller| Process::name_of(caller.pid)).map(String::into_boxed_str);
        let record = Self {
            shared,
            direction,
            client,
            destination,
            parties,
            caller,
            verdict,
            instance: None,
            process_name,
            opened,
            totals,
            figures,
            flow: None,
            result: None,
        };
        record.log(None);
        if verdict.action == Action::Allow {
            record.shared.observer.mention(|| Arc::new(record.event("opened", None)));
        }
        record
    }

    /// Address and port that the client dialled from.
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// Address and port that it dialled.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    fn log(&self, close: Option<Close<'_>>) {
        let Self { direction, client, destination, ref parties, caller, verdict, .. } = *self;
        access_log::add(&Line { direction, client, destination, parties, caller, verdict, close });
    }

    fn event(&self, what: &str, end: Option<End>) -> Event {
        let outcome = match self.verdict.action {
            Action::Deny => Outcome::Denied,
            Action::Allow if end.is_some() && what != ENDED => Outcome::Error,
            Action::Allow => Outcome::Allowed,
        };
        let (caller, node) = match self.direction {
            Direction::Outbound => (self.parties.local.as_ref(), self.parties.peer.node().cloned()),
            Direction::Inbound => (Some(&self.parties.peer), Some(self.shared.node.as_ref().clone())),
        };
        let process = self.caller.map(|Caller { pid, credentials }| {
            let name = self.process_name.as_ref().map(ToString::to_string);
            Process { pid, uid: credentials.uid, name: name.or_else(|| Process::name_of(pid)) }
        });
        Event {
            time: SystemTime::now(),
            outcome,
            process,
            caller: caller.map(|id| id.subject.clone()),
            source: Some(self.client),
            node,
            destination: self.destination,
            protocol: Some(Protocol::Tcp),
            rule: self.verdict.rule,
            what: what.to_owned(),
            end,
        }
    }

    /// To be remembered, unless all went well.
    fn tell_end(&self, reason: &str) {
        let Totals { sent, received } = self.totals;
        let event = || self.event(reason, Some(End { sent, received, duration: self.opened.elapsed() }));
        if reason == ENDED {
            self.shared.observer.mention(|| Arc::new(event()));
        } else {
            self.shared.observer.tell(event());
        }
    }

    /// Has it counted with others of its kind, which the answer tells from the rest.
    pub fn count(&mut self, flow: Arc<Flow>) -> FlowId {
        flow.opened(self.verdict.rule);
        let id = FlowId::of(&flow);
        self.flow = Some(flow);
        id
    }

    /// Takes note of who got it.
    pub fn reached(&mut self, instance: Option<SocketAddr>) {
        self.instance = instance.filter(|instance| *instance != self.destination).map(Box::new);
    }

    /// Takes note of how the relay ended.
    pub fn relayed(&mut self, totals: Totals, result: &Result<(), RelayError>) {
        self.totals = totals;
        if let Err(RelayError::Forbidden(Forbidden::Rules(rule))) = result {
            self.verdict = Verdict { action: Action::Deny, rule: *rule, dry_run: None };
        }
        self.result = Some(result.as_ref().copied().map_err(|error| (error.into(), error.to_string())));
    }

    /// Takes note that the stream failed before anything was relayed.
    pub fn failed(&mut self, ending: Ending, reason: String) {
        self.result = Some(Err((ending, reason)));
    }
}

impl Drop for AccessRecord {
    fn drop(&mut self) {
        let traffic = &self.shared.traffic;
        traffic.subtract(Counter::StreamsActive, 1);
        traffic.add(Counter::BytesSent, self.totals.sent);
        traffic.add(Counter::BytesReceived, self.totals.received);
        let (ending, reason): (_, Cow<'_, str>) = match self.result.take() {
            Some(Ok(())) => (Ending::Ended, ENDED.into()),
            Some(Err((ending, reason))) => (ending, reason.into()),
            None => (Ending::Stopped, "cut off by the agent, which stopped or failed".into()),
        };
        self.shared.tally.ended(self.direction, ending);
        self.figures.end(self.direction, ending, self.totals);
        if reason != ENDED {
            traffic.add(Counter::StreamsFailed, 1);
        }
        let Totals { sent, received } = self.totals;
        if let Some(flow) = &self.flow {
            flow.ended(sent, received, reason != ENDED);
        }
        let duration_us = self.opened.elapsed().as_micros();
        let instance = self.instance.as_deref().copied();
        self.log(Some(Close { sent, received, duration_us, reason: &reason, instance }));
        self.tell_end(&reason);
    }
}
