//! Why a stream was refused or reset. The numbers are part of the protocol and are never used again for
//! another meaning.
//!
//! An unknown number is not an error: a later version may tell reasons apart that this one does not know, and
//! the stream is refused or reset all the same.

/// Why the acceptor did not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// 1: nothing on this host listens on the destination, or it may not be reached from outside.
    NotAService,
    /// 2: the destination's port refused the connection.
    ConnectionRefused,
    /// 3: there is no route to the destination.
    Unreachable,
    /// 4: the destination did not answer in time.
    TimedOut,
    /// 5: the client's address does not belong to the host that opened the tunnel.
    SourceNotAllowed,
    /// 6: the policy forbids it.
    Denied,
    /// 7: the acceptor is shutting down and takes no new streams.
    Draining,
    /// 8: the acceptor could not serve the stream for a reason of its own, such as a limit on open files.
    Internal,
    /// 9: the destination is another service than the one that the tunnel was opened for.
    AnotherService,
    /// A number that this version does not know.
    Unknown(u8),
}

impl RefusalReason {
    /// The reason with this number on the wire.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::NotAService,
            2 => Self::ConnectionRefused,
            3 => Self::Unreachable,
            4 => Self::TimedOut,
            5 => Self::SourceNotAllowed,
            6 => Self::Denied,
            7 => Self::Draining,
            8 => Self::Internal,
            9 => Self::AnotherService,
            unknown => Self::Unknown(unknown),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::NotAService => 1,
            Self::ConnectionRefused => 2,
            Self::Unreachable => 3,
            Self::TimedOut => 4,
            Self::SourceNotAllowed => 5,
            Self::Denied => 6,
            Self::Draining => 7,
            Self::Internal => 8,
            Self::AnotherService => 9,
            Self::Unknown(number) => number,
        }
    }

    /// A name from a bounded set, for logs and metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAService => "not_a_service",
            Self::ConnectionRefused => "connection_refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::Denied => "denied",
            Self::Draining => "draining",
            Self::Internal => "internal",
            Self::AnotherService => "another_service",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Why a stream broke off after it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// 1: the program at the sender's side reset its connection, or it broke.
    ByPeer,
    /// 2: the program at the sender's side did not read or acknowledge in time.
    TimedOut,
    /// 3: the sender's agent is shutting down.
    Shutdown,
    /// 4: a policy or certificate change forbids the stream now.
    Policy,
    /// 5: the other side broke this protocol.
    Protocol,
    /// A number that this version does not know.
    Unknown(u8),
}

impl ResetReason {
    /// The reason with this number on the wire.
    #[must_use]
    pub fn from_number(number: u8) -> Self {
        match number {
            1 => Self::ByPeer,
            2 => Self::TimedOut,
            3 => Self::Shutdown,
            4 => Self::Policy,
            5 => Self::Protocol,
            unknown => Self::Unknown(unknown),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::ByPeer => 1,
            Self::TimedOut => 2,
            Self::Shutdown => 3,
            Self::Policy => 4,
            Self::Protocol => 5,
            Self::Unknown(number) => number,
        }
    }

    /// A name from a bounded set, for logs and metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ByPeer => "by_peer",
            Self::TimedOut => "timed_out",
            Self::Shutdown => "shutdown",
            Self::Policy => "policy",
            Self::Protocol => "protocol",
            Self::Unknown(_) => "unknown",
        }
    }
}
