//! What a rule says about sources and destinations.

use std::fmt;

use super::{Network, Party, Protocol};
use crate::identity::{NodeName, ServiceName, WorkloadName};

/// One component of an identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component<T> {
    /// `*`: whatever it is.
    Any,
    /// This and no other.
    Exactly(T),
}

/// Which identities. Written as the path of a SPIFFE id with `*` for whole components.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdentityPattern {
    /// `*`: everything in the mesh.
    Any,
    /// `host/NODE/WORKLOAD`. `host/NODE/*` is the host with all that it vouches for.
    Workload(Component<NodeName>, Component<WorkloadName>),
    /// `service/NAME`.
    Service(Component<ServiceName>),
}

impl IdentityPattern {
    /// The patterns, of all that there can be, that cover `party`: each more specific one before those that are less
    /// so.
    pub(super) fn all_of(party: &Party) -> Vec<Self> {
        use Component::{Any, Exactly};
        let node = || Exactly(party.node.clone());
        let workload = || party.workload.clone().map(Exactly);
        let mut patterns = Vec::with_capacity(8);
        patterns.extend(workload().map(|workload| Self::Workload(node(), workload)));
        patterns.extend(party.services.iter().map(|name| Self::Service(Exactly(name.clone()))));
        patterns.push(Self::Workload(node(), Any));
        patterns.extend(workload().map(|workload| Self::Workload(Any, workload)));
        patterns.push(Self::Workload(Any, Any));
        if !party.services.is_empty() {
            patterns.push(Self::Service(Any));
        }
        patterns.push(Self::Any);
        patterns
    }

    /// Whether it speaks of `party`.
    pub fn covers(&self, party: &Party) -> bool {
        Self::all_of(party).contains(self)
    }

    /// How narrow it is: a pattern with a higher number comes first.
    pub(super) fn specificity(&self) -> u16 {
        use Component::{Any, Exactly};
        match self {
            Self::Workload(Exactly(_), Exactly(_)) | Self::Service(Exactly(_)) => 4,
            Self::Workload(Exactly(_), Any) => 3,
            Self::Workload(Any, Exactly(_)) => 2,
            Self::Workload(Any, Any) | Self::Service(Any) => 1,
            Self::Any => 0,
        }
    }
}

/// Which destinations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DestinationPattern {
    /// Services of the mesh.
    Mesh {
        /// Who serves.
        identity: IdentityPattern,
        /// On this port; `None` for any.
        port: Option<u16>,
    },
    /// Addresses outside the mesh.
    Outside(Outside),
}

impl DestinationPattern {
    /// How narrow it is: a pattern with a higher number comes first. Only ever compared among patterns of one kind,
    /// because no destination is of both.
    pub(super) fn specificity(&self) -> u16 {
        match self {
            Self::Mesh { identity, port } => 2 * identity.specificity() + u16::from(port.is_some()),
            Self::Outside(outside) => {
                let protocol = u16::from(outside.protocol.is_some());
                4 * u16::from(outside.network.length()) + 2 * u16::from(outside.port.is_some()) + protocol
            }
        }
    }
}

/// Some addresses outside the mesh, and how they are dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outside {
    /// The addresses.
    pub network: Network,
    /// On this port; `None` for any.
    pub port: Option<u16>,
    /// By this protocol; `None` for either.
    pub protocol: Option<Protocol>,
}

impl<T: fmt::Display> fmt::Display for Component<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("*"),
            Self::Exactly(name) => name.fmt(formatter),
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("*"),
            Self::Workload(node, workload) => write!(formatter, "host/{node}/{workload}"),
            Self::Service(name) => write!(formatter, "service/{name}"),
        }
    }
}

impl fmt::Display for DestinationPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh { identity, port: None } => identity.fmt(formatter),
            Self::Mesh { identity, port: Some(port) } => write!(formatter, "{identity}:{port}"),
            Self::Outside(outside) => outside.fmt(formatter),
        }
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.network.address().is_ipv6()) {
            (None, _) => self.network.fmt(formatter)?,
            (Some(port), false) => write!(formatter, "{}:{port}", self.network)?,
            (Some(port), true) => write!(formatter, "[{}]:{port}", self.network)?,
        }
        match self.protocol {
            Some(protocol) => write!(formatter, "/{protocol}"),
            None => Ok(()),
        }
    }
}
