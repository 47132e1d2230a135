//! What is sent: bytes of an application are read to where their record will be, sealed there, and sent from there.

use std::{
    future::Future,
    io::{self, IoSliceMut},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, Interest, ReadBuf},
    net::tcp::ReadHalf,
};

use super::{
    buffer::{BARE_FRAME, Buffer, KEY_UPDATE, PREFIX, RECORD, RECORDS},
    frame::{Frame, HEADER_LENGTH, MAX_CONTROL, write_data_header},
    tls::{ContentType, HEADER, KEY_UPDATE_MESSAGE, MAX_PLAINTEXT, OVERHEAD, RecordError, Session},
};

/// Bytes of the stream in one record: each record carries one whole frame.
const PAYLOAD: usize = MAX_PLAINTEXT - HEADER_LENGTH;

/// Bytes of an application, on their way into records.
pub struct Payload {
    buffer: Buffer,
    length: usize,
    is_last: bool,
}

/// What else is to be sent, in front of the rest.
#[derive(Debug, Default, Clone, Copy)]
pub struct Before {
    /// The other side wants another key to be used towards it.
    pub key_update: bool,
    /// ACCEPTED was held back.
    pub accepted: bool,
}

/// Sealed records, sent from the front.
pub struct Outgoing {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Payload {
    /// Reads as much as is there and fits. `None` is the end of the application's sending, unless it came with the
    /// last bytes.
    pub fn poll_read(
        application: &mut ReadHalf<'_>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Self>>> {
        let mut payload = Self { buffer: Buffer::take(), length: 0, is_last: false };
        let mut slots = payload.buffer[PREFIX..].chunks_exact_mut(RECORD).map(payload_of);
        let mut first = ReadBuf::new(slots.next().unwrap_or_default());
        // This read knows that a buffer filled in part means that there is no more, which saves asking again.
        ready!(Pin::new(&mut *application).poll_read(context, &mut first))?;
        let mut length = first.filled().len();
        let is_closed = (1..PAYLOAD).contains(&length) && is_closed(application, context);
        if is_closed {
            match application.try_read(first.initialize_unfilled()) {
                Ok(0) => payload.is_last = true,
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The kernel tells of a reset once; the next read would meet an end.
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if length == PAYLOAD && !is_closed {
            let mut further: [IoSliceMut<'_>; RECORDS - 1] =
                std::array::from_fn(|_| IoSliceMut::new(slots.next().unwrap_or_default()));
            match application.try_read_vectored(&mut further) {
                // The next read meets an end again.
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // As above.
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        payload.length = length;
        Poll::Ready(Ok((length > 0).then_some(payload)))
    }

    /// A copy of `bytes`, which the application sent before, and ended behind them if `is_last`.
    ///
    /// # Panics
    /// They are more than eight records hold.
    pub fn copied(bytes: &[u8], is_last: bool) -> Self {
        assert!(bytes.len() <= RECORDS * PAYLOAD, "{} bytes are more than a payload", bytes.len());
        let mut payload = Self { buffer: Buffer::take(), length: bytes.len(), is_last };
        let slots = payload.buffer[PREFIX..].chunks_exact_mut(RECORD).map(payload_of);
        for (slot, piece) in slots.zip(bytes.chunks(PAYLOAD)) {
            slot[..piece.len()].copy_from_slice(piece);
        }
        payload
    }

    /// The bytes, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let slots = self.buffer[PREFIX..].chunks_exact(RECORD);
        slots.enumerate().map_while(|(number, slot)| {
            let length = self.length.saturating_sub(number * PAYLOAD).min(PAYLOAD);
            (length > 0).then(|| &slot[HEADER + HEADER_LENGTH..][..length])
        })
    }

    /// Bytes of the application.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether the application sends nothing after them.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// Makes DATA frames of them, one in each record, and END if they are the last.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn seal(mut self, session: &mut Session, before: Before) -> Result<Outgoing, RecordError> {
        let start = begin(&mut self.buffer, session, before)?;
        let mut end = PREFIX;
        let mut left = self.length;
        for slot in self.buffer[PREFIX..].chunks_exact_mut(RECORD) {
            let length = left.min(PAYLOAD);
            if length == 0 {
                break;
            }
            write_data_header(&mut slot[HEADER..][..HEADER_LENGTH + length]);
            let record = &mut slot[..HEADER_LENGTH + length + OVERHEAD];
            session.sealer.seal(ContentType::ApplicationData, record)?;
            end += record.len();
            left -= length;
        }
        if self.is_last {
            end += seal_frame(&Frame::End, &mut self.buffer[end..], session)?;
        }
        Ok(Outgoing { buffer: self.buffer, start, end })
    }
}

impl Outgoing {
    /// Nothing but what goes in front.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn nothing(session: &mut Session, before: Before) -> Result<Self, RecordError> {
        let mut buffer = Buffer::take();
        let start = begin(&mut buffer, session, before)?;
        Ok(Self { buffer, start, end: PREFIX })
    }

    /// One control frame.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn control(frame: &Frame, session: &mut Session, before: Before) -> Result<Self, RecordError> {
        let mut outgoing = Self::nothing(session, before)?;
        outgoing.end += seal_frame(frame, &mut outgoing.buffer[PREFIX..], session)?;
        Ok(outgoing)
    }

    /// What is still to be sent.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// `length` bytes were sent.
    pub fn sent(&mut self, length: usize) {
        self.start += length;
        debug_assert!(self.start <= self.end);
    }
}

/// Where in a record's place the bytes of the stream are.
fn payload_of(slot: &mut [u8]) -> &mut [u8] {
    &mut slot[HEADER + HEADER_LENGTH..][..PAYLOAD]
}

/// Whether the application sends no more, as far as the runtime has heard.
fn is_closed(application: &ReadHalf<'_>, context: &mut Context<'_>) -> bool {
    let ready = std::pin::pin!(application.ready(Interest::READABLE));
    matches!(ready.poll(context), Poll::Ready(Ok(ready)) if ready.is_read_closed())
}

/// Fills the room in front of the records from its end. Returns where to begin sending.
fn begin(buffer: &mut Buffer, session: &mut Session, before: Before) -> Result<usize, RecordError> {
    let key_update = before.key_update || session.is_worn();
    let mut start = PREFIX;
    if before.accepted {
        start -= BARE_FRAME;
    }
    let accepted = start;
    if key_update {
        // The last record under the old key.
        start -= KEY_UPDATE;
        let record = &mut buffer[start..][..KEY_UPDATE];
        record[HEADER..][..KEY_UPDATE_MESSAGE.len()].copy_from_slice(&KEY_UPDATE_MESSAGE);
        session.sealer.seal(ContentType::Handshake, record)?;
        session.update_sealer()?;
    }
    if before.accepted {
        seal_frame(&Frame::Accepted, &mut buffer[accepted..PREFIX], session)?;
    }
    Ok(start)
}

/// Puts a control frame into a record at the beginning of `space`. Returns the record's length.
fn seal_frame(frame: &Frame, space: &mut [u8], session: &mut Session) -> Result<usize, RecordError> {
    let mut encoded = [0; MAX_CONTROL];
    let encoded = frame.encode(&mut encoded);
    let record = &mut space[..encoded.len() + OVERHEAD];
    record[HEADER..][..encoded.len()].copy_from_slice(encoded);
    session.sealer.seal(ContentType::ApplicationData, record)?;
    Ok(record.len())
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::socket;

    #[tokio::test]
    async fn a_reset_right_behind_a_full_record_is_no_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap());
        let (program, accepted) = tokio::join!(connected, listener.accept());
        let (mut program, (mut application, _)) = (program.unwrap(), accepted.unwrap());
        program.write_all(&[0; PAYLOAD]).await.unwrap();
        application.readable().await.unwrap();
        socket::reset_on_close(&program).unwrap();
        drop(program);
        application.ready(Interest::ERROR).await.unwrap();

        let (mut reader, _writer) = application.split();
        loop {
            let payload = poll_fn(|context| Payload::poll_read(&mut reader, context)).await;
            match payload.map(|payload| payload.map(|payload| payload.length())) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a reset was taken for an end"),
                Err(error) => return assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
            }
        }
    }
}
