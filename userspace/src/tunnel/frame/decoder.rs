//! Frames out of a byte stream that arrives in pieces of any size.

use super::{Frame, FrameError, HEADER_LENGTH, Header, Kind, MAX_CONTROL, Open, RefusalReason, ResetReason};

/// What the decoder found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole control frame.
    Frame(Frame),
    /// Bytes of the stream: as much of a DATA payload as the input has, never empty.
    Data(&'a [u8]),
    /// Nothing yet. All of the input is consumed.
    Incomplete,
}

/// Splits a byte stream into control frames and data.
///
/// It keeps at most one control frame ([`MAX_CONTROL`] bytes) and never a byte of data, whatever is sent.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    /// The beginning of a frame that is not complete: its header, then its payload if it is a control frame.
    partial: [u8; MAX_CONTROL],
    filled: usize,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Collecting a header; `filled` is below [`HEADER_LENGTH`].
    Header,
    /// Collecting a control frame's payload behind its header.
    Control(Header),
    /// In a DATA payload, of which this many bytes are to come.
    Data(usize),
    Failed(FrameError),
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a frame.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Header, partial: [0; MAX_CONTROL], filled: 0 }
    }

    /// Decodes the next event from `input` and says how many bytes of it were consumed. Call again with the
    /// rest until [`Event::Incomplete`], which consumes everything.
    ///
    /// # Errors
    /// Any [`FrameError`] but [`FrameError::OutOfOrder`], as soon as the offending byte is seen. The decoder
    /// stays in error: every later call returns the same one.
    #[inline]
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(Event<'a>, usize), FrameError> {
        match self.state {
            State::Data(remaining) => Ok(self.data(remaining, input, 0)),
            State::Header => self.header(input),
            State::Control(header) => self.control(header, input, 0),
            State::Failed(error) => Err(error),
        }
        .inspect_err(|error| self.state = State::Failed(*error))
    }

    /// Whether the last frame is complete. The end of the input is clean only here.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        matches!(self.state, State::Header) && self.filled == 0
    }

    /// Delivers what `input[offset..]` has of the payload.
    #[inline]
    fn data<'a>(&mut self, remaining: usize, input: &'a [u8], offset: usize) -> (Event<'a>, usize) {
        let available = &input[offset..];
        let (data, _) = available.split_at(remaining.min(available.len()));
        self.state = match remaining - data.len() {
            0 => State::Header,
            left => State::Data(left),
        };
        let event = if data.is_empty() { Event::Incomplete } else { Event::Data(data) };
        (event, offset + data.len())
    }

    fn header<'a>(&mut self, input: &'a [u8]) -> Result<(Event<'a>, usize), FrameError> {
        let consumed = self.fill(HEADER_LENGTH, input);
        if self.filled < HEADER_LENGTH {
            return Ok((Event::Incomplete, consumed));
        }
        let [a, b, c, d, ..] = self.partial;
        let header = Header::decode([a, b, c, d])?;
        if header.kind == Kind::Data {
            self.filled = 0;
            return Ok(self.data(header.length, input, consumed));
        }
        self.state = State::Control(header);
        self.control(header, input, consumed)
    }

    fn control<'a>(
        &mut self,
        header: Header,
        input: &'a [u8],
        offset: usize,
    ) -> Result<(Event<'a>, usize), FrameError> {
        let end = HEADER_LENGTH + header.length;
        let consumed = offset + self.fill(end, &input[offset..]);
        if self.filled < end {
            return Ok((Event::Incomplete, consumed));
        }
        let frame = decode_control(header.kind, &self.partial[HEADER_LENGTH..end])?;
        self.state = State::Header;
        self.filled = 0;
        Ok((Event::Frame(frame), consumed))
    }

    /// Copies from `input` until `end` bytes are filled, and returns how many it took.
    fn fill(&mut self, end: usize, input: &[u8]) -> usize {
        let taken = input.len().min(end - self.filled);
        self.partial[self.filled..self.filled + taken].copy_from_slice(&input[..taken]);
        self.filled += taken;
        taken
    }
}

fn decode_control(kind: Kind, payload: &[u8]) -> Result<Frame, FrameError> {
    Ok(match (kind, payload) {
        (Kind::Open, payload) => Frame::Open(Open::decode(payload)?),
        (Kind::Accepted, []) => Frame::Accepted,
        (Kind::Refused, [number]) => Frame::Refused(RefusalReason::from_number(*number)),
        (Kind::End, []) => Frame::End,
        (Kind::Reset, [number]) => Frame::Reset(ResetReason::from_number(*number)),
        (kind, payload) => return Err(FrameError::Length { kind, length: payload.len() as u32 }),
    })
}
