//! What goes with a change of mode: what becomes of connections that are there, and the way back.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use super::Mode;

/// What becomes of connections in clear that are there when a service becomes strict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Existing {
    /// They go on until they end.
    #[default]
    Keep,
    /// They are reset.
    Reset,
}

/// A mode that goes back by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unconfirmed {
    /// To this one; `None` for the mesh's default.
    pub mode: Option<Mode>,
    /// At this time, by the server's clock, unless it is confirmed before. In whole seconds.
    pub until: SystemTime,
}

/// Neither of the two.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that can become of connections: use keep or reset")]
pub struct ExistingError(String);

impl FromStr for Existing {
    type Err = ExistingError;

    fn from_str(text: &str) -> Result<Self, ExistingError> {
        match text {
            "keep" => Ok(Self::Keep),
            "reset" => Ok(Self::Reset),
            _ => Err(ExistingError(crate::identity::excerpt(text))),
        }
    }
}

impl fmt::Display for Existing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Keep => "keep",
            Self::Reset => "reset",
        })
    }
}

impl fmt::Display for Unconfirmed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode.map_or("the default".to_owned(), |mode| mode.to_string());
        let until = humantime::format_rfc3339_seconds(self.until);
        write!(formatter, "goes back to {mode} at {until} unless confirmed")
    }
}
