//! A rule: who may, or may not, reach what.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use super::{DestinationPattern, IdentityPattern};

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It is refused.
    Deny,
    /// It is made.
    #[default]
    Allow,
}

/// The number of a rule. Never given twice in a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(NonZeroU32);

impl RuleId {
    /// The number as the kernel half and the API know it, in which 0 stands for no rule.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The number; never 0.
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

/// Who may, or may not, reach what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub id: RuleId,
    /// What it says.
    pub action: Action,
    /// About whom.
    pub source: IdentityPattern,
    /// On the way to what.
    pub destination: DestinationPattern,
    /// It is only reported what would be different if it were in force.
    pub dry_run: bool,
}

impl Rule {
    /// Rules with less come first.
    pub(super) fn order(&self) -> impl Ord + use<> {
        use std::cmp::Reverse;
        let (source, destination) = (self.source.specificity(), self.destination.specificity());
        (Reverse(source), Reverse(destination), self.action, self.id)
    }
}

/// Not the number of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the number of a rule; `murmesh policy list` shows them")]
pub struct RuleIdError(String);

impl FromStr for RuleId {
    type Err = RuleIdError;

    fn from_str(text: &str) -> Result<Self, RuleIdError> {
        text.parse().map(Self).map_err(|_| RuleIdError(crate::identity::excerpt(text)))
    }
}

/// Neither allow nor deny.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither allow nor deny")]
pub struct ActionError(String);

impl FromStr for Action {
    type Err = ActionError;

    fn from_str(text: &str) -> Result<Self, ActionError> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(ActionError(crate::identity::excerpt(text))),
        }
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.action, self.source, self.destination)
    }
}
