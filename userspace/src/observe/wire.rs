//! Events and filters as the command line's socket carries them.

use std::time::UNIX_EPOCH;

use super::{Event, Filter, Outcome};
use crate::api::v1;

impl From<Outcome> for v1::Outcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Allowed => Self::Allowed,
            Outcome::Denied => Self::Denied,
            Outcome::Plaintext => Self::Plaintext,
            Outcome::Error => Self::Error,
        }
    }
}

impl From<&v1::ObserveRequest> for Filter {
    /// What this version does not know is not filtered for.
    fn from(request: &v1::ObserveRequest) -> Self {
        let outcomes = request.outcomes().filter_map(|outcome| match outcome {
            v1::Outcome::Unspecified => None,
            v1::Outcome::Allowed => Some(Outcome::Allowed),
            v1::Outcome::Denied => Some(Outcome::Denied),
            v1::Outcome::Plaintext => Some(Outcome::Plaintext),
            v1::Outcome::Error => Some(Outcome::Error),
        });
        let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        Self { outcomes: outcomes.collect(), from: some(&request.from), to: some(&request.to) }
    }
}

impl From<&Event> for v1::Observed {
    fn from(event: &Event) -> Self {
        let text = |text: Option<String>| text.unwrap_or_default();
        Self {
            time_us: event
                .time
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX)),
            outcome: v1::Outcome::from(event.outcome).into(),
            process: event.process.as_ref().map(|process| v1::Process {
                pid: process.pid,
                uid: process.uid,
                name: process.name.clone().unwrap_or_default(),
            }),
            caller: text(event.caller.as_ref().map(ToString::to_string)),
            source: text(event.source.map(|source| source.to_string())),
            node: text(event.node.as_ref().map(ToString::to_string)),
            destination: event.destination.to_string(),
            protocol: text(event.protocol.map(|protocol| protocol.to_string())),
            rule: event.rule.map(|rule| rule.number()),
            what: event.what.clone(),
            end: event.end.map(|end| v1::StreamEnd {
                sent: end.sent,
                received: end.received,
                duration_us: u64::try_from(end.duration.as_micros()).unwrap_or(u64::MAX),
            }),
        }
    }
}
