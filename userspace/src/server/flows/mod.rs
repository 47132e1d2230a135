//! Who connects to whom, as the hosts that are connected to this server tell while somebody looks at its page, or at that of
//! another server, which asks this one. Kept in memory only, and forgotten when nobody looks any more.
//!
//! All hosts together make a hundred reports a second at most: the more hosts there are, the less often each is asked.

mod others;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tonic::{Status, Streaming};
use tracing::warn;

use crate::api::{unix_seconds, v1};
use crate::flows::MAX_TOLD;
use crate::identity::{NodeName, WorkloadName, excerpt};
use crate::limited_log::LimitedLog;
pub use others::OtherServers;

/// Flows that a page shows, and of which a server tells another one: those that are open, and then those that were used
/// last.
pub const MAX_FLOWS: usize = 2000;

/// For how long hosts go on to report after somebody has looked.
const MEMORY: Duration = Duration::from_secs(30);
/// How often a host reports where there are few.
const INTERVAL: Duration = Duration::from_secs(1);
/// So many hosts more, and each reports that much less often.
const HOSTS_PER_INTERVAL: usize = 100;
/// A host that sends reports faster waits for them to be read.
const READ_PAUSE: Duration = Duration::from_millis(500);

/// Any host of the mesh can send what is refused.
static REFUSED: LimitedLog = LimitedLog::new();

/// Why a report is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFlows {
    /// More than a host may report.
    #[error("it has {0} flows, more than the {MAX_TOLD} that a report may have")]
    TooMany(usize),
    /// Not a name or an address.
    #[error("{0:?} is not a workload, or not an address")]
    Party(String),
}

/// What hosts have told.
#[derive(Debug)]
pub struct HostFlows {
    /// By name; with the number of the call by which each does.
    hosts: Mutex<BTreeMap<String, (u64, Told)>>,
    /// What other servers have told of theirs, by the name of the server.
    elsewhere: Mutex<BTreeMap<String, ByHost>>,
    /// How often a host is to report; `None` while nobody looks.
    interval: watch::Sender<Option<Duration>>,
    /// When somebody last looked, here or at the page of another server.
    looked: watch::Sender<Option<Instant>>,
    /// When somebody last looked at the page of this server.
    looked_here: watch::Sender<Option<Instant>>,
    /// Grows with every report.
    version: watch::Sender<u64>,
    /// How many calls there were.
    calls: AtomicU64,
}

/// What one host has told.
#[derive(Debug, Clone)]
pub struct Told {
    /// The end of the certificate with which it did.
    pub certificate_ends: SystemTime,
    /// By the clock of this server.
    pub report: Arc<v1::FlowReport>,
}

/// By the name of the host.
pub type ByHost = BTreeMap<String, Told>;

impl Default for HostFlows {
    fn default() -> Self {
        Self {
            hosts: Mutex::default(),
            elsewhere: Mutex::default(),
            interval: watch::Sender::new(None),
            looked: watch::Sender::new(None),
            looked_here: watch::Sender::new(None),
            version: watch::Sender::new(0),
            calls: AtomicU64::new(0),
        }
    }
}

impl HostFlows {
    /// Somebody looks at the page of this server; there are so many `hosts`.
    pub fn look(&self, hosts: usize) {
        self.want(hosts);
        self.looked_here.send_replace(Some(Instant::now()));
    }

    /// What the hosts that are connected here have told, for the page of another server; there are so many `hosts`.
    pub fn answer(&self, hosts: usize) -> v1::ToldFlowsResponse {
        self.want(hosts);
        others::answer(&self.told_here(), unix_seconds(SystemTime::now()))
    }

    fn want(&self, hosts: usize) {
        let intervals = u32::try_from(hosts.div_ceil(HOSTS_PER_INTERVAL)).unwrap_or(u32::MAX).max(1);
        let interval = Some(INTERVAL.saturating_mul(intervals));
        self.looked.send_replace(Some(Instant::now()));
        self.interval.send_if_modified(|before| std::mem::replace(before, interval) != interval);
    }

    /// Forgets everything when nobody has looked for a while, for as long as it is run.
    pub async fn forget_unseen(self: Arc<Self>) {
        let mut looked = self.looked.subscribe();
        while looked.wait_for(Option::is_some).await.is_ok() {
            loop {
                let since = looked.borrow_and_update().map_or(MEMORY, |looked| looked.elapsed());
                let Some(left) = MEMORY.checked_sub(since).filter(|left| !left.is_zero()) else { break };
                tokio::time::sleep(left).await;
            }
            self.interval.send_replace(None);
            self.looked.send_replace(None);
            self.hosts().clear();
        }
    }

    /// How often a host is to report, now and whenever that changes.
    pub fn interval(&self) -> watch::Receiver<Option<Duration>> {
        self.interval.subscribe()
    }

    /// Changes with every report.
    pub fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What the hosts have told, by name.
    pub fn told(&self) -> ByHost {
        let mut told: ByHost = self.elsewhere().values().flat_map(ByHost::clone).collect();
        told.extend(self.told_here());
        told
    }

    /// Waits until somebody looks at the page of this server, if nobody has of late.
    async fn seen_here(&self) {
        // It does not end before the server does.
        let _ = self.looked_here.subscribe().wait_for(|looked| looked.is_some_and(is_of_late)).await;
    }

    /// How often there is something new, while somebody looks at the page of this server.
    fn interval_here(&self) -> Option<Duration> {
        let looked = self.looked_here.borrow().is_some_and(is_of_late);
        looked.then(|| self.interval.borrow().unwrap_or(INTERVAL))
    }

    /// What another server tells; `None` if it does not.
    fn learn(&self, server: &str, told: Option<ByHost>) {
        match told {
            Some(told) => self.elsewhere().insert(server.to_owned(), told),
            None => self.elsewhere().remove(server),
        };
        self.version.send_modify(|version| *version += 1);
    }

    /// Takes the reports of `node` until it ends the call, or sends what is refused.
    pub async fn take(
        &self,
        node: &NodeName,
        certificate_ends: SystemTime,
        mut reports: Streaming<v1::FlowReport>,
    ) {
        let call = self.calls.fetch_add(1, Relaxed);
        while let Ok(Some(report)) = reports.message().await {
            if let Err(error) = check(&report) {
                if let Some(withheld) = REFUSED.permit() {
                    warn!(%node, %error, withheld, "report on who connects to whom refused");
                }
                break;
            }
            if self.interval.borrow().is_some() {
                let report = Arc::new(by_clock(report, unix_seconds(SystemTime::now())));
                self.hosts().insert(node.to_string(), (call, Told { certificate_ends, report }));
                self.version.send_modify(|version| *version += 1);
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
        // A host that has connected anew reports there.
        let mut hosts = self.hosts();
        if hosts.get(node.as_str()).is_some_and(|(by, _)| *by == call) {
            hosts.remove(node.as_str());
            drop(hosts);
            self.version.send_modify(|version| *version += 1);
        }
    }

    fn told_here(&self) -> ByHost {
        self.hosts().iter().map(|(node, (_, told))| (node.clone(), told.clone())).collect()
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Told)>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elsewhere(&self) -> MutexGuard<'_, BTreeMap<String, ByHost>> {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_late(looked: Instant) -> bool {
    looked.elapsed() < MEMORY
}

/// What a host is told of how often it is to report.
pub fn wanted(interval: Option<Duration>) -> Result<v1::FlowsWanted, Status> {
    let milliseconds = interval.map_or(0, |interval| interval.as_millis());
    Ok(v1::FlowsWanted { interval_ms: u64::try_from(milliseconds).unwrap_or(u64::MAX) })
}

/// Whether a report is one that an agent makes.
fn check(report: &v1::FlowReport) -> Result<(), InvalidFlows> {
    if report.flows.len() > MAX_TOLD {
        return Err(InvalidFlows::TooMany(report.flows.len()));
    }
    let is_empty_or = |text: &String, is_valid: bool| text.is_empty() || is_valid;
    for flow in &report.flows {
        let wrong = if !is_empty_or(&flow.workload, flow.workload.parse::<WorkloadName>().is_ok()) {
            &flow.workload
        } else if !is_empty_or(&flow.source, flow.source.parse::<IpAddr>().is_ok()) {
            &flow.source
        } else if flow.destination.parse::<SocketAddr>().is_err() {
            &flow.destination
        } else {
            continue;
        };
        return Err(InvalidFlows::Party(excerpt(wrong)));
    }
    Ok(())
}

/// Nothing in it is later than `now`.
fn by_clock(mut report: v1::FlowReport, now: u64) -> v1::FlowReport {
    for flow in &mut report.flows {
        flow.last_seen = now.saturating_sub(report.now.saturating_sub(flow.last_seen));
    }
    report.now = now;
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn report(change: impl FnOnce(&mut v1::Flow)) -> v1::FlowReport {
        let mut flow = v1::Flow { destination: "10.0.0.1:80".to_owned(), ..v1::Flow::default() };
        change(&mut flow);
        v1::FlowReport { now: 1000, flows: vec![flow], left_out: 0 }
    }

    #[test]
    fn a_report_is_checked_before_it_is_kept() {
        assert_eq!(check(&report(|_| {})), Ok(()));
        assert_eq!(check(&report(|flow| flow.workload = "web.service".to_owned())), Ok(()));
        for wrong in [
            report(|flow| flow.workload = "a b".to_owned()),
            report(|flow| flow.source = "nowhere".to_owned()),
            report(|flow| flow.destination.clear()),
        ] {
            assert!(matches!(check(&wrong), Err(InvalidFlows::Party(_))), "{wrong:?}");
        }
        let mut long = report(|_| {});
        long.flows = vec![long.flows[0].clone(); MAX_TOLD + 1];
        assert_eq!(check(&long), Err(InvalidFlows::TooMany(MAX_TOLD + 1)));
    }

    #[test]
    fn times_are_those_of_the_server() {
        let seen = |last_seen| by_clock(report(|flow| flow.last_seen = last_seen), 50).flows[0].last_seen;
        assert_eq!((seen(990), seen(2000), seen(0)), (40, 50, 0));
    }

    #[test]
    fn the_more_hosts_there_are_the_less_often_each_is_asked() {
        let flows = HostFlows::default();
        let interval = flows.interval();
        for (hosts, seconds) in [(3, 1), (1000, 10)] {
            flows.look(hosts);
            assert_eq!(*interval.borrow(), Some(Duration::from_secs(seconds)));
        }
    }
}
