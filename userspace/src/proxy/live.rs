//! The streams that are open on one worker, so that a change of the rules can cut those that are forbidden now.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use slab::Slab;
use tokio::{sync::watch, time::timeout};

use super::{
    judge::{Connection, Judge},
    relay::RelayError,
};
use crate::{
    policy::{Action, RuleId},
    tunnel::frame::ResetReason,
};

/// How much later than the other host this one may hear of new rules, and still say which one it was.
const NEWS_TIMEOUT: Duration = Duration::from_secs(1);

/// One worker's open streams.
#[derive(Default)]
pub struct Live(RefCell<Slab<Entry>>);

/// What forbids a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forbidden {
    /// A rule, or the default.
    Rules(Option<RuleId>),
    /// One of its two hosts was removed from the mesh.
    Removed,
}

struct Entry {
    connection: Connection,
    /// A host that is removed later is one that the stream was opened with.
    since: Instant,
    forbidden: Cell<Option<Forbidden>>,
    waker: RefCell<Option<Waker>>,
}

/// An open stream's place among the others, until it is dropped.
pub struct Place<'a> {
    live: &'a Live,
    key: usize,
}

impl Live {
    /// Takes note of a stream that has just been judged, and allowed: nothing may be waited for in between.
    pub fn enter(&self, connection: Connection) -> Place<'_> {
        let entry = Entry {
            connection,
            since: Instant::now(),
            forbidden: Cell::new(None),
            waker: RefCell::new(None),
        };
        Place { live: self, key: self.0.borrow_mut().insert(entry) }
    }

    /// Judges all streams again whenever `changed` says that the rules are new, for as long as the worker runs.
    pub async fn follow(&self, judge: &Judge, mut changed: watch::Receiver<()>) {
        while changed.changed().await.is_ok() {
            self.review(judge);
        }
    }

    fn review(&self, judge: &Judge) {
        for (_, entry) in self.0.borrow().iter().filter(|(_, entry)| entry.forbidden.get().is_none()) {
            let forbidden = match judge.judge(&entry.connection) {
                _ if judge.is_removed(&entry.connection, entry.since) => Forbidden::Removed,
                Some(verdict) if verdict.action == Action::Allow => continue,
                Some(verdict) => Forbidden::Rules(verdict.rule),
                None => Forbidden::Rules(None),
            };
            entry.forbidden.set(Some(forbidden));
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Place<'_> {
    /// Ready once the stream is forbidden.
    pub fn poll_forbidden(&self, context: &mut Context<'_>) -> Poll<Forbidden> {
        let live = self.live.0.borrow();
        let entry = &live[self.key];
        if let Some(forbidden) = entry.forbidden.get() {
            return Poll::Ready(forbidden);
        }
        let mut waker = entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// How a stream ended. Where the other host has cut it this one waits for the rule by which it would have done so
    /// too.
    pub async fn explained(&self, result: Result<(), RelayError>) -> Result<(), RelayError> {
        let Err(RelayError::Reset(ResetReason::Policy)) = result else { return result };
        // Streams that end otherwise have no room for this in their tasks.
        let forbidden =
            Box::pin(timeout(NEWS_TIMEOUT, poll_fn(|context| self.poll_forbidden(context)))).await;
        forbidden.map_or(result, |forbidden| Err(RelayError::Forbidden(forbidden)))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.live.0.borrow_mut().remove(self.key);
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(Some(rule)) => write!(formatter, "rule {rule} forbids it"),
            Self::Rules(None) => formatter.write_str("no rule allows it"),
            Self::Removed => formatter.write_str("one of its hosts was removed from the mesh"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        catalog::Catalog,
        identity::{Removed, fixture},
        policy::{Defaults, Policy},
        proxy::{LocalServices, Rules, Shared},
    };

    fn rules(mesh: Action) -> Rules {
        let mut policy = Policy::default();
        policy.defaults = Defaults { mesh, ..Defaults::default() };
        let catalog = Catalog { policy: policy.into(), ..Catalog::default() };
        Rules::new(catalog.into(), LocalServices::default().into(), "here".parse().expect("a name"))
    }

    #[test]
    fn streams_of_a_removed_host_are_cut_and_later_ones_are_not() {
        let identity = fixture::host(&fixture::authority(), "here");
        let (shared, _wanted) = Shared::new(identity.into(), None).expect("usable");
        let shared = Arc::new(shared);
        let (judge, live) = (Judge::new(shared.clone()), Live::default());
        let between = |caller: &str, node: &str| Connection {
            caller: caller.parse().map(Arc::new).expect("an identity"),
            node: Arc::new(node.parse().expect("a name")),
            destination: "10.0.0.1:80".parse().expect("an address"),
        };
        let from = || between("spiffe://mesh.test/host/gone/user-root", "here");
        let to = live.enter(between("spiffe://mesh.test/host/here/user-root", "gone"));
        let other = live.enter(between("spiffe://mesh.test/host/there/user-root", "here"));
        let before = live.enter(from());
        let mut removed = Removed::default();
        removed.insert("gone".parse().expect("a name"), std::time::SystemTime::now());
        shared.set_removed(&Arc::new(removed));
        let after = live.enter(from());
        live.review(&judge);
        let mut context = Context::from_waker(Waker::noop());
        for cut in [before, to] {
            assert_eq!(cut.poll_forbidden(&mut context), Poll::Ready(Forbidden::Removed));
        }
        for goes_on in [after, other] {
            assert!(goes_on.poll_forbidden(&mut context).is_pending());
        }
    }

    #[test]
    fn new_rules_cut_what_they_forbid_and_wake_it() {
        let identity = fixture::host(&fixture::authority(), "here");
        let (shared, _wanted) = Shared::new(identity.into(), None).expect("usable");
        let shared = Arc::new(shared);
        let (judge, live) = (Judge::new(shared.clone()), Live::default());
        let connection = || Connection {
            caller: "spiffe://mesh.test/host/there/user-root".parse().map(Arc::new).expect("an identity"),
            node: Arc::new("here".parse().expect("a name")),
            destination: "10.0.0.1:80".parse().expect("an address"),
        };
        let (place, gone) = (live.enter(connection()), live.enter(connection()));
        let mut context = Context::from_waker(Waker::noop());
        live.review(&judge);
        assert!(place.poll_forbidden(&mut context).is_pending());
        drop(gone);
        shared.set_rules(rules(Action::Deny));
        live.review(&judge);
        assert_eq!(place.poll_forbidden(&mut context), Poll::Ready(Forbidden::Rules(None)));
        assert_eq!(live.0.borrow().len(), 1);
    }
}
