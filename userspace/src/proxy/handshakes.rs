//! How many handshakes a worker does at a time: those beyond wait in order. Hosts of the mesh and strangers do not wait
//! for each other, and neither does one source for as many as another has begun.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::admission::Source;

/// Of hosts, by their addresses; and of one of them.
const HOSTS: (usize, usize) = (256, 128);

/// Of everybody else; and of one source.
const STRANGERS: (usize, usize) = (64, 32);

/// One worker's.
pub struct Handshakes {
    hosts: Permits,
    strangers: Permits,
}

struct Permits {
    all: Semaphore,
    of_source: usize,
    /// Of those sources that have, or wait for, a permit.
    each: RefCell<HashMap<Source, Arc<Semaphore>>>,
}

/// Held during a handshake.
pub struct Permit<'a> {
    _all: Result<SemaphorePermit<'a>, AcquireError>,
    _own: Result<OwnedSemaphorePermit, AcquireError>,
    _entry: Entry<'a>,
}

/// Takes a source's semaphore away after its last user.
struct Entry<'a> {
    permits: &'a Permits,
    source: Source,
    semaphore: Arc<Semaphore>,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self { hosts: Permits::new(HOSTS), strangers: Permits::new(STRANGERS) }
    }
}

impl Handshakes {
    /// Waits for a permit for a connection from `source`, which is an address of a host or not.
    pub async fn permit(&self, source: Source, is_host: bool) -> Permit<'_> {
        let permits = if is_host { &self.hosts } else { &self.strangers };
        let entry = permits.entry(source);
        // They are never closed, which is the only error.
        let own = entry.semaphore.clone().acquire_owned().await;
        Permit { _all: permits.all.acquire().await, _own: own, _entry: entry }
    }
}

impl Permits {
    fn new((all, of_source): (usize, usize)) -> Self {
        Self { all: Semaphore::new(all), of_source, each: RefCell::default() }
    }

    fn entry(&self, source: Source) -> Entry<'_> {
        let mut each = self.each.borrow_mut();
        let semaphore = each.entry(source).or_insert_with(|| Semaphore::new(self.of_source).into());
        Entry { permits: self, source, semaphore: semaphore.clone() }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        // One is in the table and one is here.
        if Arc::strong_count(&self.semaphore) == 2 {
            self.permits.each.borrow_mut().remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures_util::FutureExt as _;

    use super::*;

    fn source(text: &str) -> Source {
        Source::from(text.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn one_source_leaves_permits_to_others_and_is_forgotten_when_it_goes() {
        let (handshakes, flood, other) = (Handshakes::default(), source("192.0.2.1"), source("192.0.2.2"));
        let permit = |source, is_host| handshakes.permit(source, is_host).now_or_never();
        let mut held = Vec::new();
        while let Some(permit) = permit(flood, false) {
            held.push(permit);
        }
        assert_eq!(held.len(), STRANGERS.1);
        assert!(permit(other, false).is_some(), "another stranger");
        assert!(permit(flood, true).is_some(), "a host");
        held.pop();
        assert!(permit(flood, false).is_some());
        drop(held);
        assert!(handshakes.strangers.each.borrow().is_empty() && handshakes.hosts.each.borrow().is_empty());
    }
}
