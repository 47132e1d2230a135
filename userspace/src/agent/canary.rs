//! The canary: a destination where nobody listens, which only the hooks can lead to an answer. Whoever connects to
//! it learns whether interception works, from its own cgroup, over the path that every connection takes.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream as AsyncTcpStream};

use crate::socket;

/// Canary destinations: loopback, so that nothing leaves the host when the hooks are not there, and port 1
/// (tcpmux), where nothing has listened for decades.
pub const CANARIES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 109, 109, 1)), 1),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 1),
];

/// What the agent answers.
const BANNER: &[u8] = b"murmesh canary\n";

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Whether an original destination is a canary.
pub fn is_canary(destination: SocketAddr) -> bool {
    CANARIES.contains(&destination)
}

/// The agent's answer to a canary connection.
pub async fn answer(mut application: AsyncTcpStream) {
    if application.write_all(BANNER).await.is_ok() && application.shutdown().await.is_ok() {
        let _ = socket::end_on_close(&application);
    }
}

/// Connects to the canaries and checks the answer, and that the hooks show the dialled address as the peer.
/// IPv6 is left out where this host has none.
///
/// # Errors
/// What went wrong, in words: the first canary that was not answered as it must be. Blocks for up to 4 s.
pub fn probe() -> Result<(), String> {
    CANARIES.into_iter().try_for_each(probe_one)
}

fn probe_one(canary: SocketAddr) -> Result<(), String> {
    let stream = match TcpStream::connect_timeout(&canary, TIMEOUT) {
        Ok(stream) => stream,
        Err(error) if canary.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable => return Ok(()),
        Err(error) => {
            return Err(format!("a connection to the canary {canary} was not intercepted: {error}"));
        }
    };
    let broken = |error: io::Error| format!("the agent did not answer on the canary {canary}: {error}");
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(TIMEOUT)).map_err(broken)?;
    (&stream).take(BANNER.len() as u64 + 1).read_to_end(&mut answer).map_err(broken)?;
    if answer != BANNER {
        return Err(format!("something that is not Murmesh answered on the canary {canary}"));
    }
    match stream.peer_addr() {
        Ok(peer) if peer == canary => Ok(()),
        peer => Err(format!("getpeername on the canary {canary} says {peer:?}: its hook is not in effect")),
    }
}
