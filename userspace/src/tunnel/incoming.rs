//! What is received: records are opened where they were read to, and the bytes of a stream are passed on from there.

use std::{
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use super::{
    TunnelError,
    buffer::Buffer,
    frame::{Decoder, Event, Frame},
    tls::{ContentType, Established, HEADER, MAX_RECORD, RecordError, Session, record_length},
};

/// Pieces of a stream that are passed on by one call.
pub const MAX_PIECES: usize = 16;

/// How many more records may carry nothing than carry something. Each costs the one who gets it more than the one who
/// sends it.
const MAX_BARREN: u8 = 32;

/// The alert that ends a session without an error, RFC 8446 section 6.1.
const CLOSE_NOTIFY: u8 = 0;

/// Received bytes that are not dealt with, and what is known of them. Holds a buffer only while there are some.
#[derive(Default)]
pub struct Incoming {
    buffer: Option<Buffer>,
    /// Content of the last opened record that is not decoded.
    content: Range<usize>,
    /// What was read and not opened.
    sealed: Range<usize>,
    /// Bytes of the stream that are not consumed.
    pieces: Pieces,
    /// A control frame behind them.
    frame: Option<Frame>,
    decoder: Decoder,
    /// The other side has said that it sends no more.
    closed: bool,
    /// The other side wants a new key to be used towards it.
    key_update_requested: bool,
    /// It has used a new key itself.
    key_updated: bool,
    /// Records that carried nothing, less those that carried something since.
    barren: u8,
}

/// What the other side sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// A control frame.
    Frame(Frame),
    /// Bytes of the stream: see [`Incoming::data`].
    Data,
}

impl Incoming {
    /// Begins with what came during the handshake.
    pub fn new(established: &Established) -> Self {
        let (received, undecrypted) = (&established.received, &established.undecrypted);
        let mut incoming = Self::default();
        let end = received.len() + undecrypted.len();
        if end > 0 {
            let mut buffer = Buffer::take();
            buffer[..received.len()].copy_from_slice(received);
            buffer[received.len()..end].copy_from_slice(undecrypted);
            incoming.buffer = Some(buffer);
        }
        (incoming.content, incoming.sealed) = (0..received.len(), received.len()..end);
        incoming
    }

    /// The next item of what is here, or `None` when more must be read. Call it only when [`Self::data`] is empty.
    /// `Data` gathers what follows without a control frame between.
    ///
    /// # Errors
    /// The other side does not keep to TLS or to the tunnel protocol.
    pub fn next(&mut self, session: &mut Session) -> Result<Option<Item>, TunnelError> {
        while self.frame.is_none() && !self.pieces.is_full() {
            if self.content.is_empty() && !self.open_record(session)? {
                break;
            }
            let Some(buffer) = &self.buffer else { break };
            let (event, consumed) = self.decoder.next(&buffer[self.content.clone()])?;
            match event {
                Event::Data(bytes) => {
                    let end = self.content.start + consumed;
                    self.pieces.push(end - bytes.len()..end);
                }
                Event::Frame(frame) => self.frame = Some(frame),
                Event::Incomplete => {}
            }
            self.content.start += consumed;
        }
        self.give_back();
        // A frame's turn is when the data before it has been passed on.
        if self.pieces.is_empty() { Ok(self.frame.take().map(Item::Frame)) } else { Ok(Some(Item::Data)) }
    }

    /// Reads more. `false` is the end of the connection.
    pub fn poll_read(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.closed {
            return Poll::Ready(Ok(false));
        }
        let mut buffer = self.buffer.take().unwrap_or_else(Buffer::take);
        if self.sealed.is_empty() {
            self.sealed = 0..0;
        } else if buffer.len() - self.sealed.start < MAX_RECORD {
            // The rest of the record that has begun might not fit behind it.
            buffer.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
        let mut space = ReadBuf::new(&mut buffer[self.sealed.end..]);
        let read = Pin::new(stream).poll_read(context, &mut space);
        let length = space.filled().len();
        self.sealed.end += length;
        self.buffer = (!self.sealed.is_empty()).then_some(buffer);
        ready!(read)?;
        Poll::Ready(Ok(length > 0))
    }

    /// Bytes of the stream that are not consumed, in order.
    pub fn data(&self) -> impl Iterator<Item = IoSlice<'_>> {
        let bytes: &[u8] = self.buffer.as_deref().unwrap_or_default();
        self.pieces.iter().map(move |piece| IoSlice::new(&bytes[piece]))
    }

    /// Drops bytes from the front of [`Self::data`].
    pub fn consume(&mut self, length: usize) {
        self.pieces.consume(length);
        self.give_back();
    }

    /// Whether there are unconsumed bytes of the stream.
    pub fn has_data(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Whether there is nothing that is not dealt with.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_none() && self.frame.is_none() && self.decoder.is_between_frames()
    }

    /// Whether the other side wants a new key to be used towards it; asked once.
    pub fn take_key_update_request(&mut self) -> bool {
        std::mem::take(&mut self.key_update_requested)
    }

    /// Whether the other side has updated its key since the handshake.
    pub fn is_key_updated(&self) -> bool {
        self.key_updated
    }

    /// Opens the next record whose content is the tunnel's. `false` when none is complete.
    fn open_record(&mut self, session: &mut Session) -> Result<bool, TunnelError> {
        while let Some(buffer) = &mut self.buffer {
            let sealed = &mut buffer[self.sealed.clone()];
            let Some(header) = sealed.first_chunk::<HEADER>() else { return Ok(false) };
            let length = record_length(*header)?;
            let Some(record) = sealed.get_mut(..length) else { return Ok(false) };
            let (kind, content) = session.opener.open(record)?;
            let begin = self.sealed.start + HEADER;
            self.sealed.start += length;
            if kind == ContentType::ApplicationData && content > 0 {
                self.content = begin..begin + content;
                self.barren = self.barren.saturating_sub(1);
                return Ok(true);
            }
            self.barren += 1;
            if self.barren > MAX_BARREN {
                return Err(RecordError::Barren.into());
            }
            match kind {
                ContentType::ApplicationData => {}
                ContentType::Handshake => {
                    let message = &buffer[begin..begin + content];
                    self.key_update_requested |= session.handle_handshake(message)?;
                    self.key_updated = true;
                }
                ContentType::Alert => match &buffer[begin..begin + content] {
                    [_, CLOSE_NOTIFY] => {
                        self.closed = true;
                        self.sealed = 0..0;
                    }
                    alert => return Err(RecordError::alert(alert).into()),
                },
            }
            self.give_back();
        }
        Ok(false)
    }

    fn give_back(&mut self) {
        if self.content.is_empty() && self.sealed.is_empty() && self.pieces.is_empty() {
            self.buffer = None;
        }
    }
}

/// A short queue of ranges. Idle tunnels are many, so that it is small.
#[derive(Default)]
struct Pieces {
    ranges: [Range<u32>; MAX_PIECES],
    begin: u8,
    end: u8,
}

impl Pieces {
    /// Of a buffer, whose length is far below what a `u32` holds.
    fn push(&mut self, range: Range<usize>) {
        if self.is_empty() {
            (self.begin, self.end) = (0, 0);
        }
        self.ranges[usize::from(self.end)] = range.start as u32..range.end as u32;
        self.end += 1;
    }

    fn consume(&mut self, mut length: usize) {
        while length > 0 {
            let front = &mut self.ranges[usize::from(self.begin)];
            let step = length.min(front.len());
            front.start += step as u32;
            length -= step;
            if front.start == front.end {
                self.begin += 1;
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        let ranges = &self.ranges[usize::from(self.begin)..usize::from(self.end)];
        ranges.iter().map(|range| range.start as usize..range.end as usize)
    }

    fn is_full(&self) -> bool {
        !self.is_empty() && usize::from(self.end) == MAX_PIECES
    }

    fn is_empty(&self) -> bool {
        self.begin == self.end
    }
}
