//! A look at the connections of tunnels from time to time. The kernel tells at once of what arrives; that nothing
//! arrives any more, and an error behind data that an application does not take, must be looked for.

use std::{
    cell::{Cell, RefCell},
    task::Waker,
    time::Duration,
};

use slab::Slab;
use tokio::time::{MissedTickBehavior, interval};

/// How often the watchdog looks.
const INTERVAL: Duration = Duration::from_millis(2500);

/// One worker's watchdog. A stream that ends before the next look costs an entry in a table, and no timer.
#[derive(Default)]
pub struct Watchdog {
    looks: Cell<u64>,
    /// Who is to look next time.
    waiting: RefCell<Slab<Waker>>,
}

/// A place at a watchdog.
pub struct Watch<'a> {
    watchdog: &'a Watchdog,
    armed: Option<Armed>,
}

struct Armed {
    /// Looks before the one that is waited for.
    looks: u64,
    key: usize,
}

impl Watchdog {
    /// Looks, for as long as the worker runs.
    pub async fn run(&self) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look();
        }
    }

    /// A place for a stream.
    pub fn watch(&self) -> Watch<'_> {
        Watch { watchdog: self, armed: None }
    }

    fn look(&self) {
        self.looks.set(self.looks.get() + 1);
        for (_, waker) in self.waiting.take() {
            waker.wake();
        }
    }
}

impl Watch<'_> {
    /// Has `waker`'s task woken at the next look.
    pub fn arm(&mut self, waker: &Waker) {
        if self.armed.is_none() {
            let key = self.watchdog.waiting.borrow_mut().insert(waker.clone());
            self.armed = Some(Armed { looks: self.watchdog.looks.get(), key });
        }
    }

    /// Whether it is time to look, which is so once after each [`Self::arm`].
    pub fn is_due(&mut self) -> bool {
        self.armed.take_if(|armed| armed.looks != self.watchdog.looks.get()).is_some()
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // A look has emptied the table, and others may have the place by now.
        if let Some(armed) = &self.armed
            && armed.looks == self.watchdog.looks.get()
        {
            self.watchdog.waiting.borrow_mut().remove(armed.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_due_once_for_those_that_asked() {
        let watchdog = Watchdog::default();
        let (mut asking, mut silent) = (watchdog.watch(), watchdog.watch());
        asking.arm(Waker::noop());
        assert!(!asking.is_due());
        watchdog.look();
        assert!(asking.is_due() && !asking.is_due() && !silent.is_due());
    }

    #[test]
    fn who_leaves_takes_nobody_elses_place() {
        let watchdog = Watchdog::default();
        let (mut before, mut after) = (watchdog.watch(), watchdog.watch());
        before.arm(Waker::noop());
        watchdog.look();
        after.arm(Waker::noop());
        drop(before);
        assert_eq!(watchdog.waiting.borrow().len(), 1);
        drop(after);
        assert!(watchdog.waiting.borrow().is_empty());
    }
}
