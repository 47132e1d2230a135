//! Services that an administrator has named.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::{Balance, Check, Existing, Network, Unconfirmed};
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
    /// Which healthy instance a connection gets.
    pub balance: Balance,
    /// How its hosts find out whether it is well; `None` if it is enough that somebody listens.
    pub check: Option<Check>,
    /// Hosts whose instance takes no new connections.
    pub drained: BTreeSet<NodeName>,
}

impl Service {
    /// One that has nothing special about it.
    pub fn new(name: ServiceName, hosts: impl IntoIterator<Item = NodeName>, port: u16) -> Self {
        Self {
            name,
            hosts: hosts.into_iter().collect(),
            port,
            mode: None,
            exceptions: BTreeSet::new(),
            workload: None,
            existing: Existing::default(),
            unconfirmed: None,
            balance: Balance::default(),
            check: None,
            drained: BTreeSet::new(),
        }
    }

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
        if let Some(unconfirmed) = &self.unconfirmed {
            write!(formatter, ", {unconfirmed}")?;
        }
        if self.balance != Balance::Pinned {
            write!(formatter, ", {}", self.balance)?;
        }
        if let Some(check) = &self.check {
            write!(formatter, ", check {}", check.probe)?;
        }
        if !self.drained.is_empty() {
            let drained = list(self.drained.iter().map(ToString::to_string).collect());
            write!(formatter, ", drained: {drained}")?;
        }
        Ok(())
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
