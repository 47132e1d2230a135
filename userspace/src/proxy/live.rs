//! The streams that are open on one worker, so that a change of the rules can cut those that are forbidden now.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::poll_fn,
    os::fd::{AsRawFd, RawFd},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use slab::Slab;
use tokio::{sync::watch, time::timeout};

use super::{
    Shared,
    relay::{RelayError, Totals},
    removals::Removals,
    rules::{Found, Rules},
};
use crate::{
    flows::{FlowId, Moved, Moving},
    policy::{Action, RuleId},
    socket,
    tunnel::{Tunnel, frame::ResetReason},
};

/// How much later than the other host this one may hear of new rules, and still say which one it was.
const NEWS_TIMEOUT: Duration = Duration::from_secs(1);

/// Tunnels of one worker of which the kernel is asked the round trip when somebody wants to know.
const MAX_ROUND_TRIPS: usize = 1000;

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
    flow: FlowId,
    totals: Cell<Totals>,
    /// The connection of the tunnel, for as long as there is one.
    socket: Cell<Option<RawFd>>,
    forbidden: Cell<Option<Forbidden>>,
    waker: RefCell<Option<Waker>>,
}

/// An open stream's place among the others, until it is dropped.
pub struct Place<'a> {
    live: &'a Live,
    key: usize,
}

impl Live {
    /// Takes note of a stream of `flow` that has just been judged, and allowed: nothing may be waited for in between.
    pub fn enter(&self, found: Rc<Found>, flow: FlowId) -> Place<'_> {
        let entry = Entry {
            found,
            since: Instant::now(),
            flow,
            totals: Cell::default(),
            socket: Cell::default(),
            forbidden: Cell::default(),
            waker: RefCell::default(),
        };
        Place { live: self, key: self.0.borrow_mut().insert(entry) }
    }

    /// Judges all streams again whenever `changed` says that the rules are new, for as long as the worker runs. Their
    /// ends stay who they were.
    pub async fn follow(&self, shared: &Shared, mut changed: watch::Receiver<()>) {
        while changed.changed().await.is_ok() {
            self.review(&shared.rules.load(), &shared.removals.load());
        }
    }

    /// What they have moved so far.
    pub fn moved(&self) -> Moved {
        let (mut moved, mut asked) = (Moved::default(), 0);
        for (_, entry) in self.0.borrow().iter() {
            let Totals { sent, received } = entry.totals.get();
            let socket = entry.socket.get().filter(|_| asked < MAX_ROUND_TRIPS);
            asked += usize::from(socket.is_some());
            let round_trip = socket.and_then(|socket| socket::round_trip_of(socket).ok());
            moved.add(entry.flow, Moving { sent, received, round_trip });
        }
        moved
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
    /// From now on it is carried by `tunnel`, or by none.
    pub fn carried_by(&self, tunnel: Option<&Tunnel>) {
        let socket = tunnel.map(|tunnel| tunnel.socket().as_raw_fd());
        self.live.0.borrow()[self.key].socket.set(socket);
    }

    /// Takes note of what it has moved so far.
    pub fn note(&self, totals: Totals) {
        self.live.0.borrow()[self.key].totals.set(totals);
    }

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
        api::v1,
        catalog::Catalog,
        flows::{Client, Flows, Key},
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
        let enter = |found| live.enter(found, FlowId::of(&Arc::default()));
        let (to, other) = (enter(between("here", "gone")), enter(between("there", "here")));
        let before = enter(between("gone", "here"));
        let mut removed = Removed::default();
        removed.insert("gone".parse().expect("a name"), std::time::SystemTime::now());
        let removals = Removals::default().followed_by(removed.into());
        let after = enter(between("gone", "here"));
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
        let flow = FlowId::of(&Arc::default());
        let (place, gone) = (live.enter(found.clone(), flow), live.enter(found, flow));
        let mut context = Context::from_waker(Waker::noop());
        live.review(&rules(Action::Allow), &Removals::default());
        assert!(place.poll_forbidden(&mut context).is_pending());
        drop(gone);
        live.review(&rules(Action::Deny), &Removals::default());
        assert_eq!(place.poll_forbidden(&mut context), Poll::Ready(Forbidden::Rules(None)));
        assert_eq!(live.0.borrow().len(), 1);
    }

    #[test]
    fn streams_of_one_flow_are_added_up_while_they_are_open() {
        let caller = "spiffe://mesh.test/host/there/user-root".parse().expect("an identity");
        let (here, service) = ("here".parse().expect("a name"), "10.0.0.1:80".parse().expect("an address"));
        let found = Rc::new(rules(Action::Allow).find(&caller, &here, service).expect("a caller"));
        let (live, flows) = (Live::default(), Flows::default());
        let outcome = v1::Outcome::Allowed;
        let flow = flows.of(&Key { client: Client::Here, destination: service, outcome });
        let (one, other) =
            (live.enter(found.clone(), FlowId::of(&flow)), live.enter(found, FlowId::of(&flow)));
        one.note(Totals { sent: 1, received: 2 });
        other.note(Totals { sent: 10, received: 20 });
        let moved = |live: &Live| flows.seen().remove(0).by_now(&live.moved()).moved;
        assert_eq!((moved(&live).sent, moved(&live).received), (11, 22));
        drop(other);
        assert_eq!(moved(&live), Moving { sent: 1, received: 2, round_trip: None });
    }
}
