//! Keeps the report about this host true: what it serves, and at which addresses.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use murmesh_common::ListenerChange;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{info, warn};

use super::health::Failing;
use crate::{
    catalog::{Listener, Report},
    discovery::{
        DiscoveryError, ExemptPorts, Listeners, ListeningSocket, host_addresses, link_local_addresses,
        listening_sockets,
    },
    identity::WorkloadName,
    workload::{Credentials, Finder, Workloads},
};

/// How often everything is looked at again: it finds listeners from before the agent, whose end the kernel half is
/// not told of, and repairs whatever an event missed.
const DUMP_INTERVAL: Duration = Duration::from_secs(1);

/// How long nothing is looked at after something was: a program that opens and closes listeners as fast as it can
/// must not keep servers and all other hosts busy. What happens meanwhile is taken together.
const PAUSE: Duration = Duration::from_millis(20);

/// Changes that are taken together.
const MAX_CHANGES: usize = 1024;

/// From the kernel half: what became of the listener with this cookie.
type Change = (ListenerChange, u64);

/// What this host serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// Addresses that others may dial.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of no use to others, which lead to the same listeners.
    pub link_local: BTreeSet<IpAddr>,
    /// Listeners that are meshed.
    pub listeners: BTreeSet<Listener>,
}

/// Watches this host.
pub struct Discovery {
    /// Ports that are never meshed.
    pub exempt: ExemptPorts,
    /// For the report.
    pub tunnel_port: u16,
    /// Who they may be that listen, where the kernel half tells them apart.
    pub owners: Option<Owners>,
    /// Named services whose check fails, for the report.
    pub failing: watch::Receiver<Failing>,
}

/// Tells who listens.
pub struct Owners {
    finder: Arc<Finder>,
    workloads: watch::Receiver<Workloads>,
    /// Those who are listening now. `None` for who was looked for in vain, and is not waited for
    /// again: the finder gets to know them.
    found: HashMap<Credentials, Option<WorkloadName>>,
}

/// What this host serves at this moment.
///
/// # Errors
/// The kernel does not tell.
pub fn now(exempt: &ExemptPorts, workloads: &Workloads) -> Result<Served, DiscoveryError> {
    let mut listeners = Listeners::default();
    dump(&mut listeners)?;
    let listeners = listeners.public(exempt, |socket| workloads.of(credentials(socket)?));
    Ok(Served { addresses: host_addresses()?, link_local: link_local_addresses()?, listeners })
}

/// The kernel does not tell the group that opened a socket.
fn credentials(socket: &ListeningSocket) -> Option<Credentials> {
    Some(Credentials { cgroup: socket.cgroup?, uid: socket.uid, gid: None })
}

impl Owners {
    /// As `finder` knows them.
    pub fn new(finder: Arc<Finder>) -> Self {
        let workloads = finder.workloads().clone();
        Self { finder, workloads, found: HashMap::new() }
    }

    /// Finds out who owns `sockets`.
    async fn find(&mut self, sockets: impl Iterator<Item = &ListeningSocket>) {
        let before = std::mem::take(&mut self.found);
        for credentials in sockets.filter_map(credentials) {
            let owner = match (self.finder.known(credentials), before.get(&credentials)) {
                (None, Some(found)) => found.clone(),
                (None, None) => self.finder.find(credentials).await,
                (known, _) => known,
            };
            self.found.insert(credentials, owner);
        }
    }

    fn of(&self, socket: &ListeningSocket) -> Option<WorkloadName> {
        self.found.get(&credentials(socket)?)?.clone()
    }

    /// Until more is known.
    async fn change(&mut self) {
        if self.workloads.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Discovery {
    /// Publishes what is served, and reports it, at each change. `events` come from the kernel half, if there is one.
    pub async fn run(
        mut self,
        mut events: Option<mpsc::Receiver<Change>>,
        served: watch::Sender<Served>,
        report: watch::Sender<Option<Report>>,
    ) -> anyhow::Result<()> {
        let (mut listeners, mut is_told) = (Listeners::default(), false);
        let mut ticks = interval(DUMP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What has happened before this agent, such as the end of the one before, says nothing of what is served.
        if let Err(error) = dump(&mut listeners) {
            warn!("cannot tell what this host serves: {error}");
        }
        loop {
            let looked = tokio::select! {
                _ = ticks.tick() => dump(&mut listeners),
                Some(changes) = next(&mut events) => take(&mut listeners, &changes),
                () = workloads_change(&mut self.owners) => Ok(()),
                Ok(()) = self.failing.changed() => Ok(()),
            };
            if let Some(owners) = &mut self.owners {
                owners.find(listeners.sockets()).await;
            }
            if let Err(error) = looked.and_then(|()| self.publish(&listeners, &served, &report, &mut is_told))
            {
                warn!("cannot tell what this host serves: {error}");
            }
            sleep(PAUSE).await;
        }
    }

    fn publish(
        &mut self,
        listeners: &Listeners,
        served: &watch::Sender<Served>,
        report: &watch::Sender<Option<Report>>,
        is_told: &mut bool,
    ) -> Result<(), DiscoveryError> {
        let listeners = listeners.public(&self.exempt, |socket| self.owners.as_ref()?.of(socket));
        let now = Served { addresses: host_addresses()?, link_local: link_local_addresses()?, listeners };
        let failing = self.failing.borrow_and_update().clone();
        let is_same = report.borrow().as_ref().is_some_and(|report| report.failing == failing);
        if *served.borrow() == now && is_same {
            return Ok(());
        }
        log_changes(&served.borrow(), &now);
        let mut sent = Report {
            addresses: now.addresses.iter().copied().collect(),
            tunnel_port: self.tunnel_port,
            listeners: now.listeners.iter().cloned().collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            failing,
        };
        *is_told = match sent.truncate() {
            Ok(()) => false,
            Err(_) if *is_told => true,
            Err(error) => {
                warn!(
                    "the mesh does not take all that this host serves, what is beyond is reached in clear: {error}; exempt what needs no mesh with --exempt"
                );
                true
            }
        };
        // This host answers for a service before others can hear of it.
        served.send_replace(now);
        report.send_replace(Some(sent));
        Ok(())
    }
}

fn dump(listeners: &mut Listeners) -> Result<(), DiscoveryError> {
    listeners.replace(listening_sockets()?);
    Ok(())
}

fn take(listeners: &mut Listeners, changes: &[Change]) -> Result<(), DiscoveryError> {
    for (change, cookie) in changes {
        match change {
            ListenerChange::Opened => listeners.opened(*cookie),
            ListenerChange::Closed => listeners.closed(*cookie),
        }
    }
    // What a new listener is bound to is not in its event.
    let any_opened = changes.iter().any(|(change, _)| *change == ListenerChange::Opened);
    if any_opened { dump(listeners) } else { Ok(()) }
}

/// What has happened and was not taken yet, at least one change. Never, without a kernel half.
async fn next(events: &mut Option<mpsc::Receiver<Change>>) -> Option<Vec<Change>> {
    let Some(events) = events else { return std::future::pending().await };
    let mut changes = Vec::new();
    (events.recv_many(&mut changes, MAX_CHANGES).await > 0).then_some(changes)
}

/// Never, where they are not told apart.
async fn workloads_change(owners: &mut Option<Owners>) {
    match owners {
        Some(owners) => owners.change().await,
        None => std::future::pending().await,
    }
}

fn log_changes(before: &Served, now: &Served) {
    for opened in now.listeners.difference(&before.listeners) {
        info!(address = %opened.address, "serving");
    }
    for closed in before.listeners.difference(&now.listeners) {
        info!(address = %closed.address, "not serving any more");
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use socket2::SockRef;

    use super::*;

    /// A listener and its cookie.
    fn listener() -> (TcpListener, u64) {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port");
        let cookie = SockRef::from(&listener).cookie().expect("Linux has cookies");
        (listener, cookie)
    }

    #[tokio::test]
    async fn changes_that_wait_are_taken_together() {
        let (sender, receiver) = mpsc::channel(MAX_CHANGES);
        let mut receiver = Some(receiver);
        for cookie in 0..5 {
            sender.try_send((ListenerChange::Opened, cookie)).expect("room");
        }
        assert_eq!(next(&mut receiver).await.map(|changes| changes.len()), Some(5));
        drop(sender);
        assert_eq!(next(&mut receiver).await, None);
    }

    #[test]
    fn a_listener_that_opened_and_closed_meanwhile_is_none() {
        let (kept, opened) = listener();
        let (lost, closed) = listener();
        let mut listeners = Listeners::default();
        let changes = [
            (ListenerChange::Opened, opened),
            (ListenerChange::Opened, closed),
            (ListenerChange::Closed, closed),
        ];
        take(&mut listeners, &changes).expect("a dump");
        let public = listeners.public(&ExemptPorts::default(), |_| None);
        let has = |listener: &TcpListener| {
            let port = listener.local_addr().expect("an address").port();
            public.iter().any(|listener| listener.address.port() == port)
        };
        assert!(has(&kept) && !has(&lost));
    }
}
