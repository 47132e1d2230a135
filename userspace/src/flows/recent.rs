//! The flows that a worker has used lately.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use super::{Client, Flow, Flows, Key};
use crate::{
    api::v1,
    identity::{SpiffeId, Subject},
    policy::Action,
};

/// Flows that are remembered by a worker.
const MAX_RECENT: usize = 1024;

/// Where clients are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// On this host.
    Here,
    /// On others.
    Elsewhere,
}

/// One worker's memory of flows, by the caller's identity as the worker has it.
pub struct RecentFlows {
    side: Side,
    recent: RefCell<HashMap<(usize, SocketAddr, Action), Recent>>,
}

struct Recent {
    /// Holds its place in memory, which is what it is known by.
    _caller: Arc<SpiffeId>,
    flow: Weak<Flow>,
}

impl RecentFlows {
    /// Knows none yet of those whose clients are on `side`.
    pub fn new(side: Side) -> Self {
        Self { side, recent: RefCell::default() }
    }

    /// The flow of connections from `caller` to `destination` on which the rules have said `action`.
    pub fn of(
        &self,
        flows: &Flows,
        caller: &Arc<SpiffeId>,
        destination: SocketAddr,
        action: Action,
    ) -> Arc<Flow> {
        let place = (Arc::as_ptr(caller).addr(), destination, action);
        if let Some(flow) = self.recent.borrow().get(&place).and_then(|recent| recent.flow.upgrade()) {
            return flow;
        }
        let client = match (self.side, &caller.subject) {
            (Side::Here, Subject::Host(_) | Subject::Server(_) | Subject::Service(_)) => Client::Here,
            (_, subject) => Client::Known(subject.clone()),
        };
        let outcome = match action {
            Action::Allow => v1::Outcome::Allowed,
            Action::Deny => v1::Outcome::Denied,
        };
        let flow = flows.of(&Key { client, destination, outcome });
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= MAX_RECENT {
            recent.clear();
        }
        recent.insert(place, Recent { _caller: caller.clone(), flow: Arc::downgrade(&flow) });
        flow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_known_by_its_identity_however_often_that_is_made() {
        let (flows, recent) = (Flows::default(), RecentFlows::new(Side::Here));
        let caller = |name: &str| -> Arc<SpiffeId> {
            Arc::new(format!("spiffe://mesh.test/host/a/{name}").parse().expect("an identity"))
        };
        let (one, again, other) = (caller("one"), caller("one"), caller("other"));
        let find = |caller, action| recent.of(&flows, caller, ([10, 0, 0, 1], 80).into(), action);
        let first = find(&one, Action::Allow);
        assert!(
            Arc::ptr_eq(&first, &find(&one, Action::Allow))
                && Arc::ptr_eq(&first, &find(&again, Action::Allow))
        );
        assert!(
            !Arc::ptr_eq(&first, &find(&one, Action::Deny))
                && !Arc::ptr_eq(&first, &find(&other, Action::Allow))
        );
    }

    #[test]
    fn a_flow_that_was_forgotten_is_counted_anew() {
        let (flows, recent) = (Flows::default(), RecentFlows::new(Side::Here));
        let caller = Arc::new("spiffe://mesh.test/host/a/one".parse().expect("an identity"));
        let find = || recent.of(&flows, &caller, ([10, 0, 0, 1], 80).into(), Action::Allow);
        find().began(None);
        flows.lock().clear();
        find().began(None);
        assert_eq!(flows.report().flows[0].connections, 1);
    }
}
