//! A tunnel: frames over one TLS connection between two agents.

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use super::{
    chunk::Chunk,
    frame::{Decoder, Event, Frame, FrameError, Phase, Side, StreamState},
};
use crate::identity::PeerIdentity;

/// Why a tunnel cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The connection broke.
    #[error("the tunnel broke: {0}")]
    Broken(#[from] io::Error),
    /// The other agent closed the connection while a stream was open.
    #[error("the other agent closed the tunnel in the middle of a stream")]
    Closed,
    /// The other agent does not keep to the protocol.
    #[error("the other agent broke the tunnel protocol: {0}")]
    Protocol(#[from] FrameError),
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// A control frame.
    Frame(Frame),
    /// Bytes of the stream, in [`Tunnel::data`] until consumed.
    Data,
    /// The other agent closed the connection between two streams.
    Closed,
}

/// One end of a tunnel.
#[derive(Debug)]
pub struct Tunnel {
    stream: TlsStream<TcpStream>,
    side: Side,
    peer: PeerIdentity,
    state: StreamState,
    /// A frame is on its way into the connection. If whoever sends it gives up, it stays so.
    sending: bool,
    decoder: Decoder,
    /// Received and not decoded or not consumed. Held only while there is something in it.
    inbox: Option<Chunk>,
    /// The part of the inbox that is bytes of the stream.
    data: Range<usize>,
}

impl Tunnel {
    /// Wraps a TLS connection whose handshake is over and whose peer is `peer`.
    pub fn new(stream: TlsStream<TcpStream>, side: Side, peer: PeerIdentity) -> Self {
        Self {
            stream,
            side,
            peer,
            state: StreamState::new(),
            sending: false,
            decoder: Decoder::new(),
            inbox: None,
            data: 0..0,
        }
    }

    /// Sends a control frame.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), TunnelError> {
        let chunk = self.control(frame)?;
        self.stream.write_all(chunk.bytes()).await?;
        self.stream.flush().await?;
        self.sending = false;
        Ok(())
    }

    /// Waits for a control frame or data.
    ///
    /// # Errors
    /// The connection broke, or the peer does not keep to the protocol.
    pub async fn receive(&mut self) -> Result<Received, TunnelError> {
        std::future::poll_fn(|context| self.poll_receive(context)).await
    }

    /// Makes a chunk of a control frame that is sent next, and takes note of the state that it leads to.
    ///
    /// # Errors
    /// The frame may not be sent now.
    pub fn control(&mut self, frame: &Frame) -> Result<Chunk, TunnelError> {
        self.state.control(self.side, frame)?;
        self.sending = true;
        Ok(Chunk::control(frame))
    }

    /// Sends what is left of `chunk`, until the kernel has all of it.
    pub fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        chunk: &mut Chunk,
    ) -> Poll<Result<(), TunnelError>> {
        self.sending = true;
        while !chunk.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, chunk.bytes()))?;
            chunk.consume(sent);
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.sending = false;
        Poll::Ready(Ok(()))
    }

    /// The next control frame, or [`Received::Data`] while there are unconsumed bytes in [`Self::data`].
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Received, TunnelError>> {
        loop {
            if !self.data.is_empty() {
                return Poll::Ready(Ok(Received::Data));
            }
            if let Some(received) = self.decode()? {
                return Poll::Ready(Ok(received));
            }
            if ready!(self.poll_fill(context))? == 0 {
                return Poll::Ready(if self.state.is_idle() && self.decoder.is_between_frames() {
                    Ok(Received::Closed)
                } else {
                    Err(TunnelError::Closed)
                });
            }
        }
    }

    /// Drops `length` bytes from the front of [`Self::data`].
    pub fn consume(&mut self, length: usize) {
        self.data.start += length;
        debug_assert!(self.data.start <= self.data.end);
        self.give_back_inbox();
    }

    /// Received bytes of the stream.
    pub fn data(&self) -> &[u8] {
        self.inbox.as_ref().map_or(&[], |inbox| &inbox.bytes()[..self.data.end][self.data.start..])
    }

    /// Whether no stream is open and the last one's frames were sent as a whole, so that the tunnel can carry the
    /// next one.
    ///
    /// An opener that has seen both directions end may open the next stream at once, so at the acceptor that
    /// OPEN may already be here, in the same read as the END before it. An opener has nothing to expect.
    pub fn is_idle(&self) -> bool {
        let nothing_received = self.inbox.is_none() && self.decoder.is_between_frames();
        self.state.is_idle() && !self.sending && (self.side == Side::Acceptor || nothing_received)
    }

    /// Waits for the other direction to end, and drops what it still carries.
    ///
    /// # Errors
    /// The connection broke, or the peer does not keep to the protocol.
    pub async fn drain(&mut self) -> Result<(), TunnelError> {
        while !self.is_idle() {
            if self.receive().await? == Received::Data {
                self.consume(self.data().len());
            }
        }
        Ok(())
    }

    /// Whether the acceptor has answered the current stream's OPEN.
    pub fn is_answered(&self) -> bool {
        self.state.phase(Side::Acceptor) != Phase::Asked
    }

    /// Whether this end may still send in the current stream.
    pub fn may_send(&self) -> bool {
        self.state.phase(self.side) == Phase::Streaming
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The TCP connection below.
    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref().0
    }

    /// Whether the peer's certificate is still valid at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.peer.not_after
    }

    /// The next event of what is already here.
    fn decode(&mut self) -> Result<Option<Received>, TunnelError> {
        let Some(inbox) = &mut self.inbox else { return Ok(None) };
        let (event, consumed) = self.decoder.next(inbox.bytes())?;
        let sender = match self.side {
            Side::Opener => Side::Acceptor,
            Side::Acceptor => Side::Opener,
        };
        let received = match event {
            Event::Data(bytes) => {
                self.state.data(sender)?;
                self.data = consumed - bytes.len()..consumed;
                return Ok(Some(Received::Data));
            }
            Event::Frame(frame) => {
                self.state.control(sender, &frame)?;
                Some(Received::Frame(frame))
            }
            Event::Incomplete => None,
        };
        inbox.consume(consumed);
        self.give_back_inbox();
        Ok(received)
    }

    /// Reads into an empty inbox. 0 is the end of the connection.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        debug_assert!(self.inbox.is_none());
        let mut chunk = Chunk::take();
        let mut buffer = ReadBuf::new(chunk.space());
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        let length = buffer.filled().len();
        chunk.filled(length);
        if length > 0 {
            self.inbox = Some(chunk);
        }
        Poll::Ready(Ok(length))
    }

    /// Drops consumed data from the inbox, and the inbox itself once it is empty.
    fn give_back_inbox(&mut self) {
        let Some(inbox) = &mut self.inbox else { return };
        if self.data.is_empty() {
            inbox.consume(self.data.end);
            self.data = 0..0;
            if inbox.is_empty() {
                self.inbox = None;
            }
        }
    }
}
