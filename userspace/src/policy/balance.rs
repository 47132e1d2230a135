//! Which healthy instance of a named service a new connection gets.

use std::fmt;
use std::str::FromStr;

/// How connections are spread over a service's healthy instances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Each goes to the instance that it was dialled at, and elsewhere only while that one is not healthy.
    #[default]
    Pinned,
    /// To one after the other.
    RoundRobin,
    /// To the one to which the client's agent has the fewest streams.
    LeastConnections,
}

/// Not a way to balance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to balance: use pinned, round-robin or least-connections")]
pub struct BalanceError(String);

impl FromStr for Balance {
    type Err = BalanceError;

    fn from_str(text: &str) -> Result<Self, BalanceError> {
        match text {
            "pinned" => Ok(Self::Pinned),
            "round-robin" => Ok(Self::RoundRobin),
            "least-connections" => Ok(Self::LeastConnections),
            _ => Err(BalanceError(crate::identity::excerpt(text))),
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Pinned => "pinned",
            Self::RoundRobin => "round-robin",
            Self::LeastConnections => "least-connections",
        })
    }
}
