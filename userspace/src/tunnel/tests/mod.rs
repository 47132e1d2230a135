//! Tunnels over real sockets: both ends ours, or one of them a stock TLS implementation.

mod handshakes;
mod sessions;
mod stock;
mod streams;

use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};

use super::{
    Tunnel, answer, dial,
    frame::{Frame, Open},
};
use crate::identity::{Identity, fixture, tls};

/// A client's host and a service's host.
fn hosts() -> (Identity, Identity) {
    let authority = fixture::authority();
    (fixture::host(&authority, "fcc00"), fixture::host(&authority, "fcs00"))
}

/// Both ends of a TCP connection.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (connected, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (connected.unwrap(), accepted.unwrap().0)
}

/// An opener and an acceptor.
pub(crate) async fn tunnel() -> (Tunnel, Tunnel) {
    let (client, service) = hosts();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = tls::tunnel_client(&client, &service.id).unwrap();
    let accepted = async {
        let (stream, _) = listener.accept().await.unwrap();
        answer(stream, async |_| Ok(((), tls::tunnel_server(&service).unwrap()))).await
    };
    let (opener, acceptor) = tokio::join!(dial(address, config, None, None), accepted);
    (*opener.unwrap(), *acceptor.unwrap())
}

fn open() -> Frame {
    let (destination, client) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:1024".parse().unwrap());
    Frame::Open(Open { destination, client })
}

/// Pseudo-random numbers, the same ones for the same seed (xorshift64; Marsaglia, 2003).
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}
