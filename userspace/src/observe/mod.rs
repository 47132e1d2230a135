//! What becomes of connections, for whoever watches: what the kernel half refuses or reports, and the streams of the
//! data path.
//!
//! Refusals, connections in clear and failures are remembered, as many as [`REMEMBERED`]. Streams that are opened and
//! end well are only told to those who follow: while nobody does they cost one load.

mod event;
mod filter;
mod wire;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::broadcast;

pub use event::{End, Event, Outcome, Process};
pub use filter::Filter;

/// Events that are remembered.
pub const REMEMBERED: usize = 1000;

/// Events that wait for one follower; if there are more it loses the oldest, and is told how many.
const WAITING: usize = 4096;

/// Where events are told.
#[derive(Debug)]
pub struct Observer {
    followers: AtomicUsize,
    live: broadcast::Sender<Arc<Event>>,
    remembered: Mutex<VecDeque<Arc<Event>>>,
}

/// Hears of every event from when it was made.
#[derive(Debug)]
pub struct Follower {
    observer: Arc<Observer>,
    events: broadcast::Receiver<Arc<Event>>,
}

/// What a follower hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something happened.
    Event(Arc<Event>),
    /// So many things happened before the next one, and are not told.
    Lost(u64),
}

impl Default for Observer {
    fn default() -> Self {
        Self {
            followers: AtomicUsize::new(0),
            live: broadcast::Sender::new(WAITING),
            remembered: Mutex::default(),
        }
    }
}

impl Observer {
    /// Tells an event that is remembered.
    pub fn tell(&self, event: Event) {
        let event = Arc::new(event);
        {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            if remembered.len() == REMEMBERED {
                remembered.pop_front();
            }
            remembered.push_back(event.clone());
        }
        self.mention(|| event);
    }

    /// Tells an event to those who follow. `event` is not called if nobody does.
    pub fn mention(&self, event: impl FnOnce() -> Arc<Event>) {
        if self.is_followed() {
            // The last one may just have gone.
            let _ = self.live.send(event());
        }
    }

    /// Whether anybody follows.
    pub fn is_followed(&self) -> bool {
        self.followers.load(Relaxed) != 0
    }

    /// What is remembered, the oldest first.
    pub fn remembered(&self) -> Vec<Arc<Event>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Follows from now on.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let events = self.live.subscribe();
        self.followers.fetch_add(1, Relaxed);
        Follower { observer: self.clone(), events }
    }
}

impl Follower {
    /// The next event. Nothing is lost if this is dropped while it waits.
    pub async fn next(&mut self) -> Told {
        loop {
            match self.events.recv().await {
                Ok(event) => return Told::Event(event),
                Err(broadcast::error::RecvError::Lagged(lost)) => return Told::Lost(lost),
                // Not while we hold the observer, which has the sender.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.observer.followers.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(port: u16) -> Event {
        Event { destination: ([10, 0, 0, 1], port).into(), ..Event::example() }
    }

    fn ports(events: &[Arc<Event>]) -> Vec<u16> {
        events.iter().map(|event| event.destination.port()).collect()
    }

    #[tokio::test]
    async fn what_goes_well_is_only_told_to_those_who_follow() {
        let observer = Arc::new(Observer::default());
        observer.mention(|| unreachable!("nobody follows"));
        let mut follower = observer.follow();
        observer.mention(|| Arc::new(event(1)));
        observer.tell(event(2));
        for port in [1, 2] {
            assert_eq!(follower.next().await, Told::Event(Arc::new(event(port))));
        }
        drop(follower);
        observer.mention(|| unreachable!("nobody follows any more"));
        assert_eq!(ports(&observer.remembered()), [2]);
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let observer = Observer::default();
        (0..=REMEMBERED as u16).for_each(|port| observer.tell(event(port)));
        let remembered = ports(&observer.remembered());
        assert_eq!((remembered.len(), remembered[0]), (REMEMBERED, 1));
    }

    #[tokio::test]
    async fn a_follower_that_is_too_slow_is_told_how_many_it_lost() {
        let observer = Arc::new(Observer::default());
        let mut follower = observer.follow();
        (0..WAITING as u16 + 3).for_each(|port| observer.mention(|| Arc::new(event(port))));
        assert_eq!(follower.next().await, Told::Lost(3));
        assert_eq!(follower.next().await, Told::Event(Arc::new(event(3))));
    }
}
