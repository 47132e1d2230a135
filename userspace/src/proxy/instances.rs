//! The instances of a named service that take new connections: which one a connection gets, and which are left alone
//! for a moment because this agent could not reach them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;

use super::Peer;
use crate::{
    identity::{NodeName, ServiceName},
    policy::Balance,
};

/// How long an instance is left alone after it could not be reached; twice as long each time, up to the longest.
const EJECTION: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// What times in an instance's load count from.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Where a service is reached that has one name on several hosts, in one family of addresses.
#[derive(Debug)]
pub struct Instances {
    name: ServiceName,
    balance: Balance,
    all: Vec<Instance>,
    turn: Arc<AtomicUsize>,
}

/// One of them.
#[derive(Debug)]
pub struct Instance {
    /// It, behind the agent of its host.
    pub peer: Arc<Peer>,
    /// Where its agent dials it.
    pub address: SocketAddr,
    /// What this agent knows of it by its own connections.
    pub load: Arc<Load>,
}

/// What all workers know of an instance. It outlives the routes.
#[derive(Debug, Default)]
pub struct Load {
    streams: AtomicU64,
    /// In a row.
    failures: AtomicU32,
    /// Milliseconds since the beginning.
    ejected_until: AtomicU64,
    reason: ArcSwapOption<String>,
}

/// A stream that is open, until it is dropped.
pub struct OpenStream<'a>(&'a Load);

/// An instance that is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ejection {
    /// The service.
    pub service: ServiceName,
    /// The host of the instance.
    pub node: NodeName,
    /// Why.
    pub reason: String,
    /// For how long still.
    pub remaining: Duration,
}

/// The loads of all instances, and whose turn it is, from one set of routes to the next.
#[derive(Debug, Default)]
pub struct Loads {
    loads: HashMap<(ServiceName, NodeName), Arc<Load>>,
    turns: HashMap<ServiceName, Arc<AtomicUsize>>,
}

impl Instances {
    /// In this order.
    pub fn new(name: ServiceName, balance: Balance, all: Vec<Instance>, loads: &mut Loads) -> Self {
        let turn = loads.turns.entry(name.clone()).or_default().clone();
        Self { name, balance, all, turn }
    }

    /// Whether none takes new connections.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The number of the instance on `node`.
    pub fn position(&self, node: &NodeName) -> Option<usize> {
        self.all.iter().position(|instance| *instance.peer.node == *node)
    }

    /// The instance with a number.
    pub fn get(&self, number: usize) -> &Instance {
        &self.all[number]
    }

    /// Which one is to be tried next, after those in `tried`; `own` is the one that was dialled. Those that are left
    /// alone come last: the connection would fail without them anyway.
    pub fn choose(&self, own: Option<usize>, tried: &[usize]) -> Option<usize> {
        let is_left = |number: &usize| !tried.contains(number);
        let is_ejected = |number: &usize| self.all[*number].load.is_ejected();
        if self.balance == Balance::Pinned
            && let Some(own) = own.filter(|own| is_left(own) && !is_ejected(own))
        {
            return Some(own);
        }
        let (first, count) = (self.turn.fetch_add(1, Relaxed), self.all.len());
        let mut left = (0..count).map(|step| first.wrapping_add(step) % count).filter(is_left);
        match self.balance {
            Balance::LeastConnections => {
                left.min_by_key(|number| (is_ejected(number), self.all[*number].load.streams.load(Relaxed)))
            }
            Balance::Pinned | Balance::RoundRobin => {
                left.clone().find(|number| !is_ejected(number)).or(left.next())
            }
        }
    }

    /// Those that are left alone.
    pub fn ejections(&self) -> impl Iterator<Item = Ejection> {
        self.all.iter().filter_map(|instance| {
            let remaining = instance.load.remaining();
            (!remaining.is_zero()).then(|| Ejection {
                service: self.name.clone(),
                node: NodeName::clone(&instance.peer.node),
                reason: instance
                    .load
                    .reason
                    .load()
                    .as_ref()
                    .map(|reason| reason.to_string())
                    .unwrap_or_default(),
                remaining,
            })
        })
    }
}

impl Load {
    /// Takes note of a stream.
    pub fn open(&self) -> OpenStream<'_> {
        self.streams.fetch_add(1, Relaxed);
        OpenStream(self)
    }

    /// It could not be reached. What was tried at the same time counts once.
    pub fn failed(&self, reason: &str) {
        if self.is_ejected() {
            return;
        }
        let failures = self.failures.fetch_add(1, Relaxed);
        let pause = EJECTION.0.saturating_mul(1 << failures.min(16)).min(EJECTION.1);
        self.reason.store(Some(Arc::new(reason.to_owned())));
        self.ejected_until.store(milliseconds(BEGINNING.elapsed() + pause), Relaxed);
    }

    /// It was reached.
    pub fn succeeded(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
            self.ejected_until.store(0, Relaxed);
        }
    }

    fn is_ejected(&self) -> bool {
        // Nobody asks for the time where nothing has failed.
        self.failures.load(Relaxed) != 0 && !self.remaining().is_zero()
    }

    fn remaining(&self) -> Duration {
        let until = Duration::from_millis(self.ejected_until.load(Relaxed));
        until.saturating_sub(BEGINNING.elapsed())
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Relaxed);
    }
}

impl Loads {
    /// That of the instance of `service` on `node`.
    pub fn of(&mut self, service: &ServiceName, node: &NodeName) -> Arc<Load> {
        self.loads.entry((service.clone(), node.clone())).or_default().clone()
    }

    /// Forgets what no routes have any more.
    pub fn forget_unused(&mut self) {
        self.loads.retain(|_, load| Arc::strong_count(load) > 1);
        self.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{SpiffeId, Subject};

    fn instances(balance: Balance) -> Instances {
        let (service, mut loads): (ServiceName, _) = ("shop".parse().expect("a name"), Loads::default());
        let id = Arc::new(SpiffeId {
            trust_domain: "mesh.test".parse().expect("a name"),
            subject: Subject::Service(service.clone()),
        });
        let instance = |number: u8| {
            let node: NodeName = format!("fcs0{number}").parse().expect("a name");
            let address = SocketAddr::from(([10, 0, 0, number], 80));
            let load = loads.of(&service, &node);
            Instance {
                peer: Arc::new(Peer { id: id.clone(), node: Arc::new(node), workload: None, address }),
                address,
                load,
            }
        };
        let all = (0..3).map(instance).collect();
        Instances::new(service, balance, all, &mut loads)
    }

    #[test]
    fn a_pinned_connection_goes_elsewhere_only_when_its_own_instance_cannot_be_reached() {
        let instances = instances(Balance::Pinned);
        for _ in 0..3 {
            assert_eq!(instances.choose(Some(1), &[]), Some(1));
        }
        let other = instances.choose(Some(1), &[1]).expect("two are left");
        assert_ne!(other, 1);
        instances.get(1).load.failed("refused");
        assert_ne!(instances.choose(Some(1), &[]), Some(1));
        assert_eq!(instances.ejections().map(|ejection| ejection.reason).collect::<Vec<_>>(), ["refused"]);
        instances.get(1).load.succeeded();
        assert_eq!(instances.choose(Some(1), &[]), Some(1));
        assert_eq!(instances.choose(Some(1), &[0, 1, 2]), None);
    }

    #[test]
    fn connections_go_round() {
        let instances = instances(Balance::RoundRobin);
        let mut chosen: Vec<_> = (0..3).filter_map(|_| instances.choose(Some(0), &[])).collect();
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2]);
        instances.get(2).load.failed("refused");
        assert!((0..6).all(|_| instances.choose(None, &[]) != Some(2)));
        assert_eq!(instances.choose(None, &[0, 1]), Some(2), "rather than none");
    }

    #[test]
    fn the_one_with_the_fewest_streams_is_next() {
        let instances = instances(Balance::LeastConnections);
        let _first = [0, 0, 2].map(|number| instances.get(number).load.open());
        assert_eq!(instances.choose(Some(0), &[]), Some(1));
        let second = [1, 1].map(|number| instances.get(number).load.open());
        assert_eq!(instances.choose(None, &[]), Some(2));
        drop(second);
        assert_eq!(instances.choose(None, &[]), Some(1));
    }

    #[test]
    fn an_ejection_is_short_at_first_and_never_long() {
        let load = Load::default();
        load.failed("refused");
        load.failed("refused at the same time");
        assert!(load.remaining() <= EJECTION.0 && load.failures.load(Relaxed) == 1);
        for _ in 0..40 {
            load.ejected_until.store(0, Relaxed);
            load.failed("refused again");
        }
        assert!(load.remaining() > EJECTION.1 / 2 && load.remaining() <= EJECTION.1);
    }
}
