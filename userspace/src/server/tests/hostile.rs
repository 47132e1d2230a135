//! Port 9190 is open to everybody, and not every host of the mesh is a friend.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::identity::fixture;
use crate::sandbox::raise_descriptor_limit;

/// What begins an HTTP/2 connection (RFC 9113, section 3.4), with an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame that asks for an answer (section 6.7).
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0murmesh!";

impl World {
    fn socket_address(&self) -> SocketAddr {
        self.address.as_str().parse().unwrap()
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.socket_address()).await.unwrap()
    }

    async fn connect_with(&self, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let name = self.socket_address().ip().into();
        TlsConnector::from(Arc::new(config)).connect(name, self.connect().await).await
    }

    /// How many were refused for that reason.
    async fn refused(&self, reason: &str) -> u64 {
        let run_dir = self.directory.path().join("run");
        let mut server = connect(&run_dir, &[SERVER_SOCKET], "server").await.unwrap();
        let status = server.status(v1::StatusRequest {}).await.unwrap().into_inner();
        let counts = status.refused.into_iter().map(|refused| (refused.reason, refused.count));
        counts.collect::<BTreeMap<_, _>>().get(reason).copied().unwrap_or_default()
    }

    /// Waits until that was counted so often.
    async fn wait_refused(&self, reason: &str, count: u64) {
        let counted = async { while self.refused(reason).await < count {} };
        tokio::time::timeout(Duration::from_secs(60), counted).await.expect(reason);
        assert_eq!(self.refused(reason).await, count, "{reason}");
    }

    /// What a host that has joined dials with.
    fn host_config(identity: &Identity) -> ClientConfig {
        Arc::unwrap_or_clone(tls::api_client(identity).unwrap())
    }
}

#[tokio::test]
async fn each_refusal_is_counted_by_its_reason() {
    let world = World::start().await;
    let agent = world.agent("one").await;
    let identity = agent.identity.borrow().clone();
    let hello = fixture::tls12_hello();
    for garbage in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &hello] {
        world.connect().await.write_all(garbage).await.unwrap();
    }
    world.wait_refused("not_tls", 2).await;
    for truncated in [&[], &hello[..40]] {
        world.connect().await.write_all(truncated).await.unwrap();
    }
    world.wait_refused("ended", 2).await;
    for other in [vec![], vec![b"murmesh/1".to_vec()]] {
        let mut config = World::host_config(&identity);
        config.alpn_protocols = other;
        if let Ok(mut stream) = world.connect_with(config).await {
            stream.read_u8().await.unwrap_err();
        }
    }
    world.wait_refused("other_protocol", 2).await;
    let stranger = fixture::host(&fixture::authority(), "one");
    let stranger = Identity { bundle: identity.bundle.clone(), ..stranger };
    let mut stream = world.connect_with(World::host_config(&stranger)).await.unwrap();
    stream.read_u8().await.unwrap_err();
    world.wait_refused("other_authority", 1).await;
    let elsewhere = fixture::host(&fixture::authority(), "one");
    assert!(world.connect_with(World::host_config(&elsewhere)).await.is_err(), "of another mesh");
    world.wait_refused("by_other", 1).await;
}

#[tokio::test]
async fn a_host_has_no_more_than_a_few_connections_and_takes_none_from_others() {
    let world = World::start().await;
    let traitor = world.agent("traitor").await;
    let identity = traitor.identity.borrow().clone();
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(world.connect_with(World::host_config(&identity)).await.unwrap());
    }
    let mut refused = 0;
    for stream in &mut held {
        // What is refused ends at once, and what is accepted begins with the server's settings.
        refused += u64::from(stream.read_u8().await.is_err());
    }
    assert!(refused >= 40 - 16, "{refused} of 40 were refused");
    world.wait_refused("too_many_of_host", refused).await;
    let other = world.agent("other").await;
    until(&other, |catalog| catalog.revision > 0).await;
    drop(held);
    drop(traitor);
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_cut_off_after_some_kilobytes() {
    let world = World::start().await;
    let token = world.token().await;
    let config = tls::join_client(&token.trust_domain, token.ca_fingerprint).unwrap();
    let stream = world.connect_with(Arc::unwrap_or_clone(config)).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let (mut answers, mut sent) = (Vec::new(), PREFACE.len());
    let flood = async {
        let mut result = writing.write_all(PREFACE).await;
        while result.is_ok() {
            result = writing.write_all(PING).await;
            sent += PING.len();
        }
    };
    // Ends when the server closes; what it answered until then was less than it was sent.
    tokio::select! {
        _ = reading.read_to_end(&mut answers) => {}
        () = flood => {}
    }
    world.wait_refused("too_much", 1).await;
    world.agent_with("one", token).await;
}

/// Each costs more to take than to send, and nothing above TLS sees it.
#[tokio::test]
async fn a_caller_that_updates_its_key_without_end_is_cut_off() {
    let world = World::start().await;
    let agent = world.agent("one").await;
    let identity = agent.identity.borrow().clone();
    let token = world.token().await;
    let unproved = tls::join_client(&token.trust_domain, token.ca_fingerprint).unwrap();
    for (config, refused) in
        [(World::host_config(&identity), "broke_protocol"), (Arc::unwrap_or_clone(unproved), "too_much")]
    {
        let mut stream = world.connect_with(config).await.unwrap();
        stream.write_all(PREFACE).await.unwrap();
        // It is accepted: the server's settings.
        stream.read_u8().await.unwrap();
        // Who has a certificate may go on only without anything in between; who has none may not go on at all.
        let between = if refused == "too_much" { PING } else { b"" };
        while stream.write_all(between).await.is_ok() && stream.flush().await.is_ok() {
            for _ in 0..16 {
                stream.get_mut().1.refresh_traffic_keys().unwrap();
            }
        }
        world.wait_refused(refused, 1).await;
    }
    world.agent_with("two", token).await;
}

/// More than there were ever handshakes at a time.
#[tokio::test]
async fn silent_strangers_keep_no_host_from_joining() {
    const STRANGERS: usize = 1000;
    raise_descriptor_limit();
    let world = World::start().await;
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        strangers.push(world.connect().await);
    }
    let agent = world.agent("late").await;
    until(&agent, |catalog| catalog.revision > 0).await;
    drop(strangers);
}
