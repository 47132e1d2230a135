//! A tunnel: frames over one TLS connection between two agents.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::SystemTime,
};

use tokio::{io::AsyncWrite, net::TcpStream};

use super::{
    frame::{Frame, FrameError, Phase, Side, StreamState},
    incoming::{Incoming, Item},
    outgoing::{Before, Outgoing, Payload},
    tls::{Established, RecordError, Session},
};
use crate::{identity::PeerIdentity, socket};

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
    /// The other agent does not keep to TLS, or somebody changed what it sent.
    #[error("the tunnel's TLS session broke: {0}")]
    Tls(#[from] RecordError),
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
pub struct Tunnel {
    stream: TcpStream,
    session: Session,
    incoming: Incoming,
    side: Side,
    peer: PeerIdentity,
    state: StreamState,
    /// ACCEPTED is part of the state, and goes in front of what is sent next.
    holds_accepted: bool,
    /// Records are on their way into the connection. If whoever sends them gives up, it stays so: the other side
    /// could open nothing that is sealed after them.
    sending: bool,
}

impl Tunnel {
    /// A tunnel over a connection whose handshake is over and whose peer is `peer`.
    pub(super) fn new(stream: TcpStream, established: Established, side: Side, peer: PeerIdentity) -> Self {
        let incoming = Incoming::new(&established);
        let session = established.session;
        Self {
            stream,
            session,
            incoming,
            side,
            peer,
            state: StreamState::new(),
            holds_accepted: false,
            sending: false,
        }
    }

    /// For who sends what a tunnel does not.
    #[cfg(any(test, fuzzing))]
    pub(super) fn into_parts(self) -> (TcpStream, Session) {
        (self.stream, self.session)
    }

    /// Sends a control frame.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), TunnelError> {
        let mut outgoing = self.control(frame)?;
        poll_fn(|context| self.poll_send(context, &mut outgoing)).await
    }

    /// Waits for a control frame or data.
    ///
    /// # Errors
    /// The connection broke, or the peer does not keep to the protocol.
    pub async fn receive(&mut self) -> Result<Received, TunnelError> {
        poll_fn(|context| self.poll_receive(context)).await
    }

    /// Asks the opener of a tunnel at rest for no further stream, without breaking one that is on its way already: by a
    /// key update, which an opener takes for that and TLS allows at any time.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn retire(&mut self) -> Result<(), TunnelError> {
        let before = Before { key_update: true, ..self.begin() };
        let mut outgoing = Outgoing::nothing(&mut self.session, before)?;
        poll_fn(|context| self.poll_send(context, &mut outgoing)).await
    }

    /// Whether the acceptor wants no further stream, as far as was read.
    pub fn is_retired(&self) -> bool {
        self.incoming.is_key_updated()
    }

    /// Waits for the other direction to end, and drops what it still carries.
    ///
    /// # Errors
    /// The connection broke, or the peer does not keep to the protocol.
    pub async fn drain(&mut self) -> Result<(), TunnelError> {
        while !self.is_idle() {
            match self.receive().await? {
                Received::Data => self.consume(self.data().map(|piece| piece.len()).sum()),
                Received::Frame(_) => {}
                Received::Closed => return Err(TunnelError::Closed),
            }
        }
        Ok(())
    }

    /// Accepts the stream. ACCEPTED travels with the first frame that follows it, or by itself when
    /// [`Self::held`] is sent: the opener does not wait for it.
    ///
    /// # Errors
    /// It was not asked for.
    pub fn accept(&mut self) -> Result<(), TunnelError> {
        self.state.control(self.side, &Frame::Accepted)?;
        self.holds_accepted = true;
        Ok(())
    }

    /// Seals what was held back, if anything was.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn held(&mut self) -> Result<Option<Outgoing>, TunnelError> {
        if !self.holds_accepted {
            return Ok(None);
        }
        let before = self.begin();
        Ok(Some(Outgoing::nothing(&mut self.session, before)?))
    }

    /// Seals a control frame that is sent next, and takes note of the state that it leads to.
    ///
    /// # Errors
    /// The frame may not be sent now.
    pub fn control(&mut self, frame: &Frame) -> Result<Outgoing, TunnelError> {
        self.state.control(self.side, frame)?;
        let before = self.begin();
        Ok(Outgoing::control(frame, &mut self.session, before)?)
    }

    /// Seals bytes of the stream that are sent next.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn seal(&mut self, payload: Payload) -> Result<Outgoing, TunnelError> {
        if payload.is_last() {
            self.state.control(self.side, &Frame::End)?;
        }
        let before = self.begin();
        Ok(payload.seal(&mut self.session, before)?)
    }

    fn begin(&mut self) -> Before {
        self.sending = true;
        Before {
            key_update: self.incoming.take_key_update_request(),
            accepted: std::mem::take(&mut self.holds_accepted),
        }
    }

    /// Sends what is left of `outgoing`, until the kernel has all of it.
    pub fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        outgoing: &mut Outgoing,
    ) -> Poll<Result<(), TunnelError>> {
        while !outgoing.bytes().is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, outgoing.bytes()))?;
            outgoing.sent(sent);
        }
        self.sending = false;
        Poll::Ready(Ok(()))
    }

    /// The next control frame, or [`Received::Data`] while there are unconsumed bytes in [`Self::data`].
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Received, TunnelError>> {
        loop {
            if self.incoming.has_data() {
                return Poll::Ready(Ok(Received::Data));
            }
            let sender = self.other_side();
            match self.incoming.next(&mut self.session)? {
                Some(Item::Data) => self.state.data(sender)?,
                Some(Item::Frame(frame)) => {
                    self.state.control(sender, &frame)?;
                    return Poll::Ready(Ok(Received::Frame(frame)));
                }
                None if ready!(self.incoming.poll_read(&mut self.stream, context))? => {}
                None if self.state.is_idle() && self.incoming.is_empty() => {
                    return Poll::Ready(Ok(Received::Closed));
                }
                None => return Poll::Ready(Err(TunnelError::Closed)),
            }
        }
    }

    /// Received bytes of the stream, in order.
    pub fn data(&self) -> impl Iterator<Item = IoSlice<'_>> {
        self.incoming.data()
    }

    /// Drops `length` bytes from the front of [`Self::data`].
    pub fn consume(&mut self, length: usize) {
        self.incoming.consume(length);
    }

    /// Whether there are unconsumed bytes of the stream.
    pub fn has_data(&self) -> bool {
        self.incoming.has_data()
    }

    /// Whether no stream is open and the last one's frames were sent as a whole, so that the tunnel can carry the
    /// next one.
    ///
    /// An opener that has seen both directions end may open the next stream at once, so at the acceptor that
    /// OPEN may already be here, in the same read as the END before it. An opener has nothing to expect.
    pub fn is_idle(&self) -> bool {
        self.state.is_idle() && !self.sending && (self.side == Side::Acceptor || self.incoming.is_empty())
    }

    /// As [`Self::is_idle`], once the opener has dealt with messages of TLS itself that came behind the last frame.
    pub fn comes_to_rest(&mut self) -> bool {
        let expects_nothing = self.side == Side::Opener && self.state.is_idle();
        if expects_nothing && !matches!(self.incoming.next(&mut self.session), Ok(None)) {
            return false;
        }
        self.is_idle()
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

    /// Whether something may have arrived on a tunnel at rest: data, or its end. As far as the runtime has heard,
    /// without asking the kernel again.
    pub fn has_news(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.stream.poll_read_ready(&mut context).is_ready() && socket::has_input(&self.stream)
    }

    /// The TCP connection below.
    pub fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether the peer's certificate is still valid at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.peer.not_after
    }

    /// Replaces a key after fewer records than it is good for.
    #[cfg(test)]
    pub(super) fn limit_records_per_key(&mut self, records: u64) {
        self.session.limit_records_per_key(records);
    }

    /// How many records the current keys have sealed and opened.
    #[cfg(test)]
    pub(super) fn records_under_keys(&self) -> [u64; 2] {
        self.session.records_under_keys()
    }

    fn other_side(&self) -> Side {
        match self.side {
            Side::Opener => Side::Acceptor,
            Side::Acceptor => Side::Opener,
        }
    }
}
