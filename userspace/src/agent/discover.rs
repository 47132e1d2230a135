//! Keeps the report about this host true: what it serves, and at which addresses.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use murmesh_common::ListenerChange;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use crate::{
    catalog::{Listener, Report},
    discovery::{DiscoveryError, ExemptPorts, Listeners, host_addresses, listening_sockets},
};

/// How often everything is looked at again: it finds listeners from before the agent, whose end the kernel half is
/// not told of, and repairs whatever an event missed.
const DUMP_INTERVAL: Duration = Duration::from_secs(1);

/// What this host serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// Addresses that others may dial.
    pub addresses: BTreeSet<IpAddr>,
    /// Listeners that are meshed.
    pub listeners: BTreeSet<Listener>,
}

/// Watches this host.
pub struct Discovery {
    /// Ports that are never meshed.
    pub exempt: ExemptPorts,
    /// For the report.
    pub tunnel_port: u16,
}

impl Discovery {
    /// Publishes what is served, and reports it, at each change. `events` come from the kernel half, if there is one.
    pub async fn run(
        self,
        mut events: Option<mpsc::Receiver<(ListenerChange, u64)>>,
        served: watch::Sender<Served>,
        report: watch::Sender<Option<Report>>,
    ) -> anyhow::Result<()> {
        let mut listeners = Listeners::default();
        let mut ticks = interval(DUMP_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let looked = tokio::select! {
                _ = ticks.tick() => dump(&mut listeners),
                Some((change, cookie)) = next(&mut events) => match change {
                    ListenerChange::Opened => {
                        listeners.opened(cookie);
                        dump(&mut listeners)
                    }
                    ListenerChange::Closed => {
                        listeners.closed(cookie);
                        Ok(())
                    }
                },
            };
            if let Err(error) = looked.and_then(|()| self.publish(&listeners, &served, &report)) {
                warn!("cannot tell what this host serves: {error}");
            }
        }
    }

    fn publish(
        &self,
        listeners: &Listeners,
        served: &watch::Sender<Served>,
        report: &watch::Sender<Option<Report>>,
    ) -> Result<(), DiscoveryError> {
        let now = Served { addresses: host_addresses()?, listeners: listeners.public(&self.exempt) };
        let first = report.borrow().is_none();
        if *served.borrow() == now && !first {
            return Ok(());
        }
        log_changes(&served.borrow(), &now);
        let sent = Report {
            addresses: now.addresses.iter().copied().collect(),
            tunnel_port: self.tunnel_port,
            listeners: now.listeners.iter().copied().collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
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

/// Never, without a kernel half.
async fn next(events: &mut Option<mpsc::Receiver<(ListenerChange, u64)>>) -> Option<(ListenerChange, u64)> {
    match events {
        Some(events) => events.recv().await,
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
