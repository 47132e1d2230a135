//! Looks after the named services of this host that have a check, and says which of them fail.

mod probe;
mod tracker;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use super::discover::Served;
use crate::{
    catalog::{Catalog, MAX_REASON_BYTES},
    identity::{NodeName, ServiceName},
    policy::Check,
};
use probe::Prober;
use tracker::{Tracker, Turn};

/// Named services whose check fails, and how.
pub type Failing = BTreeMap<ServiceName, String>;

/// Runs the checks of this host.
pub struct Health {
    /// This host's name.
    pub node: NodeName,
    /// `SO_MARK` of the agent's own sockets.
    pub mark: Option<u32>,
    /// Where the programs for checks are.
    pub directory: PathBuf,
    /// Where what fails is told.
    pub failing: Arc<watch::Sender<Failing>>,
}

/// A check that runs, until it is dropped.
struct Running {
    check: Check,
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Health {
    /// Runs those checks that are wanted of services that listen here.
    ///
    /// # Errors
    /// Nobody tells any more what is wanted.
    pub async fn run(
        self,
        mut catalog: watch::Receiver<Arc<Catalog>>,
        mut served: watch::Receiver<Served>,
    ) -> anyhow::Result<()> {
        let mut running = HashMap::<ServiceName, Running>::new();
        loop {
            let wanted = wanted(&self.node, &catalog.borrow_and_update(), &served.borrow_and_update());
            running.retain(|name, running| {
                let is_wanted = wanted
                    .get(name)
                    .is_some_and(|(check, address)| *check == running.check && *address == running.address);
                if !is_wanted {
                    // Whoever begins to listen is well, until a check says otherwise.
                    self.failing.send_if_modified(|failing| failing.remove(name).is_some());
                }
                is_wanted
            });
            for (name, (check, address)) in wanted {
                running.entry(name).or_insert_with_key(|name| self.start(name.clone(), check, address));
            }
            if *served.borrow() != Served::default() {
                // What another agent knew of services that are not checked any more.
                self.failing.send_if_modified(|failing| {
                    let before = failing.len();
                    failing.retain(|name, _| running.contains_key(name));
                    failing.len() != before
                });
            }
            tokio::select! {
                changed = catalog.changed() => changed?,
                changed = served.changed() => changed?,
            }
        }
    }

    fn start(&self, name: ServiceName, check: Check, address: SocketAddr) -> Running {
        let prober = Prober { address, mark: self.mark, directory: self.directory.clone() };
        let task = tokio::spawn(follow(name, check.clone(), prober, self.failing.clone()));
        Running { check, address, task: task.abort_handle() }
    }
}

/// The checks of services that listen here, each with where that is dialled.
fn wanted(node: &NodeName, catalog: &Catalog, served: &Served) -> BTreeMap<ServiceName, (Check, SocketAddr)> {
    let services = catalog.policy.services().values().filter(|service| service.hosts.contains(node));
    let wanted = services.filter_map(|service| {
        let check = service.check.clone()?;
        let listens = |ip: &&std::net::IpAddr| {
            let mut listeners = served.listeners.iter();
            listeners.any(|listener| {
                let is_it = service.is_served_by(listener.workload.as_ref());
                is_it && listener.address.port() == service.port && listener.accepts(**ip)
            })
        };
        let ip = served.addresses.iter().find(listens)?;
        Some((service.name.clone(), (check, SocketAddr::new(*ip, service.port))))
    });
    wanted.collect()
}

async fn follow(name: ServiceName, check: Check, prober: Prober, failing: Arc<watch::Sender<Failing>>) {
    let mut ticks = interval(check.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tracker = Tracker::new(failing.borrow().contains_key(&name));
    loop {
        ticks.tick().await;
        let result = prober.probe(&check.probe, check.timeout).await;
        match tracker.take(&check, result) {
            Some(Turn::Failing(reason)) => {
                warn!(service = %name, "the check of a service on this host fails: {reason}");
                failing.send_modify(|failing| drop(failing.insert(name.clone(), shortened(reason))));
            }
            Some(Turn::Well) => {
                info!(service = %name, "the check of a service on this host succeeds again");
                failing.send_modify(|failing| drop(failing.remove(&name)));
            }
            None => {}
        }
    }
}

fn shortened(mut reason: String) -> String {
    let end = (0..=reason.len().min(MAX_REASON_BYTES)).rev().find(|end| reason.is_char_boundary(*end));
    reason.truncate(end.unwrap_or_default());
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::Listener,
        policy::{Policy, Probe, Service},
    };

    fn listener(address: &str) -> Listener {
        Listener { address: address.parse().expect("an address"), ipv6_only: false, workload: None }
    }

    #[test]
    fn what_has_a_check_and_listens_here_is_checked_where_it_listens() {
        let (here, there): (NodeName, NodeName) =
            ("here".parse().expect("a name"), "there".parse().expect("a name"));
        let mut policy = Policy::default();
        for (name, port, node, check) in [
            ("web", 80, &here, Some(Check::from(Probe::Tcp))),
            ("silent", 81, &here, Some(Check::from(Probe::Tcp))),
            ("unchecked", 82, &here, None),
            ("elsewhere", 83, &there, Some(Check::from(Probe::Tcp))),
        ] {
            let service = Service::new(name.parse().expect("a name"), [node.clone()], port);
            policy.put_service(Service { check, ..service });
        }
        let catalog = Catalog { policy: policy.into(), ..Catalog::default() };
        let served = Served {
            addresses: ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().expect("an address")).into(),
            link_local: [].into(),
            listeners: ["10.0.0.2:80", "0.0.0.0:82", "0.0.0.0:83"].map(listener).into(),
        };
        let wanted = wanted(&here, &catalog, &served);
        let wanted: Vec<_> =
            wanted.iter().map(|(name, (_, address))| (name.as_str(), address.to_string())).collect();
        assert_eq!(wanted, [("web", "10.0.0.2:80".to_owned())]);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(shortened("short".to_owned()), "short");
        let long = shortened("é".repeat(MAX_REASON_BYTES));
        assert_eq!(long.len(), MAX_REASON_BYTES);
        assert_eq!(shortened(format!("a{long}")).len(), MAX_REASON_BYTES - 1);
    }
}
