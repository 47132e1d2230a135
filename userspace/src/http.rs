//! Answers requests for pages that are only read, over HTTP/1.1, within bounds.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response, body::Bytes, body::Incoming, server::conn::http1::Builder, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tracing::{debug, warn};

/// How much is taken at a time.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections; further ones wait in the kernel.
    pub connections: usize,
    /// How long a request may take to arrive, and its answer to be made and taken.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 16, timeout: Duration::from_secs(10) }
    }
}

/// How long the head of a request may take to arrive: programs send it as soon as they are connected, and connections that
/// say nothing take places of others.
const HEAD_TIME: Duration = Duration::from_secs(2);

/// The longest head of a request.
const MAX_HEAD: usize = 16 * 1024;

/// Pause after a failed accept, for instance when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The answer to one request.
pub type Answer = Response<Full<Bytes>>;

/// Has `answer` say what each request gets, one for each connection, for as long as it is run.
pub async fn serve<A, F>(listener: TcpListener, limits: Limits, answer: A)
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let limit = Arc::new(Semaphore::new(limits.connections));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(MAX_HEAD)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            let ended = timeout(limits.timeout, connection).await;
            if !matches!(ended, Ok(Ok(()))) {
                debug!(%from, ?ended, "a request did not come to its end");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    /// How long hyper waits for a head unless it is told otherwise.
    const OTHERWISE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn connections_that_do_not_ask_make_room_for_those_that_do() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { connections: 2, timeout: Duration::from_secs(3600) };
        let serving = tokio::spawn(serve(listener, limits, async |_| Answer::new(Full::from("yes"))));
        let silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HT").await.unwrap();
        let (started, mut asking) = (Instant::now(), TcpStream::connect(address).await.unwrap());
        asking.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("yes") && started.elapsed() < OTHERWISE, "{answer}");
        drop((silent, slow));
        serving.abort();
    }
}
