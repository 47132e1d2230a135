//! What a stranger can send to a port at a steady rate, until told to stop.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

/// Connections that are kept; of those before them the other side has long had enough.
const KEPT: usize = 4000;

/// How long one may take to be made.
const DEADLINE: Duration = Duration::from_secs(1);

/// Arguments of `flood`.
#[derive(Args)]
pub struct Flood {
    destination: SocketAddr,
    #[arg(value_enum)]
    kind: Kind,
    /// Connections per second.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
}

/// What is said on each connection.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Nothing.
    Silent,
    /// What is no TLS.
    Garbage,
    /// A ClientHello that has to be answered, and then nothing.
    Hello,
}

impl Flood {
    /// Prints `running`, floods until stdin ends, and prints how many connections were made and how many were not.
    pub fn run(self) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        thread::spawn(move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            stopping.store(true, Ordering::Relaxed);
        });
        println!("running");
        let said = self.kind.bytes();
        let (mut kept, mut failed) = (VecDeque::with_capacity(KEPT), 0_u64);
        let (begun, mut number) = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            let due = begun + Duration::from_secs(1) / self.rate * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            number += 1;
            let connected = TcpStream::connect_timeout(&self.destination, DEADLINE);
            match connected.and_then(|mut stream| stream.write_all(&said).map(|()| stream)) {
                Ok(stream) => kept.push_back(stream),
                Err(_) => failed += 1,
            }
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
        println!("{number} connections, {failed} failed");
        Ok(())
    }
}

impl Kind {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Silent => vec![],
            Self::Garbage => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Self::Hello => hello(),
        }
    }
}

/// RFC 8446, section 4.1.2: X25519, AES-128-GCM, and the tunnel's protocol.
fn hello() -> Vec<u8> {
    let extension = |kind: u8, content: &[u8]| [&[0, kind][..], &length(content), content].concat();
    let share = [&[0, 0x1d][..], &length(&[9; 32]), &[9; 32]].concat();
    let extensions = [
        // supported_groups, signature_algorithms, ALPN, supported_versions, key_share.
        extension(10, &[0, 2, 0, 0x1d]),
        extension(13, &[0, 4, 4, 3, 8, 4]),
        extension(16, b"\0\x0a\x09murmesh/1"),
        extension(43, &[2, 3, 4]),
        extension(51, &[&length(&share)[..], &share].concat()),
    ]
    .concat();
    let hello =
        [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &length(&extensions), &extensions].concat();
    let handshake = [&[1, 0][..], &length(&hello), &hello].concat();
    [&[22, 3, 1][..], &length(&handshake), &handshake].concat()
}

fn length(bytes: &[u8]) -> [u8; 2] {
    (bytes.len() as u16).to_be_bytes()
}
