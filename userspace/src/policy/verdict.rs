//! What the rules say about one source and one destination.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Action, Network, Outside, Protocol, RuleId};
use crate::identity::{NodeName, ServiceName, Subject, WorkloadName};

/// One end of a connection in the mesh, by all the names that rules can call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Party {
    /// The host.
    pub node: NodeName,
    /// What runs there. While that is not known, rules about workloads by name do not cover it.
    pub workload: Option<WorkloadName>,
    /// The named services that it serves: of a destination, the one on its port; of a source, all.
    pub services: BTreeSet<ServiceName>,
}

impl Party {
    /// The subject of its certificate: the service if it is a named one, else the workload, else the host.
    pub fn subject(&self) -> Subject {
        match (self.services.first(), &self.workload) {
            (Some(service), _) => Subject::Service(service.clone()),
            (None, Some(workload)) => Subject::Workload(self.node.clone(), workload.clone()),
            (None, None) => Subject::Host(self.node.clone()),
        }
    }
}

/// Where a connection leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To a service of a host of the mesh, the caller's own host included.
    Mesh {
        /// Who serves it.
        party: Party,
        /// The port that is dialled.
        port: u16,
    },
    /// To somewhere else. The addresses of the caller's own host are not outside.
    Outside(Outside),
}

impl Destination {
    /// One address outside the mesh.
    pub fn outside(address: SocketAddr, protocol: Protocol) -> Self {
        let network = Network::of(address.ip());
        Self::Outside(Outside { network, port: Some(address.port()), protocol: Some(protocol) })
    }
}

/// What becomes of a connection, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Verdict {
    /// Whether it is made.
    pub action: Action,
    /// The rule that says so; `None` for the default.
    pub rule: Option<RuleId>,
    /// The dry-run rule by which the action would be the other one, if dry-run rules were in force.
    pub dry_run: Option<RuleId>,
}
