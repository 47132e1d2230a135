//! Which frame may follow which: the rules of one stream, and of the recycled tunnel after it.

use super::{Frame, FrameError, Kind};

/// The two ends of a tunnel. The opener dialled it and opens every stream on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client's agent.
    Opener,
    /// The service's agent.
    Acceptor,
}

impl std::fmt::Display for Side {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Opener => "opener",
            Self::Acceptor => "acceptor",
        })
    }
}

/// Where one direction of a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No stream is open.
    Idle,
    /// The acceptor was asked for a stream and has not answered.
    Asked,
    /// Data may be sent.
    Streaming,
    /// The sender is done; the other direction is not.
    Ended,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Idle => "idle",
            Self::Asked => "waiting for its answer",
            Self::Streaming => "streaming",
            Self::Ended => "ended",
        })
    }
}

/// The state of a tunnel's current stream, updated by every frame that is sent and received.
///
/// Each side keeps one. The order of frames within a direction is the order on the wire; the only rule
/// between the directions (the acceptor answers an OPEN) cannot be upset by frames in flight, so both sides
/// may check both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    opener: Phase,
    acceptor: Phase,
}

impl Default for StreamState {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamState {
    /// A tunnel with no stream.
    #[must_use]
    pub fn new() -> Self {
        Self { opener: Phase::Idle, acceptor: Phase::Idle }
    }

    /// `sender` sends a control frame. When it ends the second direction, the tunnel is idle again.
    ///
    /// # Errors
    /// [`FrameError::OutOfOrder`], and the state stays as it was.
    pub fn control(&mut self, sender: Side, frame: &Frame) -> Result<(), FrameError> {
        let next = match (sender, self.phase(sender), frame.kind()) {
            (Side::Opener, Phase::Idle, Kind::Open) => {
                self.acceptor = Phase::Asked;
                Phase::Streaming
            }
            (Side::Acceptor, Phase::Asked, Kind::Accepted) => Phase::Streaming,
            (Side::Acceptor, Phase::Asked, Kind::Refused) => Phase::Ended,
            (_, Phase::Streaming, Kind::End | Kind::Reset) => Phase::Ended,
            (sender, phase, kind) => return Err(FrameError::OutOfOrder { sender, kind, phase }),
        };
        match sender {
            Side::Opener => self.opener = next,
            Side::Acceptor => self.acceptor = next,
        }
        if (self.opener, self.acceptor) == (Phase::Ended, Phase::Ended) {
            *self = Self::new();
        }
        Ok(())
    }

    /// `sender` sends data: allowed from its OPEN or ACCEPTED to its END or RESET.
    ///
    /// # Errors
    /// [`FrameError::OutOfOrder`].
    #[inline]
    pub fn data(&self, sender: Side) -> Result<(), FrameError> {
        match self.phase(sender) {
            Phase::Streaming => Ok(()),
            phase => Err(FrameError::OutOfOrder { sender, kind: Kind::Data, phase }),
        }
    }

    /// Where the direction from `sender` stands.
    #[inline]
    #[must_use]
    pub fn phase(&self, sender: Side) -> Phase {
        match sender {
            Side::Opener => self.opener,
            Side::Acceptor => self.acceptor,
        }
    }

    /// Whether no stream is open: the opener may send OPEN, or close the tunnel cleanly.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.opener == Phase::Idle
    }
}
