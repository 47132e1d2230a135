//! Who may begin a connection to one of Murmesh's own ports, before and after it is known who that is.
//!
//! Threats: anybody may connect to ports 9190 and 9191, and what a connection takes before it has proved who it is must
//! be bounded, for all together and for one source, so that one source does not keep the others out. A host that has
//! proved who it is may be hostile, and must not take everything either.

mod refused;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};

use crate::identity::NodeName;
pub use refused::{Refusal, Refusals, Refused};

/// One source may have this part of a limit while nobody else has more than the rest.
const MOST: usize = 2;

/// Each source may have this part of a limit as long as there is anything.
const SHARE: usize = 16;

/// For how long the beginnings of connections are counted together.
const PERIOD: Duration = Duration::from_secs(1);

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// That have not proved who they are.
    pub unproved: usize,
    /// That strangers begin in a second.
    pub begun: usize,
    /// Of one host.
    pub of_host: usize,
    /// Of all hosts.
    pub of_hosts: usize,
}

impl Limits {
    /// Of an agent that may have so many descriptors: each connection of a host may take two, and a quarter of them is
    /// out of the reach of any one host.
    pub fn of_agent(descriptors: usize) -> Self {
        let unproved = (descriptors / 8).clamp(64, 4096);
        let of_hosts = descriptors.saturating_sub(unproved) / 2;
        Self { unproved, begun: 1024, of_host: of_hosts / 4 * 3, of_hosts }
    }

    /// Of a server that may have so many descriptors: a host needs a connection or two.
    pub fn of_server(descriptors: usize) -> Self {
        let (unproved, of_hosts) = ((descriptors / 4).clamp(64, 4096), (descriptors / 2).clamp(64, 8192));
        Self { unproved, begun: usize::MAX, of_host: 16, of_hosts }
    }
}

/// How many descriptors this process may have.
pub fn descriptors() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Where a connection comes from: an IPv4 address, or an IPv6 network of 64 bits, in which one machine has every
/// address that it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address => address,
        })
    }
}

/// Counts connections, and says which are too many.
#[derive(Debug)]
pub struct Admission {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    unproved: Counts<Source>,
    begun: Counts<Source>,
    /// When the counting of beginnings began.
    since: Instant,
    hosts: Counts<NodeName>,
}

#[derive(Debug)]
struct Counts<Key> {
    all: usize,
    each: HashMap<Key, usize>,
}

/// The place of a connection that has not proved who it is. Free again when it is dropped.
#[derive(Debug)]
pub struct Unproved {
    admission: Arc<Admission>,
    source: Source,
}

/// The place of a connection of a host. Free again when it is dropped.
#[derive(Debug)]
pub struct Seat {
    admission: Arc<Admission>,
    node: NodeName,
}

impl Admission {
    /// Nobody is here.
    pub fn new(limits: Limits) -> Self {
        let state = State {
            unproved: Counts::default(),
            begun: Counts::default(),
            since: Instant::now(),
            hosts: Counts::default(),
        };
        Self { limits, state: Mutex::new(state) }
    }

    /// A place for a connection of which only is known where it comes from.
    ///
    /// # Errors
    /// There are too many.
    pub fn admit(self: &Arc<Self>, source: Source) -> Result<Unproved, Refused> {
        self.admit_at(source, Instant::now())
    }

    fn admit_at(self: &Arc<Self>, source: Source, now: Instant) -> Result<Unproved, Refused> {
        let mut state = self.state();
        if now.saturating_duration_since(state.since) >= PERIOD {
            (state.begun, state.since) = (Counts::default(), now);
        }
        state.unproved.check(&source, self.limits.unproved)?;
        state.begun.check(&source, self.limits.begun).map_err(|_| Refused::TooOften)?;
        state.begun.add(source);
        state.unproved.add(source);
        Ok(Unproved { admission: self.clone(), source })
    }

    /// A place for a connection of `node`.
    ///
    /// # Errors
    /// It has too many, or there are too many.
    pub fn seat(self: &Arc<Self>, node: &NodeName) -> Result<Seat, Refused> {
        let mut state = self.state();
        if state.hosts.of(node) >= self.limits.of_host {
            return Err(Refused::TooManyOfHost);
        }
        if state.hosts.all >= self.limits.of_hosts {
            return Err(Refused::Full);
        }
        state.hosts.add(node.clone());
        Ok(Seat { admission: self.clone(), node: node.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts are whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Whose it is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }
}

impl Drop for Unproved {
    fn drop(&mut self) {
        self.admission.state().unproved.remove(&self.source);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.admission.state().hosts.remove(&self.node);
    }
}

impl<Key: Hash + Eq> Counts<Key> {
    fn of(&self, key: &Key) -> usize {
        self.each.get(key).copied().unwrap_or_default()
    }

    fn check(&self, key: &Key, limit: usize) -> Result<(), Refused> {
        let share = if self.all < limit / MOST { limit } else { limit / SHARE };
        if self.all >= limit {
            Err(Refused::TooMany)
        } else if self.of(key) >= share {
            Err(Refused::TooManyOfSource)
        } else {
            Ok(())
        }
    }

    fn add(&mut self, key: Key) {
        self.all += 1;
        *self.each.entry(key).or_default() += 1;
    }

    fn remove(&mut self, key: &Key) {
        if let Some(count) = self.each.get_mut(key) {
            (*count, self.all) = (*count - 1, self.all - 1);
            if *count == 0 {
                self.each.remove(key);
            }
        }
    }
}

impl<Key> Default for Counts<Key> {
    fn default() -> Self {
        Self { all: 0, each: HashMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { unproved: 64, begun: 1_000_000, of_host: 6, of_hosts: 8 };

    fn source(number: u16) -> Source {
        Source::from(IpAddr::V4(std::net::Ipv4Addr::from_bits(number.into())))
    }

    #[test]
    fn one_source_gets_half_and_leaves_the_others_their_share() {
        let admission = Arc::new(Admission::new(LIMITS));
        let mut flood: Vec<_> = (0..32).map(|_| admission.admit(source(0)).expect("a half")).collect();
        assert_eq!(admission.admit(source(0)).err(), Some(Refused::TooManyOfSource));
        for other in 1..=8 {
            flood.extend((0..4).map(|_| admission.admit(source(other)).expect("a share")));
        }
        assert_eq!(admission.admit(source(9)).err(), Some(Refused::TooMany));
        drop(flood);
        assert!(admission.state().unproved.each.is_empty(), "nothing is remembered of who is gone");
        assert!(admission.admit(source(0)).is_ok());
    }

    #[test]
    fn so_many_are_begun_in_a_second_and_not_more() {
        let limits = Limits { begun: 32, unproved: usize::MAX, ..LIMITS };
        let (admission, now) = (Arc::new(Admission::new(limits)), Instant::now());
        let begin = |number, milliseconds| {
            admission.admit_at(source(number), now + Duration::from_millis(milliseconds)).err()
        };
        assert!((0..16).all(|_| begin(0, 0).is_none()));
        assert_eq!(begin(0, 1), Some(Refused::TooOften));
        assert_eq!([begin(1, 2), begin(1, 3), begin(1, 4)], [None, None, Some(Refused::TooOften)]);
        assert_eq!(begin(0, 2000), None);
    }

    #[test]
    fn one_host_does_not_take_every_seat() {
        let admission = Arc::new(Admission::new(LIMITS));
        let node = |name: &str| name.parse::<NodeName>().expect("a name");
        let seats: Vec<_> = (0..6).map(|_| admission.seat(&node("traitor")).expect("a seat")).collect();
        assert_eq!(admission.seat(&node("traitor")).err(), Some(Refused::TooManyOfHost));
        let others = ["a", "b"].map(|name| admission.seat(&node(name)).expect("a seat"));
        assert_eq!(admission.seat(&node("c")).err(), Some(Refused::Full));
        assert_eq!(others[0].node(), &node("a"));
        drop(seats);
        assert!(admission.seat(&node("traitor")).is_ok());
    }

    #[test]
    fn one_machine_is_one_source() {
        let source = |text: &str| Source::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(source("2001:db8:0:1::1"), source("2001:db8:0:1:ffff::2"));
        assert_ne!(source("2001:db8:0:1::1"), source("2001:db8:0:2::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.2"), source("192.0.2.1"));
    }

    #[test]
    fn limits_follow_the_descriptors() {
        let agent = Limits::of_agent(20_000);
        assert_eq!((agent.unproved, agent.of_host, agent.of_hosts), (2500, 6561, 8750));
        assert!(agent.unproved + 2 * agent.of_hosts <= 20_000);
        assert!(Limits::of_agent(1_000_000).of_host > 70_000);
        let server = Limits::of_server(20_000);
        assert_eq!((server.unproved, server.of_hosts), (4096, 8192));
    }
}
