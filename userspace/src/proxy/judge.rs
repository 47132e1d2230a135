//! One worker's memory of what the rules say, so that a stream costs a look at a table.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use super::{
    Shared,
    rules::{ALLOWED, Rules},
};
use crate::{
    identity::{NodeName, SpiffeId},
    policy::Verdict,
};

/// Answers that are remembered. There are as many as pairs of callers and destinations in use; beyond this, those of
/// whoever tries them all are forgotten together with the rest.
const MAX_ANSWERS: usize = 16 * 1024;

/// What is judged.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who connects.
    pub caller: Arc<SpiffeId>,
    /// Whose address it leads to.
    pub node: Arc<NodeName>,
    /// The address.
    pub destination: SocketAddr,
}

/// Judges by the newest rules.
pub struct Judge {
    shared: Arc<Shared>,
    answers: RefCell<Answers>,
}

#[derive(Default)]
struct Answers {
    /// The rules that gave them.
    rules: Arc<Rules>,
    known: HashMap<(Arc<SpiffeId>, SocketAddr), Option<Verdict>>,
}

impl Judge {
    /// Knows nothing yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, answers: RefCell::default() }
    }

    /// Whether one of the two hosts of a connection was removed after it was opened, at `since`.
    pub fn is_removed(&self, connection: &Connection, since: Instant) -> bool {
        let removals = self.shared.removals.load();
        let is_newer = |node: &NodeName| removals.heard.get(node).is_some_and(|heard| *heard >= since);
        is_newer(&connection.node) || connection.caller.node().is_some_and(is_newer)
    }

    /// What the rules say; as [`Rules::judge`].
    pub fn judge(&self, connection: &Connection) -> Option<Verdict> {
        let rules = self.shared.rules.load();
        if rules.is_open() {
            return Some(ALLOWED);
        }
        let answers = &mut *self.answers.borrow_mut();
        if !Arc::ptr_eq(&answers.rules, &rules) || answers.known.len() >= MAX_ANSWERS {
            *answers = Answers { rules: rules.clone(), known: HashMap::new() };
        }
        let Connection { caller, node, destination } = connection;
        let answer = answers.known.entry((caller.clone(), *destination));
        *answer.or_insert_with(|| rules.judge(caller, node, *destination))
    }
}
