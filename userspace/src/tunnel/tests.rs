//! Both ends of a tunnel, over real sockets.

use std::{net::Ipv4Addr, task::Poll, time::Duration};

use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::{
    Chunk, Received, Tunnel, dial,
    frame::{Frame, Open, ResetReason, Side},
};
use crate::identity::{fixture, peer_identity, tls};

/// An opener and an acceptor.
async fn tunnel() -> (Tunnel, Tunnel) {
    let authority = fixture::authority();
    let (client, service) = (fixture::host(&authority, "fcc00"), fixture::host(&authority, "fcs00"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls::tunnel_client(&client, &service.id).unwrap();
    let acceptor = TlsAcceptor::from(tls::tunnel_server(&service).unwrap());
    let accepted = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
    let (opener, accepted) = tokio::join!(dial(address, config, None), accepted);
    let peer = peer_identity(accepted.get_ref().1.peer_certificates().unwrap()).unwrap();
    (opener.unwrap(), Tunnel::new(TlsStream::Server(accepted), Side::Acceptor, peer))
}

fn open() -> Frame {
    let (destination, client) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:1024".parse().unwrap());
    Frame::Open(Open { destination, client })
}

/// Sends data until the other end would have to read. Returns what is left of the last frame.
async fn fill(tunnel: &mut Tunnel) -> Chunk {
    loop {
        let mut chunk = Chunk::take();
        let length = chunk.payload_space().len();
        chunk.filled_payload(length);
        let sent = std::future::poll_fn(|context| tunnel.poll_send(context, &mut chunk));
        // Nobody reads, so what does not fit at once does not fit at all.
        if tokio::time::timeout(Duration::from_millis(100), sent).await.is_err() {
            return chunk;
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_both_ways_leaves_both_ends_idle() {
    let (mut opener, mut acceptor) = tunnel().await;
    opener.send(&open()).await.unwrap();
    opener.send(&Frame::End).await.unwrap();
    assert_eq!(acceptor.receive().await.unwrap(), Received::Frame(open()));
    assert!(!acceptor.is_idle() && !opener.is_idle());
    acceptor.send(&Frame::Accepted).await.unwrap();
    acceptor.send(&Frame::End).await.unwrap();
    opener.drain().await.unwrap();
    acceptor.drain().await.unwrap();
    assert!(acceptor.is_idle() && opener.is_idle());
}

#[tokio::test]
async fn a_tunnel_whose_last_frame_was_not_sent_is_not_idle() {
    let (mut opener, mut acceptor) = tunnel().await;
    opener.send(&open()).await.unwrap();
    acceptor.receive().await.unwrap();
    acceptor.send(&Frame::Accepted).await.unwrap();
    acceptor.send(&Frame::End).await.unwrap();
    while opener.receive().await.unwrap() != Received::Frame(Frame::End) {}

    fill(&mut opener).await;
    // By the frames that were made, both directions have ended.
    let mut reset = opener.control(&Frame::Reset(ResetReason::ByPeer)).unwrap();
    let sent = std::future::poll_fn(|context| Poll::Ready(opener.poll_send(context, &mut reset))).await;
    assert!(sent.is_pending());
    drop(reset);
    assert!(!opener.is_idle());
}
