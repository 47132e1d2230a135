//! The TCP side of a TLS connection, with bounds on what is read from it.
//!
//! Threats: TLS has records that cost the one who gets them more than the one who sends them and that nobody above TLS
//! ever sees: key updates, and records without content. rustls ends a connection after 32 key updates in a row, and
//! takes a record without content for an end of the row.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::admission::Refused;

/// Bytes in a row that may carry nothing. rustls reads less than half of that ahead.
const MAX_BARREN: usize = 64 * 1024;

/// What is read fails once it is more than it may be.
pub struct Metered<S> {
    stream: S,
    /// Bytes that may still be read.
    budget: usize,
    /// Bytes that may be read before [`Self::carried`] is called again.
    barren: usize,
}

impl<S> Metered<S> {
    /// Without bounds.
    pub fn new(stream: S) -> Self {
        Self { stream, budget: usize::MAX, barren: usize::MAX }
    }

    /// From now on there are bounds: `budget` bytes in all, and [`MAX_BARREN`] in a row that carry nothing.
    pub fn limit(&mut self, budget: usize) {
        (self.budget, self.barren) = (budget, MAX_BARREN);
    }

    /// What was read has led to something that is of use.
    pub fn carried(&mut self) {
        self.barren = MAX_BARREN;
    }

    fn count(&mut self, read: usize) -> Result<(), Refused> {
        self.budget = self.budget.checked_sub(read).ok_or(Refused::TooMuch)?;
        self.barren = self.barren.checked_sub(read).ok_or(Refused::BrokeProtocol)?;
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(self.count(buffer.filled().len() - before).map_err(io::Error::other))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Reads zeros in pieces, of which each carries something if it is `fruitful`, and returns why that ended.
    async fn read(budget: usize, pieces: usize, fruitful: bool) -> Option<Refused> {
        let mut metered = Metered::new(tokio::io::repeat(0));
        let mut piece = [0; 4096];
        metered.read_exact(&mut piece).await.expect("no bounds yet");
        metered.limit(budget);
        for _ in 0..pieces {
            match metered.read_exact(&mut piece).await {
                Ok(_) if fruitful => metered.carried(),
                Ok(_) => {}
                Err(error) => return Some(Refused::of(&error)),
            }
        }
        None
    }

    #[tokio::test]
    async fn what_carries_nothing_ends_and_what_carries_something_goes_on_within_the_budget() {
        assert_eq!(read(usize::MAX, 16, false).await, None);
        assert_eq!(read(usize::MAX, 17, false).await, Some(Refused::BrokeProtocol));
        assert_eq!(read(usize::MAX, 1000, true).await, None);
        assert_eq!(read(8 * 4096, 8, true).await, None);
        assert_eq!(read(8 * 4096, 9, true).await, Some(Refused::TooMuch));
    }
}
