//! One worker's memory of what the rules say, so that a stream costs a look at a table.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, rc::Rc, sync::Arc};

use super::{
    Shared,
    rules::{Found, Rules},
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
    known: HashMap<(Arc<SpiffeId>, SocketAddr), Option<Judged>>,
}

/// What the rules say of a connection, and of whom they say it.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Whether it is allowed.
    pub verdict: Verdict,
    /// Its ends.
    pub found: Rc<Found>,
}

impl Judge {
    /// Knows nothing yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, answers: RefCell::default() }
    }

    /// What the rules say. `None` if the caller is nobody who connects to services.
    pub fn judge(&self, connection: &Connection) -> Option<Judged> {
        let rules = self.shared.rules.load();
        let answers = &mut *self.answers.borrow_mut();
        if !Arc::ptr_eq(&answers.rules, &rules) || answers.known.len() >= MAX_ANSWERS {
            *answers = Answers { rules: rules.clone(), known: HashMap::new() };
        }
        let Connection { caller, node, destination } = connection;
        let answer = answers.known.entry((caller.clone(), *destination)).or_insert_with(|| {
            let found = rules.find(caller, node, *destination)?;
            Some(Judged { verdict: rules.judge(&found), found: Rc::new(found) })
        });
        answer.clone()
    }
}
