//! A flow as the agent tells of it, with what has become of it since the look before.

use std::time::Duration;

use serde::Serialize;

use crate::api::v1::{self, Outcome};

/// All connections of one client to one destination that became the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flow {
    /// "out" where the client is on this host, "in" where the service is.
    pub direction: &'static str,
    /// Path of a SPIFFE id, or an address.
    pub caller: String,
    /// As it was dialled.
    pub destination: String,
    /// Who has it.
    pub host: Option<String>,
    /// The name of the service.
    pub service: Option<String>,
    /// What becomes of its connections.
    pub verdict: &'static str,
    /// The rule that decided last.
    pub rule: Option<u32>,
    /// Since the agent was started.
    pub connections: u64,
    /// Those that are open.
    pub open: u64,
    /// Those that were allowed and failed.
    pub failed: u64,
    /// Bytes from programs on this host.
    pub sent: u64,
    /// Bytes to them.
    pub received: u64,
    /// Since the look before.
    pub sent_per_second: f64,
    /// See above.
    pub received_per_second: f64,
    /// Connections that began.
    pub connections_per_second: f64,
    /// Between the two agents.
    pub round_trip_us: Option<u64>,
    /// Since a connection began or ended.
    pub idle_seconds: u64,
}

impl Flow {
    /// What tells it from others.
    pub fn key(&self) -> [String; 4] {
        let (direction, verdict) = (self.direction.to_owned(), self.verdict.to_owned());
        [direction, self.caller.clone(), self.destination.clone(), verdict]
    }

    /// What has become of it since `before`, `span` ago; without `before` all of it is new.
    pub fn follow(&mut self, before: Option<&Self>, span: Duration) {
        let counts = |flow: &Self| [flow.sent, flow.received, flow.connections];
        let old = before.map_or([0; 3], counts);
        // A connection that ended while the agent was asked is missing for one look.
        self.sent = self.sent.max(old[0]);
        self.received = self.received.max(old[1]);
        let per_second = |now: u64, old: u64| rate(now.saturating_sub(old), span);
        self.sent_per_second = per_second(self.sent, old[0]);
        self.received_per_second = per_second(self.received, old[1]);
        self.connections_per_second = per_second(self.connections, old[2]);
    }

    /// The service by its name, or else by its host and port.
    pub fn served(&self) -> String {
        let port = self.destination.rsplit(':').next().unwrap_or_default();
        match (&self.service, &self.host) {
            (Some(service), _) => service.clone(),
            (None, Some(host)) => format!("{host}:{port}"),
            (None, None) => self.destination.clone(),
        }
    }

    /// The caller without what all callers begin with.
    pub fn client(&self) -> &str {
        let path = &*self.caller;
        path.strip_prefix("host/").or_else(|| path.strip_prefix("service/")).unwrap_or(path)
    }

    /// The caller's workload, on whatever host; the host of a caller that has none.
    pub fn workload(&self) -> &str {
        self.client().split_once('/').map_or(self.client(), |(_, workload)| workload)
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn rate(count: u64, span: Duration) -> f64 {
    let seconds = span.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl From<v1::LiveFlow> for Flow {
    fn from(flow: v1::LiveFlow) -> Self {
        let verdict = match flow.outcome() {
            Outcome::Unspecified => "unknown",
            Outcome::Allowed => "allowed",
            Outcome::Denied => "denied",
            Outcome::Plaintext => "in clear",
            Outcome::Error => "failed",
        };
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            direction: if flow.incoming { "in" } else { "out" },
            caller: flow.caller,
            destination: flow.destination,
            host: some(flow.node),
            service: some(flow.service),
            verdict,
            rule: flow.rule,
            connections: flow.connections,
            open: flow.open,
            failed: flow.failed,
            sent: flow.sent,
            received: flow.received,
            sent_per_second: 0.0,
            received_per_second: 0.0,
            connections_per_second: 0.0,
            round_trip_us: flow.round_trip_us,
            idle_seconds: flow.idle_seconds,
        }
    }
}
