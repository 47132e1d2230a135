//! How a stream ended, as one of a bounded set of words.

use super::{carry::CarryError, relay::RelayError};
use crate::tunnel::{
    DialError, TunnelError,
    frame::{RefusalReason, ResetReason},
};

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both directions came to their end.
    Ended,
    /// The rules of this host forbade it.
    Denied,
    /// New rules forbade it, or one of its hosts was removed.
    Cut,
    /// The host of the service refused it, this one or the other.
    Refused(RefusalReason),
    /// The program at the other end, or its agent, broke it.
    Reset,
    /// The program on this host broke it.
    Application,
    /// The tunnel broke.
    TunnelLost,
    /// The other agent broke the protocol.
    Protocol,
    /// The other agent could not be reached.
    NotConnected,
    /// One of the two agents did not accept the other's certificate.
    Handshake,
    /// The caller has no certificate.
    NoCertificate,
    /// The other host was removed.
    Removed,
    /// No instance takes connections.
    NoInstance,
    /// This agent stopped, or failed.
    Stopped,
}

/// Numbers that reasons of refusal have on the wire: see [`RefusalReason::number`].
const REFUSALS: usize = 10;

/// Words for the other endings, by their place.
const OTHERS: [&str; 13] = [
    "ended",
    "rule",
    "cut",
    "reset",
    "application",
    "tunnel_lost",
    "protocol",
    "not_connected",
    "handshake",
    "no_certificate",
    "removed",
    "no_instance",
    "stopped",
];

impl Ending {
    /// How many there are.
    pub const COUNT: usize = OTHERS.len() + REFUSALS;

    /// Its place among all.
    pub fn index(self) -> usize {
        match self {
            Self::Ended => 0,
            Self::Denied => 1,
            Self::Cut => 2,
            Self::Reset => 3,
            Self::Application => 4,
            Self::TunnelLost => 5,
            Self::Protocol => 6,
            Self::NotConnected => 7,
            Self::Handshake => 8,
            Self::NoCertificate => 9,
            Self::Removed => 10,
            Self::NoInstance => 11,
            Self::Stopped => 12,
            // Those that this version does not know have the first place, whose number is nobody's.
            Self::Refused(reason) => {
                let number = usize::from(reason.number());
                OTHERS.len() + if number < REFUSALS { number } else { 0 }
            }
        }
    }

    /// The word at a place.
    pub fn name(index: usize) -> &'static str {
        let refusal = || {
            u8::try_from(index - OTHERS.len())
                .map_or("unknown", |number| RefusalReason::from_number(number).name())
        };
        OTHERS.get(index).copied().unwrap_or_else(refusal)
    }

    /// Whether it was refused, and not broken.
    pub fn is_denial(self) -> bool {
        matches!(self, Self::Denied | Self::Cut | Self::Refused(RefusalReason::Denied))
    }
}

impl From<&RelayError> for Ending {
    fn from(error: &RelayError) -> Self {
        match error {
            RelayError::Refused(reason) => Self::Refused(*reason),
            RelayError::Application(_) => Self::Application,
            RelayError::Reset(ResetReason::Policy) | RelayError::Forbidden(_) => Self::Cut,
            RelayError::Reset(_) => Self::Reset,
            RelayError::Tunnel(TunnelError::Protocol(_) | TunnelError::Tls(_)) => Self::Protocol,
            RelayError::Tunnel(_) => Self::TunnelLost,
        }
    }
}

impl From<&CarryError> for Ending {
    fn from(error: &CarryError) -> Self {
        match error {
            CarryError::Dial(DialError::Connect(..)) | CarryError::Slow(_) => Self::NotConnected,
            CarryError::Dial(DialError::NoCertificate(_)) => Self::NoCertificate,
            CarryError::Dial(DialError::AnotherService(_)) => Self::Refused(RefusalReason::AnotherService),
            CarryError::Dial(DialError::Removed(_)) => Self::Removed,
            CarryError::Dial(DialError::Handshake(..) | DialError::Identity(..)) => Self::Handshake,
            CarryError::Relay(error) => error.into(),
            CarryError::NoInstance => Self::NoInstance,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_ending_has_a_place_and_a_word_of_its_own() {
        let words: BTreeSet<_> = (0..Ending::COUNT).map(Ending::name).collect();
        assert_eq!(words.len(), Ending::COUNT, "{words:?}");
        for (ending, word) in [
            (Ending::Ended, "ended"),
            (Ending::Stopped, "stopped"),
            (Ending::Refused(RefusalReason::AnotherService), "another_service"),
            (Ending::Refused(RefusalReason::Denied), "denied"),
            (Ending::Refused(RefusalReason::Unknown(200)), "unknown"),
        ] {
            assert_eq!(Ending::name(ending.index()), word);
        }
    }
}
