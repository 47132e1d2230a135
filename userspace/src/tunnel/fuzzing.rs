//! What a hostile host of the mesh may send once its certificate was accepted.

use std::{cell::RefCell, io, sync::LazyLock, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};

use super::{
    DialError, Received, Tunnel, answer, dial,
    tls::{ContentType, HEADER, OVERHEAD, Session},
};
use crate::{
    identity::{Identity, Subject, fixture, tls},
    socket,
};

/// Handshakes that may fail in a row.
const ATTEMPTS: u32 = 10;

/// Bytes that a socket takes at once.
const MAX_INPUT: usize = 16 * 1024;

/// Longer than any run.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

static HOSTS: LazyLock<[Identity; 2]> = LazyLock::new(|| {
    let authority = fixture::authority();
    let subject = |node: &str| Subject::Host(node.parse().expect("a name"));
    ["fcc00", "fcs00"].map(|node| fixture::issue(&authority, subject(node), LIFETIME))
});

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
}

/// Records under the keys of the session, and bytes that are none. The input is pieces: a byte for their kind, one for
/// their length in units of 1 (records) or 4 bytes (others), and the bytes. Whatever they are, the tunnel passes on frames
/// and data, and ends.
pub fn tunnel_session(input: &[u8]) {
    let input = &input[..input.len().min(MAX_INPUT)];
    RUNTIME.with_borrow_mut(|runtime| runtime.block_on(attack(input)));
}

async fn attack(input: &[u8]) {
    let (attacker, mut victim) = tunnel().await;
    let (mut stream, mut session) = attacker.into_parts();
    // Nothing waits for its end.
    socket::reset_on_close(&stream).expect("a socket");
    stream.write_all(&records(input, &mut session)).await.expect("a socket takes it");
    stream.shutdown().await.expect("a socket");
    for _ in 0..=input.len() + 1 {
        match victim.receive().await {
            Ok(Received::Data) => victim.consume(victim.data().map(|piece| piece.len()).sum()),
            Ok(Received::Frame(_)) => {}
            Ok(Received::Closed) | Err(_) => return,
        }
    }
    panic!("more came out of the tunnel than went into it");
}

fn records(mut input: &[u8], session: &mut Session) -> Vec<u8> {
    let mut wire = Vec::new();
    while let Some(([kind, length], rest)) = input.split_first_chunk() {
        let kind = match kind {
            21 => Some(ContentType::Alert),
            22 => Some(ContentType::Handshake),
            23 => Some(ContentType::ApplicationData),
            _ => None,
        };
        let length = usize::from(*length) * if kind.is_some() { 1 } else { 4 };
        let (content, rest) = rest.split_at(length.min(rest.len()));
        input = rest;
        let Some(kind) = kind else {
            wire.extend_from_slice(content);
            continue;
        };
        let mut record = vec![0; content.len() + OVERHEAD];
        record[HEADER..HEADER + content.len()].copy_from_slice(content);
        session.sealer.seal(kind, &mut record).expect("room for the record");
        wire.extend_from_slice(&record);
    }
    wire
}

/// An opener and an acceptor. A process that others keep waiting may not get a turn within the time for a handshake:
/// that is no finding, and it begins anew.
async fn tunnel() -> (Tunnel, Tunnel) {
    let mut attempts = 1;
    loop {
        match handshake().await {
            (Ok(opener), Ok(acceptor)) => return (*opener, *acceptor),
            ends if attempts == ATTEMPTS => panic!("no tunnel: {:?}, {:?}", ends.0.err(), ends.1.err()),
            _ => attempts += 1,
        }
    }
}

async fn handshake() -> (Result<Box<Tunnel>, DialError>, io::Result<Box<Tunnel>>) {
    let [client, service] = &*HOSTS;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let config = tls::tunnel_client(client, &service.id).expect("usable");
    let accepted = async {
        let (stream, _): (TcpStream, _) = listener.accept().await.expect("a client");
        answer(stream, async |_| Ok(((), tls::tunnel_server(service).expect("usable")))).await
    };
    tokio::join!(dial(address, config, None, None), accepted)
}
