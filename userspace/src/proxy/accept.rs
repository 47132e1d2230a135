//! The one accept loop.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// First and longest pause after an error that will not go away by itself at once, such as no descriptor left.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Accepts until `stop`, and spawns `handle` on this thread for each connection.
pub async fn accept<Handler, Handling>(listener: TcpListener, stop: CancellationToken, handle: Handler)
where
    Handler: Fn(TcpStream, SocketAddr) -> Handling,
    Handling: Future<Output = ()> + 'static,
{
    let mut pause = BACKOFF.0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = BACKOFF.0;
                tokio::task::spawn_local(handle(stream, peer));
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                warn!("cannot accept connections, trying again in {pause:?}: {error}");
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

/// accept(2): errors of the connection itself are passed on by Linux, and the next one may be fine.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
