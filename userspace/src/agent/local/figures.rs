//! The agent's figures for Prometheus. Nothing is probed for them, and nothing is counted for them alone but what is
//! counted once for each stream.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use murmesh_common::Counter as KernelCounter;

use super::{AgentLocal, Kernel, named};
use crate::{
    api::v1,
    metrics::{
        self, Page, Source,
        definitions::{
            CATALOG_REVISION, CERTIFICATE_EXPIRES, CONNECTION_BYTES, CONNECTION_ENDS, CONNECTIONS,
            CONNECTIONS_OPEN, ENDPOINTS, INSTANCES_EJECTED, INTERCEPTION_FAULTS, INTERCEPTION_HEALTHY,
            INTERCEPTION_MAP_PROBLEMS, KERNEL_EVENTS, MISSING_RECORDS, OLDER_AGENTS, PLAINTEXT_CONNECTIONS,
            PUBLISHED_REVISION, SAVED_REVISION, SERVER_CONNECTED, TUNNEL_HANDSHAKES, TUNNEL_REFUSALS,
            TUNNELS_IDLE,
        },
        number, seconds,
    },
    proxy::{access::Direction, tally::Verdict, traffic::Counter},
};

/// What the kernel half counts, as labels have it.
const KERNEL_COUNTERS: [(KernelCounter, &str); 14] = [
    (KernelCounter::Redirected, "redirected"),
    (KernelCounter::RefusedBoundInterface, "refused_bound_interface"),
    (KernelCounter::RefusedUnrecorded, "refused_unrecorded"),
    (KernelCounter::HandshakeLost, "handshake_lost"),
    (KernelCounter::EventLost, "listener_event_lost"),
    (KernelCounter::RefusedWithoutAgent, "refused_without_agent"),
    (KernelCounter::Denied, "denied"),
    (KernelCounter::VerdictEventLost, "verdict_event_lost"),
    (KernelCounter::Served, "served"),
    (KernelCounter::PlaintextFromMesh, "plaintext_from_mesh"),
    (KernelCounter::PlaintextFromOutside, "plaintext_from_outside"),
    (KernelCounter::PlaintextRefused, "plaintext_refused"),
    (KernelCounter::PlaintextToMesh, "plaintext_to_mesh"),
    (KernelCounter::RefusedUnavailable, "refused_unavailable"),
];

/// Ports that connections in clear are told of, those with the lowest numbers; a host that serves more is a scanner's
/// doing.
const MAX_PORTS: usize = 256;

/// The watchdog looks ten times as often.
const OVERDUE: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl Source for AgentLocal {
    async fn figures(&self, page: &mut Page) {
        let current = self.shared.identities.host();
        metrics::daemon(page, self.role, current.identity.not_after);
        page.gauge(&CERTIFICATE_EXPIRES, &["first"], seconds(self.first_end(&current)));
        self.revisions(page);
        self.connections(page);
        self.tunnels(page);
        let Some(kernel) = self.kernel.clone() else { return };
        page.gauge(&INTERCEPTION_HEALTHY, &[], f64::from(u8::from(kernel.problem().is_none())));
        page.gauge(&INTERCEPTION_FAULTS, &[], number(kernel.watchdog.last_look().1.len()));
        page.gauge(&INTERCEPTION_MAP_PROBLEMS, &[], number(kernel.problems.load().len()));
        let looked = tokio::task::spawn_blocking(move || (kernel.events(), kernel.encryption())).await;
        let Ok((events, encryption)) = looked else { return };
        for (event, count) in events {
            page.counter(&KERNEL_EVENTS, &[event], count);
        }
        let policy = self.catalog.borrow().policy.clone();
        let encryption = named(encryption, &policy, &self.shared.node);
        encryption.services.iter().take(MAX_PORTS).for_each(|service| plaintext(page, service));
    }

    async fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.shared.identities.host().identity.not_after <= SystemTime::now() {
            problems.push("the certificate has expired: no connection can be carried".to_owned());
        }
        problems.extend(self.kernel.as_ref().and_then(Kernel::problem));
        problems
    }
}

impl AgentLocal {
    fn revisions(&self, page: &mut Page) {
        let catalog = self.catalog.borrow().clone();
        page.gauge(&CATALOG_REVISION, &[], number(catalog.revision));
        page.gauge(&PUBLISHED_REVISION, &[], number(self.shared.routes.load().revision()));
        page.gauge(&SAVED_REVISION, &[], number(*self.saved.borrow()));
        page.gauge(&ENDPOINTS, &[], number(self.carried(&catalog.policy)));
        let connected = self.server.borrow().connected.is_some();
        page.gauge(&SERVER_CONNECTED, &[], f64::from(u8::from(connected)));
        page.gauge(&OLDER_AGENTS, &[], number(self.older.now().len()));
        let mut ejected = BTreeMap::<String, usize>::new();
        for ejection in self.shared.routes.load().ejections() {
            *ejected.entry(ejection.service.to_string()).or_default() += 1;
        }
        for (service, count) in ejected {
            page.gauge(&INSTANCES_EJECTED, &[&service], number(count));
        }
    }

    fn connections(&self, page: &mut Page) {
        for (service, figures) in self.shared.tally.services() {
            for direction in Direction::ALL {
                let (figures, direction) = (figures.one_way(direction), direction.name());
                if figures.is_unused() {
                    continue;
                }
                page.gauge(&CONNECTIONS_OPEN, &[direction, &service], number(figures.open()));
                for (verdict, name) in Verdict::ALL {
                    page.counter(&CONNECTIONS, &[direction, &service, name], figures.ended(verdict));
                }
                let totals = figures.totals();
                for (way, bytes) in [("sent", totals.sent), ("received", totals.received)] {
                    page.counter(&CONNECTION_BYTES, &[direction, &service, way], bytes);
                }
            }
        }
        for (direction, reason, count) in self.shared.tally.endings() {
            page.counter(&CONNECTION_ENDS, &[direction.name(), reason], count);
        }
    }

    fn tunnels(&self, page: &mut Page) {
        let traffic = &self.shared.traffic;
        page.gauge(&TUNNELS_IDLE, &[], number(traffic.get(Counter::TunnelsIdle)));
        page.counter(&TUNNEL_HANDSHAKES, &[], traffic.get(Counter::TunnelHandshakes));
        page.counter(&MISSING_RECORDS, &[], traffic.get(Counter::MissingRecords));
        for (reason, count) in self.shared.refusals.all() {
            page.counter(&TUNNEL_REFUSALS, &[reason.name()], count);
        }
    }
}

impl Kernel {
    /// What is wrong with it, as the watchdog found at its last look.
    fn problem(&self) -> Option<String> {
        let (looked, faults) = self.watchdog.last_look();
        match looked {
            None => Some("the kernel half was not looked at yet".to_owned()),
            Some(looked) if looked.elapsed() > OVERDUE => {
                Some(format!("the kernel half was not looked at for {} seconds", looked.elapsed().as_secs()))
            }
            Some(_) if faults.is_empty() => None,
            Some(_) => {
                let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
                Some(format!("the kernel half is not as the agent made it: {}", faults.join("; ")))
            }
        }
    }

    /// Nothing, while the map is not there.
    fn events(&self) -> Vec<(&'static str, u64)> {
        let Ok(counters) = crate::bpf::Counters::open(&self.pins) else { return Vec::new() };
        let value = |(counter, name): (KernelCounter, _)| Some((name, counters.get(counter).ok()?));
        KERNEL_COUNTERS.into_iter().filter_map(value).collect()
    }
}

fn plaintext(page: &mut Page, service: &v1::PlaintextService) {
    let port = service.port.to_string();
    for (source, count) in [("mesh", service.from_mesh), ("outside", service.from_outside)] {
        page.counter(&PLAINTEXT_CONNECTIONS, &[&port, &service.name, source], count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_kernel_half_counts_is_told() {
        let mut indexes = KERNEL_COUNTERS.map(|(counter, _)| counter as usize);
        indexes.sort_unstable();
        assert!(indexes.into_iter().eq(0..KernelCounter::COUNT));
    }
}
