//! The relay: the bytes of one stream between an application's connection and a tunnel, both ways, until both
//! directions have ended or something broke. The one copy loop of the project.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::timeout,
};

use super::{
    held::Held,
    live::{Forbidden, Place},
    watchdog::{Watch, Watchdog},
};
use crate::{
    socket,
    tunnel::{
        MAX_PIECES, Outgoing, Payload, Received, Tunnel, TunnelError,
        frame::{Frame, RefusalReason, ResetReason},
    },
};

/// How long the other agent may take to answer a RESET before the tunnel is given up.
const RESET_TIMEOUT: Duration = Duration::from_secs(2);

/// The same, where the rules have cut a stream: its application is not to wait long for the end.
const CUT_TIMEOUT: Duration = Duration::from_millis(500);

/// Bytes of one stream, seen from the application on this host.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// From the application to the tunnel.
    pub sent: u64,
    /// From the tunnel to the application.
    pub received: u64,
}

/// Why a stream did not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The far agent did not connect to the service.
    #[error("refused by the other host: {0:?}")]
    Refused(RefusalReason),
    /// The application on this host broke its connection.
    #[error("the application on this host broke the connection: {0}")]
    Application(io::Error),
    /// The other side's application, or its agent, broke the stream.
    #[error("reset by the other host: {0:?}")]
    Reset(ResetReason),
    /// The rules have changed, and forbid it now.
    #[error("cut: {0}")]
    Forbidden(Forbidden),
    /// The tunnel is lost.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

/// Relays until both directions have ended. On return the tunnel is idle and can carry another stream, or
/// [`Tunnel::is_idle`] is false and it must be dropped.
///
/// The opener calls this as soon as OPEN is sent: bytes of the application follow it without waiting for the
/// answer, and the answer's bytes are delivered as soon as they are here. Until then `held` keeps a copy of what is sent;
/// what is in it already is sent first.
///
/// The acceptor asks `is_gone` whether an application that ends without a word has died: then this is no clean end.
pub async fn relay(
    application: &mut TcpStream,
    tunnel: &mut Tunnel,
    watchdog: &Watchdog,
    place: &Place<'_>,
    held: Option<&mut Held>,
    is_gone: Option<&dyn Fn() -> bool>,
) -> (Totals, Result<(), RelayError>) {
    place.carried_by(Some(&*tunnel));
    let (totals, outgoing, result) = {
        let (reader, writer) = application.split();
        let mut relay = Relay::new(reader, &writer, tunnel, watchdog.watch(), place, held, is_gone);
        let result = match relay.begin() {
            Ok(()) => std::future::poll_fn(|context| relay.poll(context)).await,
            Err(error) => Err(error),
        };
        (relay.totals, relay.outgoing, result)
    };
    place.carried_by(None);
    let reset_by = match &result {
        Err(RelayError::Application(_) | RelayError::Reset(_) | RelayError::Refused(_)) => {
            Some((ResetReason::ByPeer, RESET_TIMEOUT))
        }
        Err(RelayError::Forbidden(_)) => Some((ResetReason::Policy, CUT_TIMEOUT)),
        Ok(()) | Err(RelayError::Tunnel(_)) => None,
    };
    if let Some((reason, limit)) = reset_by {
        // A tunnel that does not come to rest in time is not idle, which is all that the caller asks. Streams that end
        // cleanly have no room for this in their tasks.
        let _ = Box::pin(timeout(limit, reset(tunnel, outgoing, reason))).await;
    }
    if result.is_err() && !tunnel.is_idle() {
        // The end of the connection would wait behind data that the other side does not take.
        let _ = socket::reset_on_close(tunnel.socket());
    }
    (totals, result)
}

/// Ends this end's direction by RESET and drops what still arrives until the other direction has ended too.
async fn reset(
    tunnel: &mut Tunnel,
    outgoing: Option<Outgoing>,
    reason: ResetReason,
) -> Result<(), TunnelError> {
    if let Some(mut outgoing) = outgoing {
        std::future::poll_fn(|context| tunnel.poll_send(context, &mut outgoing)).await?;
    }
    if tunnel.may_send() {
        tunnel.send(&Frame::Reset(reason)).await?;
    } else if !tunnel.is_idle() {
        // END cannot be taken back: only the loss of the tunnel tells the other side at once.
        return Ok(());
    }
    tunnel.drain().await
}

struct Relay<'a> {
    reader: ReadHalf<'a>,
    writer: &'a WriteHalf<'a>,
    tunnel: &'a mut Tunnel,
    totals: Totals,
    /// Frames on their way into the tunnel.
    outgoing: Option<Outgoing>,
    /// The application has sent its last byte, and END is on its way or sent.
    sent_end: bool,
    /// END has arrived and was passed on.
    received_end: bool,
    /// Waits for a reset by an application that is not being read; made when that is so for the first time.
    reset_watch: Option<Pin<Box<dyn Future<Output = io::Error> + 'a>>>,
    watch: Watch<'a>,
    /// Tells when it is forbidden.
    place: &'a Place<'a>,
    /// Another may have to get what is sent: until there is an answer.
    held: Option<&'a mut Held>,
    is_gone: Option<&'a dyn Fn() -> bool>,
    /// Something was sent, and is not known to have arrived.
    unacknowledged: bool,
}

impl<'a> Relay<'a> {
    fn new(
        reader: ReadHalf<'a>,
        writer: &'a WriteHalf<'a>,
        tunnel: &'a mut Tunnel,
        watch: Watch<'a>,
        place: &'a Place<'a>,
        held: Option<&'a mut Held>,
        is_gone: Option<&'a dyn Fn() -> bool>,
    ) -> Self {
        Self {
            reader,
            writer,
            tunnel,
            totals: Totals::default(),
            outgoing: None,
            sent_end: false,
            received_end: false,
            reset_watch: None,
            watch,
            place,
            held,
            is_gone,
            // OPEN, or the answer to it.
            unacknowledged: true,
        }
    }

    /// Sends first what an earlier tunnel did not bring to anybody.
    fn begin(&mut self) -> Result<(), RelayError> {
        let Some(held) = &self.held else { return Ok(()) };
        self.sent_end = held.is_ended();
        if let Some(payload) = held.payload() {
            self.totals.sent += payload.length() as u64;
            self.outgoing = Some(self.tunnel.seal(payload)?);
        } else if self.sent_end {
            self.outgoing = Some(self.tunnel.control(&Frame::End)?);
        }
        Ok(())
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        let progress = self.advance(context);
        self.place.note(self.totals);
        progress
    }

    fn advance(&mut self, context: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        if let Poll::Ready(forbidden) = self.place.poll_forbidden(context) {
            return Poll::Ready(Err(RelayError::Forbidden(forbidden)));
        }
        if self.watch.is_due() {
            let is_unused = self.held.is_some() && self.totals == Totals::default();
            self.unacknowledged =
                !socket::check(self.tunnel.socket(), is_unused).map_err(TunnelError::from)?;
            if self.outgoing.is_none() {
                self.outgoing = self.tunnel.held()?;
            }
        }
        let sent = self.poll_send(context)?;
        let received = self.poll_receive(context)?;
        if let Some(held) = self.held.take_if(|_| self.tunnel.is_answered()) {
            held.release();
        }
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if received.is_ready()
            && let Poll::Ready(lost) = self.poll_loss(context)
        {
            return Poll::Ready(Err(lost));
        }
        if self.unacknowledged || self.tunnel.has_data() {
            self.watch.arm(context.waker());
        }
        let reads_application = !self.sent_end && self.outgoing.is_none();
        if reads_application { Poll::Pending } else { self.poll_reset_watch(context).map(Err) }
    }

    /// From the application into the tunnel.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        loop {
            if let Some(outgoing) = &mut self.outgoing {
                self.unacknowledged = true;
                ready!(self.tunnel.poll_send(context, outgoing))?;
                self.outgoing = None;
            }
            if self.sent_end {
                return Poll::Ready(Ok(()));
            }
            let payload = ready!(Payload::poll_read(&mut self.reader, context));
            self.outgoing = Some(match payload.map_err(RelayError::Application)? {
                Some(payload) => {
                    if let Some(held) = &mut self.held {
                        held.add(&payload);
                    }
                    self.totals.sent += payload.length() as u64;
                    self.sent_end = payload.is_last();
                    self.tunnel.seal(payload)?
                }
                None if self.has_died() => {
                    return Poll::Ready(Err(RelayError::Application(io::ErrorKind::ConnectionReset.into())));
                }
                None => {
                    if let Some(held) = &mut self.held {
                        held.end();
                    }
                    self.sent_end = true;
                    self.tunnel.control(&Frame::End)?
                }
            });
        }
    }

    /// The end of an application that has neither heard nor said anything.
    fn has_died(&self) -> bool {
        let is_mute = self.totals == Totals::default() && !self.received_end;
        is_mute && self.is_gone.is_some_and(|is_gone| is_gone())
    }

    /// From the tunnel to the application.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        while !self.received_end {
            match ready!(self.tunnel.poll_receive(context))? {
                Received::Data => ready!(self.poll_deliver(context)).map_err(RelayError::Application)?,
                Received::Frame(Frame::End) => {
                    self.received_end = true;
                    SockRef::from(self.writer.as_ref())
                        .shutdown(Shutdown::Write)
                        .map_err(RelayError::Application)?;
                }
                Received::Frame(Frame::Refused(reason)) => {
                    return Poll::Ready(Err(RelayError::Refused(reason)));
                }
                Received::Frame(Frame::Reset(reason)) => return Poll::Ready(Err(RelayError::Reset(reason))),
                Received::Frame(Frame::Accepted | Frame::Open(_)) => {}
                Received::Closed => return Poll::Ready(Err(TunnelError::Closed.into())),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes received bytes to the application; ready when some were written.
    fn poll_deliver(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.writer.as_ref().poll_write_ready(context))?;
            let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
            let mut count = 0;
            for (slot, piece) in pieces.iter_mut().zip(self.tunnel.data()) {
                *slot = piece;
                count += 1;
            }
            // Nearly always there is one, which is a cheaper system call.
            let written = match &pieces[..count] {
                [piece] => self.writer.try_write(piece),
                pieces => self.writer.try_write_vectored(pieces),
            };
            match written {
                Ok(length) => {
                    self.totals.received += length as u64;
                    self.tunnel.consume(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// The other side has sent END, so that losing the tunnel is its only way left to tell that it broke.
    fn poll_loss(&mut self, context: &mut Context<'_>) -> Poll<RelayError> {
        let lost = ready!(self.tunnel.poll_receive(context)).err();
        Poll::Ready(lost.unwrap_or(TunnelError::Closed).into())
    }

    /// An application that has sent its end, or more than the tunnel takes now, is not being read, so only the
    /// socket's error tells that it reset the connection.
    fn poll_reset_watch(&mut self, context: &mut Context<'_>) -> Poll<RelayError> {
        let application = self.writer.as_ref();
        let watch = self.reset_watch.get_or_insert_with(|| Box::pin(wait_for_error(application)));
        watch.as_mut().poll(context).map(RelayError::Application)
    }
}

async fn wait_for_error(application: &TcpStream) -> io::Error {
    match application.ready(Interest::ERROR).await {
        Ok(_) => match application.take_error() {
            Ok(Some(error)) | Err(error) => error,
            Ok(None) => io::ErrorKind::ConnectionReset.into(),
        },
        Err(error) => error,
    }
}
