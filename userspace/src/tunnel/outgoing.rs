//! What is sent: bytes of an application are read to where their record will be, sealed there, and sent from there.

use std::{
    io::{self, IoSliceMut},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::tcp::ReadHalf,
};

use super::{
    buffer::{Buffer, PREFIX, RECORD, RECORDS},
    frame::{Frame, HEADER_LENGTH, MAX_CONTROL, write_data_header},
    tls::{ContentType, HEADER, KEY_UPDATE_MESSAGE, MAX_PLAINTEXT, OVERHEAD, RecordError, Session},
};

/// Bytes of the stream in one record: each record carries one whole frame.
const PAYLOAD: usize = MAX_PLAINTEXT - HEADER_LENGTH;

/// Bytes of an application, on their way into records.
pub struct Payload {
    buffer: Buffer,
    length: usize,
}

/// Sealed records, sent from the front.
pub struct Outgoing {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Payload {
    /// Reads as much as is there and fits. `None` is the end of the application's sending.
    pub fn poll_read(
        application: &mut ReadHalf<'_>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<Self>>> {
        let mut payload = Self { buffer: Buffer::take(), length: 0 };
        let mut slots = payload.buffer[PREFIX..].chunks_exact_mut(RECORD).map(payload_of);
        let mut first = ReadBuf::new(slots.next().unwrap_or_default());
        // This read knows that a buffer filled in part means that there is no more, which saves asking again.
        ready!(Pin::new(&mut *application).poll_read(context, &mut first))?;
        let mut length = first.filled().len();
        if length == PAYLOAD {
            let mut further: [IoSliceMut<'_>; RECORDS - 1] =
                std::array::from_fn(|_| IoSliceMut::new(slots.next().unwrap_or_default()));
            match application.try_read_vectored(&mut further) {
                // The next read meets an end again.
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The kernel tells of a reset once; the next read would meet an end.
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        payload.length = length;
        Poll::Ready(Ok((length > 0).then_some(payload)))
    }

    /// Bytes of the application.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Makes DATA frames of them, one in each record.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn seal(mut self, session: &mut Session, update_key: bool) -> Result<Outgoing, RecordError> {
        let start = begin(&mut self.buffer, session, update_key)?;
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
        Ok(Outgoing { buffer: self.buffer, start, end })
    }
}

impl Outgoing {
    /// One control frame.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn control(frame: &Frame, session: &mut Session, update_key: bool) -> Result<Self, RecordError> {
        let mut buffer = Buffer::take();
        let start = begin(&mut buffer, session, update_key)?;
        let mut encoded = [0; MAX_CONTROL];
        let encoded = frame.encode(&mut encoded);
        let record = &mut buffer[PREFIX..][..encoded.len() + OVERHEAD];
        record[HEADER..][..encoded.len()].copy_from_slice(encoded);
        session.sealer.seal(ContentType::ApplicationData, record)?;
        let end = PREFIX + record.len();
        Ok(Self { buffer, start, end })
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

/// Puts a key update in front of the records, if one is due: it is the last record under the old key. Returns where
/// to begin sending.
fn begin(buffer: &mut Buffer, session: &mut Session, update_key: bool) -> Result<usize, RecordError> {
    if !update_key && !session.is_worn() {
        return Ok(PREFIX);
    }
    let record = &mut buffer[..PREFIX];
    record[HEADER..][..KEY_UPDATE_MESSAGE.len()].copy_from_slice(&KEY_UPDATE_MESSAGE);
    session.sealer.seal(ContentType::Handshake, record)?;
    session.update_sealer()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::Ipv4Addr};

    use tokio::{
        io::{AsyncWriteExt, Interest},
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
