//! The tunnel's frames: pure encoding and decoding, without input, output or allocation.
//!
//! A frame is a 32-bit big-endian header, whose high 8 bits are the [`Kind`] and whose low 24 bits are the
//! length of the payload in bytes, and then the payload. `docs/tunnel.md` is the specification.
//!
//! Everything decoded here was written by the other side. The limits are: control frames of at most
//! [`MAX_CONTROL`] bytes, DATA payloads of 1 to [`MAX_DATA`] bytes, and exactly one encoding for an address.

mod decoder;
mod open;
mod reason;
mod state;
#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Event};
pub use open::Open;
pub use reason::{RefusalReason, ResetReason};
pub use state::{Phase, Side, StreamState};

/// Name and version of the protocol, as negotiated by ALPN (RFC 7301). Any change of the frames changes it.
pub const PROTOCOL: &str = "murmesh/1";

/// Length of a frame's header in bytes.
pub const HEADER_LENGTH: usize = 4;

/// Largest payload of a DATA frame in bytes: with its header it fills 64 KiB.
pub const MAX_DATA: usize = 64 * 1024 - HEADER_LENGTH;

/// Largest control frame in bytes, header included: an OPEN with two IPv6 addresses.
pub const MAX_CONTROL: usize = HEADER_LENGTH + open::MAX_PAYLOAD;

/// Why bytes from the other side are not this protocol. The tunnel must be closed: where the next frame
/// begins is not known any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No frame has this kind.
    #[error("unknown frame kind {0}: kinds are 1 to 6 in {PROTOCOL}")]
    UnknownKind(u8),
    /// The length is not one that a frame of this kind can have.
    #[error("a {kind} frame of {length} bytes; {limit}", limit = .kind.lengths())]
    Length {
        /// Kind in the header.
        kind: Kind,
        /// Payload length in the header, in bytes.
        length: u32,
    },
    /// The family byte of an address in OPEN.
    #[error("unknown address family {0} in an OPEN frame: 4 and 6 are possible")]
    AddressFamily(u8),
    /// The families in OPEN ask for more or fewer bytes than the frame has.
    #[error("the addresses of an OPEN frame do not fill its {0} bytes")]
    AddressLength(usize),
    /// An IPv4-mapped IPv6 address in OPEN.
    #[error("an IPv4-mapped address in an OPEN frame: it must be sent as IPv4")]
    MappedAddress,
    /// A frame that its sender may not send now.
    #[error("the {sender} sent {kind} while its direction was {phase}")]
    OutOfOrder {
        /// Who sent it.
        sender: Side,
        /// What was sent.
        kind: Kind,
        /// The state that its direction was in.
        phase: Phase,
    },
}

/// Kind of a frame; the discriminant is the number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The opener asks for a stream.
    Open = 1,
    /// The acceptor has connected to the destination.
    Accepted = 2,
    /// The acceptor has not connected; its direction has ended.
    Refused = 3,
    /// Bytes of the stream.
    Data = 4,
    /// No more bytes in the sender's direction.
    End = 5,
    /// The stream broke; the sender's direction has ended.
    Reset = 6,
}

impl Kind {
    fn from_number(number: u8) -> Result<Self, FrameError> {
        Ok(match number {
            1 => Self::Open,
            2 => Self::Accepted,
            3 => Self::Refused,
            4 => Self::Data,
            5 => Self::End,
            6 => Self::Reset,
            unknown => return Err(FrameError::UnknownKind(unknown)),
        })
    }

    fn may_have_length(self, length: usize) -> bool {
        match self {
            Self::Open => open::PAYLOAD_LENGTHS.contains(&length),
            Self::Accepted | Self::End => length == 0,
            Self::Refused | Self::Reset => length == 1,
            Self::Data => (1..=MAX_DATA).contains(&length),
        }
    }

    fn lengths(self) -> &'static str {
        match self {
            Self::Open => "it must have 14 or 38",
            Self::Accepted | Self::End => "it must be empty",
            Self::Refused | Self::Reset => "it must have one",
            Self::Data => "it must have 1 to 65532",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Open => "OPEN",
            Self::Accepted => "ACCEPTED",
            Self::Refused => "REFUSED",
            Self::Data => "DATA",
            Self::End => "END",
            Self::Reset => "RESET",
        })
    }
}

/// A frame's header, with a length that its kind can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Length of the payload in bytes.
    pub length: usize,
}

impl Header {
    /// Reads a header and checks the length against the limits of its kind.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`] and [`FrameError::Length`].
    #[inline]
    pub fn decode(bytes: [u8; HEADER_LENGTH]) -> Result<Self, FrameError> {
        let word = u32::from_be_bytes(bytes);
        let kind = Kind::from_number(bytes[0])?;
        let length = word & 0x00ff_ffff;
        if kind.may_have_length(length as usize) {
            Ok(Self { kind, length: length as usize })
        } else {
            Err(FrameError::Length { kind, length })
        }
    }

    /// The header as it goes on the wire.
    #[inline]
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LENGTH] {
        debug_assert!(self.kind.may_have_length(self.length));
        ((self.kind as u32) << 24 | self.length as u32).to_be_bytes()
    }
}

/// A whole control frame: everything but DATA, whose payload is never collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// [`Kind::Open`]
    Open(Open),
    /// [`Kind::Accepted`]
    Accepted,
    /// [`Kind::Refused`]
    Refused(RefusalReason),
    /// [`Kind::End`]
    End,
    /// [`Kind::Reset`]
    Reset(ResetReason),
}

impl Frame {
    /// Writes the frame into `buffer` and returns the part that goes on the wire.
    pub fn encode<'a>(&self, buffer: &'a mut [u8; MAX_CONTROL]) -> &'a [u8] {
        let payload = &mut buffer[HEADER_LENGTH..];
        let length = match self {
            Self::Open(open) => open.encode(payload),
            Self::Accepted | Self::End => 0,
            Self::Refused(reason) => write_byte(payload, reason.number()),
            Self::Reset(reason) => write_byte(payload, reason.number()),
        };
        buffer[..HEADER_LENGTH].copy_from_slice(&Header { kind: self.kind(), length }.encode());
        &buffer[..HEADER_LENGTH + length]
    }

    /// The kind of this frame.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open(_) => Kind::Open,
            Self::Accepted => Kind::Accepted,
            Self::Refused(_) => Kind::Refused,
            Self::End => Kind::End,
            Self::Reset(_) => Kind::Reset,
        }
    }
}

/// Makes a DATA frame of `frame` in place: the first [`HEADER_LENGTH`] bytes are overwritten by the header,
/// the rest is the payload.
///
/// # Panics
/// When the payload is empty or longer than [`MAX_DATA`]: a mistake of the caller, who owns both.
#[inline]
pub fn write_data_header(frame: &mut [u8]) {
    let length = frame.len().saturating_sub(HEADER_LENGTH);
    assert!(Kind::Data.may_have_length(length), "a DATA frame cannot carry {length} bytes");
    frame[..HEADER_LENGTH].copy_from_slice(&Header { kind: Kind::Data, length }.encode());
}

fn write_byte(payload: &mut [u8], byte: u8) -> usize {
    payload[0] = byte;
    1
}
