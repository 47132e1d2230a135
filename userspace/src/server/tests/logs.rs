//! Nobody fills the disk of a server with lines that he causes.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::subscriber::DefaultGuard;

use super::{World, join_request, report};
use crate::api::v1;
use crate::identity::HostKey;
use crate::server::mesh::refusal;
use crate::server::registry::RegistryError;

/// Far more than the seconds that they take.
const TIMES: usize = 40;

/// What this thread logs, and with it the server and the agents of a test.
#[derive(Clone)]
struct Logged(Arc<Mutex<Vec<u8>>>, Instant);

impl Logged {
    fn begin() -> (Self, DefaultGuard) {
        let logged = Self(Arc::default(), Instant::now());
        let writer = logged.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        (logged, tracing::subscriber::set_default(subscriber))
    }

    /// There is such a line, and not more than one for each second that was begun.
    fn ensure_limited(&self, line: &str) {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let count = text.lines().filter(|logged| logged.contains(line)).count();
        assert!(count > 0, "{line}: {text}");
        assert!(count as u64 <= 1 + self.1.elapsed().as_secs(), "{count} times: {line}");
    }
}

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn strangers_who_are_refused_again_and_again_are_logged_once_a_second() {
    let world = World::start().await;
    let (mut token, key) = (world.token().await, HostKey::generate().unwrap());
    token.secret = [9; 32].into();
    let join = join_request(&token, "stranger", &key);
    let renewal = v1::RenewRequest {
        node: "stranger".to_owned(),
        certificate_request: key.certificate_request().unwrap(),
    };
    let mut client = world.call_anonymously(&token).await;
    let (logged, _guard) = Logged::begin();
    for _ in 0..TIMES {
        client.join(join.clone()).await.unwrap_err();
        client.renew(renewal.clone()).await.unwrap_err();
    }
    logged.ensure_limited("join refused");
    logged.ensure_limited("renewal refused");
}

#[test]
fn a_database_that_fails_is_logged_once_a_second() {
    let (logged, _guard) = Logged::begin();
    for _ in 0..TIMES {
        refusal(&RegistryError::Damaged("hosts/one".to_owned()));
    }
    logged.ensure_limited("the registry failed");
}

#[tokio::test]
async fn a_host_that_claims_an_address_and_lets_it_go_is_logged_once_a_second() {
    let world = World::start().await;
    let (first, later) = (world.agent("first").await, world.agent("later").await);
    world.report_as(&first, &report("10.0.0.1", 80)).await.unwrap();
    let mut client = world.call_as(&later.identity.borrow().clone()).await;
    let (logged, _guard) = Logged::begin();
    for _ in 0..TIMES {
        for address in ["10.0.0.1", "10.0.0.2"] {
            client.report(v1::HostReport::from(&report(address, 80))).await.unwrap();
        }
    }
    logged.ensure_limited("addresses that others claimed first");
}
