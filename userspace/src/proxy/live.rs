//! The streams that are open on one worker, so that a change of the rules can cut those that are forbidden now.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use slab::Slab;
use tokio::{sync::watch, time::timeout};

use super::{
    Shared,
    relay::RelayError,
    removals::Removals,
    rules::{Found, Rules},
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
    found: Rc<Found>,
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
    pub fn enter(&self, found: Rc<Found>) -> Place<'_> {
        let (forbidden, waker) = (Cell::new(None), RefCell::new(None));
        let entry = Entry { found, since: Instant::now(), forbidden, waker };
        Place { live: self, key: self.0.borrow_mut().insert(entry) }
    }

    /// Judges all streams again whenever `changed` says that the rules are new, for as long as the worker runs. Their
    /// ends stay who they were.
    pub async fn follow(&self, shared: &Shared, mut changed: watch::Receiver<()>) {
        while changed.changed().await.is_ok() {
            self.review(&shared.rules.load(), &shared.removals.load());
        }
    }

    fn review(&self, rules: &Rules, removals: &Removals) {
        let (entries, mut verdicts) = (self.0.borrow(), HashMap::new());
        for (_, entry) in entries.iter().filter(|(_, entry)| entry.forbidden.get().is_none()) {
            let verdict = verdicts.entry(&*entry.found).or_insert_with_key(|found| rules.judge(found));
            let forbidden = if removals.cut(&entry.found, entry.since) {
                Forbidden::Removed
            } else if verdict.action == Action::Allow {
                continue;
            } else {
                Forbidden::Rules(verdict.rule)
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
    use super::*;
    use crate::{
        catalog::Catalog,
        identity::{NodeName, Removed},
        policy::{Defaults, Policy},
        proxy::LocalServices,
    };

    fn rules(mesh: Action) -> Rules {
        let mut policy = Policy::default();
        policy.defaults = Defaults { mesh, ..Defaults::default() };
        let catalog = Catalog { policy: policy.into(), ..Catalog::default() };
        Rules::new(catalog.into(), LocalServices::default().into(), "here".parse().expect("a name"))
    }

    #[test]
    fn streams_of_a_removed_host_are_cut_and_later_ones_are_not() {
        let open = rules(Action::Allow);
        let between = |caller: &str, node: &str| {
            let caller = format!("spiffe://mesh.test/host/{caller}/user-root").parse().expect("an identity");
            let (node, service): (NodeName, _) = (node.parse().expect("a name"), ([10, 0, 0, 1], 80).into());
            Rc::new(open.find(&caller, &node, service).expect("a caller"))
        };
        let live = Live::default();
        let (to, other) = (live.enter(between("here", "gone")), live.enter(between("there", "here")));
        let before = live.enter(between("gone", "here"));
        let mut removed = Removed::default();
        removed.insert("gone".parse().expect("a name"), std::time::SystemTime::now());
        let removals = Removals::default().followed_by(removed.into());
        let after = live.enter(between("gone", "here"));
        live.review(&open, &removals);
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
        let caller = "spiffe://mesh.test/host/there/user-root".parse().expect("an identity");
        let (here, service) = ("here".parse().expect("a name"), "10.0.0.1:80".parse().expect("an address"));
        let found = Rc::new(rules(Action::Allow).find(&caller, &here, service).expect("a caller"));
        let live = Live::default();
        let (place, gone) = (live.enter(found.clone()), live.enter(found));
        let mut context = Context::from_waker(Waker::noop());
        live.review(&rules(Action::Allow), &Removals::default());
        assert!(place.poll_forbidden(&mut context).is_pending());
        drop(gone);
        live.review(&rules(Action::Deny), &Removals::default());
        assert_eq!(place.poll_forbidden(&mut context), Poll::Ready(Forbidden::Rules(None)));
        assert_eq!(live.0.borrow().len(), 1);
    }
}
