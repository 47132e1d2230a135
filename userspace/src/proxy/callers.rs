//! Who the processes are that connect, by the credentials that the kernel half saw.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use super::{Shared, access::Caller};
use crate::{
    identity::{NodeName, SpiffeId, Subject, WorkloadName},
    workload::Credentials,
};

/// Callers that are remembered by a worker.
const MAX_CALLERS: usize = 4096;

#[derive(PartialEq, Eq, Hash)]
enum Known {
    Credentials(Credentials),
    Program(WorkloadName),
}

/// One worker's memory of this host's workloads.
pub struct Callers {
    shared: Arc<Shared>,
    known: RefCell<HashMap<Known, Arc<SpiffeId>>>,
}

impl Callers {
    /// Knows nobody yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, known: RefCell::default() }
    }

    /// The workload of `caller`; this host where nothing tells who connects. `None` if the caller's cgroup is gone, or
    /// its user cannot be looked up: anybody could be meant.
    pub async fn identity(&self, caller: Option<Caller>) -> Option<Arc<SpiffeId>> {
        let (Some(caller), Some(finder)) = (caller, self.shared.workloads.get()) else {
            return Some(self.shared.identities.host().id.clone());
        };
        let Caller { pid, credentials } = caller;
        let program = finder.by_program(pid);
        let key = program.clone().map_or(Known::Credentials(credentials), Known::Program);
        if let Some(id) = self.known.borrow().get(&key) {
            return Some(id.clone());
        }
        // Streams of callers that are known have no room for a search in their tasks.
        let workload = match program.or_else(|| finder.known(credentials)) {
            Some(workload) => workload,
            None => Box::pin(finder.find(credentials)).await?,
        };
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_CALLERS {
            known.clear();
        }
        let trust_domain = self.shared.identities.host().id.trust_domain.clone();
        let subject = Subject::Workload(NodeName::clone(&self.shared.node), workload);
        let id = Arc::new(SpiffeId { trust_domain, subject });
        known.insert(key, id.clone());
        Some(id)
    }

    /// Forgets everybody: users may have other names now.
    pub fn forget(&self) {
        self.known.borrow_mut().clear();
    }
}
