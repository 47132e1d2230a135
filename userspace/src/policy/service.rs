//! Services that an administrator has named.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Existing, Network, Unconfirmed};
use crate::identity::{NodeName, ServiceName, WorkloadName};

/// What happens to connections that come to a service outside of the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// All connections to it are only counted: none is encrypted or refused, also between hosts of the mesh.
    Observe,
    /// They are let in, in clear, and reported.
    #[default]
    Permissive,
    /// They are refused.
    Strict,
}

/// A name for a port of some hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name.
    pub name: ServiceName,
    /// The hosts that may serve it: these and no others get certificates in its name.
    pub hosts: BTreeSet<NodeName>,
    /// Its port, the same on every host.
    pub port: u16,
    /// `None` for the mesh's default.
    pub mode: Option<Mode>,
    /// Addresses outside the mesh that are let in, in clear, even when the mode is strict.
    pub exceptions: BTreeSet<Network>,
    /// Where its own mode is strict.
    pub existing: Existing,
    /// Set while its mode goes back by itself.
    pub unconfirmed: Option<Unconfirmed>,
    /// Who must be listening to go by the name; `None` for whoever does.
    pub workload: Option<WorkloadName>,
}

impl Service {
    /// Whether `workload`, listening on its port of one of its hosts, goes by its name.
    pub fn is_served_by(&self, workload: Option<&WorkloadName>) -> bool {
        self.workload.is_none() || self.workload.as_ref() == workload
    }
}

/// Not a mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a mode: use observe, permissive or strict")]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        match text {
            "observe" => Ok(Self::Observe),
            "permissive" => Ok(Self::Permissive),
            "strict" => Ok(Self::Strict),
            _ => Err(ModeError(crate::identity::excerpt(text))),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |texts: Vec<String>| texts.join(", ");
        let hosts = list(self.hosts.iter().map(ToString::to_string).collect());
        let mode = self.mode.map_or("default mode".to_owned(), |mode| mode.to_string());
        write!(formatter, "{}: port {} of {hosts}, {mode}", self.name, self.port)?;
        match &self.workload {
            Some(workload) => write!(formatter, ", served by {workload}")?,
            None => write!(formatter, ", served by whoever listens")?,
        }
        if !self.exceptions.is_empty() {
            let exceptions = list(self.exceptions.iter().map(ToString::to_string).collect());
            write!(formatter, " except for {exceptions}")?;
        }
        if self.existing == Existing::Reset {
            formatter.write_str(", resets what is there in clear when it becomes strict")?;
        }
        match &self.unconfirmed {
            Some(unconfirmed) => write!(formatter, ", {unconfirmed}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Observe => "observe",
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        })
    }
}
