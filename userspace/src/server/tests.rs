//! The control plane as a whole: a real server and real agents' clients over TLS on loopback, with a real database.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

use super::{Server, ServerError, ServerOptions};
use crate::api::v1;
use crate::api::v1::mesh_client::MeshClient;
use crate::catalog::{Catalog, Listener, Report};
use crate::control::{self, Control, ControlError, ControlOptions, DialError, Membership};
use crate::identity::token::ServerAddress;
use crate::identity::{HostKey, Identity, JoinToken, tls};
use crate::local::{SERVER_SOCKET, connect};

/// A running server and the directories of everything around it.
struct World {
    directory: TempDir,
    address: ServerAddress,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), ServerError>>,
}

fn options(directory: &Path) -> ServerOptions {
    ServerOptions {
        data_dir: directory.join("server"),
        run_dir: directory.join("run"),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        advertise: vec![],
        trust_domain: Some("mesh.test".parse().unwrap()),
        certificate_lifetime: Duration::from_secs(3600),
        node: "murmesh00".parse().unwrap(),
    }
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start_with(directory, |_| {}).await
    }

    async fn start_with(directory: TempDir, change: impl FnOnce(&mut ServerOptions)) -> Self {
        let mut options = options(directory.path());
        change(&mut options);
        let server = Server::bind(options).await.unwrap();
        let address = server.addresses()[0].to_string().parse().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(server.serve(shutdown.clone()));
        Self { directory, address, shutdown, running }
    }

    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
        self.directory
    }

    async fn token(&self) -> JoinToken {
        self.token_for(3600).await.unwrap()
    }

    async fn token_for(&self, valid_seconds: u64) -> Result<JoinToken, tonic::Status> {
        let mut server =
            connect(&self.directory.path().join("run"), &[SERVER_SOCKET], "server").await.unwrap();
        let answer = server.create_token(v1::CreateTokenRequest { valid_seconds }).await?;
        Ok(answer.into_inner().token.parse().unwrap())
    }

    fn control_options(&self, node: &str, join: Option<JoinToken>) -> ControlOptions {
        ControlOptions { data_dir: self.directory.path().join(node), join, node: node.parse().unwrap() }
    }

    async fn agent(&self, node: &str) -> Control {
        let options = self.control_options(node, Some(self.token().await));
        control::start(options, self.shutdown.clone()).await.unwrap()
    }

    async fn call_anonymously(&self, token: &JoinToken) -> MeshClient<Channel> {
        let tls = tls::join_client(&token.trust_domain, token.ca_fingerprint).unwrap();
        control::dial(&self.address, tls).await.unwrap()
    }

    async fn call_as(&self, identity: &Identity) -> MeshClient<Channel> {
        control::dial(&self.address, tls::api_client(identity).unwrap()).await.unwrap()
    }
}

fn join_request(token: &JoinToken, node: &str, key: &HostKey) -> v1::JoinRequest {
    v1::JoinRequest {
        token_secret: token.secret.to_vec(),
        node: node.to_owned(),
        certificate_request: key.certificate_request().unwrap(),
    }
}

fn report(address: &str, port: u16) -> Report {
    Report {
        addresses: vec![address.parse().unwrap()],
        tunnel_port: 9191,
        listeners: vec![Listener { address: format!("0.0.0.0:{port}").parse().unwrap(), ipv6_only: false }],
        version: "test".to_owned(),
    }
}

async fn until(control: &Control, wanted: impl FnMut(&Arc<Catalog>) -> bool) -> Arc<Catalog> {
    control.catalog.clone().wait_for(wanted).await.unwrap().clone()
}

fn has_endpoint(catalog: &Catalog, address: &str) -> bool {
    catalog.endpoints().contains_key(&address.parse().unwrap())
}

#[tokio::test]
async fn what_one_host_reports_reaches_the_others() {
    let world = World::start().await;
    let (service, client) = (world.agent("fcs00").await, world.agent("fcc00").await);
    assert_eq!(service.identity.borrow().id.to_string(), "spiffe://mesh.test/host/fcs00");
    until(&client, |catalog| catalog.hosts.len() == 2).await;
    service.report.send_replace(Some(report("10.99.0.20", 8181)));
    until(&client, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;
    service.report.send_replace(Some(report("10.99.0.20", 8282)));
    let catalog = until(&client, |catalog| has_endpoint(catalog, "10.99.0.20:8282")).await;
    assert!(!has_endpoint(&catalog, "10.99.0.20:8181"));
    assert!(service.withdraw().await);
    until(&client, |catalog| catalog.endpoints().is_empty()).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_without_losing_the_catalog() {
    let world = World::start_with(tempfile::tempdir().unwrap(), |options| {
        options.certificate_lifetime = Duration::from_secs(4);
    })
    .await;
    let agent = world.agent("fcs00").await;
    agent.report.send_replace(Some(report("10.99.0.20", 8181)));
    let first = agent.identity.borrow().not_after;
    agent.identity.clone().wait_for(|identity| identity.not_after > first).await.unwrap();
    agent.report.send_replace(Some(report("10.99.0.20", 8282)));
    until(&agent, |catalog| has_endpoint(catalog, "10.99.0.20:8282")).await;
}

#[tokio::test]
async fn a_host_whose_certificate_expired_comes_back_by_itself() {
    let short = |options: &mut ServerOptions| options.certificate_lifetime = Duration::from_secs(3);
    let world = World::start_with(tempfile::tempdir().unwrap(), short).await;
    drop(world.agent("fcs00").await);
    let options = world.control_options("fcs00", None);
    let directory = world.stop().await;
    let expired = Membership::load(&options.data_dir).unwrap().unwrap().identity().unwrap();
    let left = expired.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;

    let world = World::start_with(directory, short).await;
    let mut moved = fs::read_to_string(options.data_dir.join("membership.json")).unwrap();
    let start = moved.find("127.0.0.1:").unwrap();
    let end = start + moved[start..].find('"').unwrap();
    moved.replace_range(start..end, world.address.as_str());
    fs::write(options.data_dir.join("membership.json"), moved).unwrap();
    let agent = control::start(options, world.shutdown.clone()).await.unwrap();
    agent.status.clone().wait_for(|status| status.connected.is_some()).await.unwrap();
    assert!(!agent.identity.borrow().is_expired(SystemTime::now()));
}

#[tokio::test]
async fn a_host_counts_as_connected_while_it_is() {
    let world = World::start().await;
    let observer = world.agent("observer").await;
    let host = world.agent("host").await;
    let node = "host".parse().unwrap();
    until(&observer, |catalog| catalog.hosts.get(&node).is_some_and(|host| host.connected)).await;
    drop(host);
    let catalog = until(&observer, |catalog| !catalog.hosts[&node].connected).await;
    assert!(catalog.hosts[&node].last_seen.is_some());
}

#[tokio::test]
async fn a_lost_answer_to_a_join_is_given_again() {
    let world = World::start().await;
    let (token, key) = (world.token().await, HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    for _ in 0..2 {
        let answer = client.join(join_request(&token, "fcs00", &key)).await.unwrap().into_inner();
        assert_eq!((answer.chain.len(), answer.bundle.len()), (1, 1));
    }
}

#[tokio::test]
async fn a_token_lets_one_host_in_once() {
    let world = World::start().await;
    let (token, key) = (world.token().await, HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    client.join(join_request(&token, "fcs00", &key)).await.unwrap();
    let other_key = HostKey::generate().unwrap();
    for (node, key) in [("fcs01", &key), ("fcs00", &other_key)] {
        let refused = client.join(join_request(&token, node, key)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("murmesh token create"), "{}", refused.message());
    }
}

#[tokio::test]
async fn of_hosts_racing_for_one_token_exactly_one_joins() {
    let world = World::start().await;
    let token = world.token().await;
    let client = world.call_anonymously(&token).await;
    let racers: Vec<_> = (0..8)
        .map(|number| {
            let (mut client, key) = (client.clone(), HostKey::generate().unwrap());
            let request = join_request(&token, &format!("racer{number}"), &key);
            tokio::spawn(async move { client.join(request).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for racer in racers {
        joined += usize::from(racer.await.unwrap());
    }
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn an_expired_or_unknown_token_is_refused() {
    let world = World::start().await;
    let (mut token, key) = (world.token_for(1).await.unwrap(), HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    let left = token.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;
    let refused = client.join(join_request(&token, "fcs00", &key)).await.unwrap_err();
    assert!(refused.message().contains("expired"), "{}", refused.message());
    token.secret = [9; 32];
    let refused = client.join(join_request(&token, "fcs00", &key)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(world.token_for(0).await.is_err());
}

#[tokio::test]
async fn a_name_stays_with_the_key_that_took_it() {
    let world = World::start().await;
    let (first, second) = (world.token().await, world.token().await);
    let mut client = world.call_anonymously(&first).await;
    client.join(join_request(&first, "fcs00", &HostKey::generate().unwrap())).await.unwrap();
    let (thief, request) = (HostKey::generate().unwrap(), "fcs00");
    let refused = client.join(join_request(&second, request, &thief)).await.unwrap_err();
    assert!(refused.message().contains("already a member"), "{}", refused.message());
    // The refusal did not use up the token.
    client.join(join_request(&second, "fcs01", &thief)).await.unwrap();
}

#[tokio::test]
async fn only_the_key_that_joined_can_renew() {
    let world = World::start().await;
    let (token, key) = (world.token().await, HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    client.join(join_request(&token, "fcs00", &key)).await.unwrap();
    let renewal = |node: &str, key: &HostKey| v1::RenewRequest {
        node: node.to_owned(),
        certificate_request: key.certificate_request().unwrap(),
    };
    client.renew(renewal("fcs00", &key)).await.unwrap();
    for request in [renewal("fcs00", &HostKey::generate().unwrap()), renewal("fcs01", &key)] {
        assert_eq!(client.renew(request).await.unwrap_err().code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn watching_and_reporting_need_a_certificate() {
    let world = World::start().await;
    let mut client = world.call_anonymously(&world.token().await).await;
    assert_eq!(client.watch(v1::WatchRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(client.report(v1::HostReport::default()).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_report_counts_for_the_host_whose_certificate_it_came_with() {
    let world = World::start().await;
    let (one, two) = (world.agent("one").await, world.agent("two").await);
    let identity = one.identity.borrow().clone();
    world.call_as(&identity).await.report(v1::HostReport::from(&report("10.0.0.1", 80))).await.unwrap();
    let catalog = until(&two, |catalog| has_endpoint(catalog, "10.0.0.1:80")).await;
    assert_eq!(catalog.endpoints()[&"10.0.0.1:80".parse().unwrap()].host.node.as_str(), "one");
    let mut wrong = v1::HostReport::from(&report("10.0.0.1", 80));
    wrong.addresses.push("127.0.0.1".to_owned());
    let refused = world.call_as(&identity).await.report(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_server_with_another_root_is_not_trusted() {
    let world = World::start().await;
    let mut token = world.token().await;
    token.ca_fingerprint[0] ^= 1;
    let failed = control::start(world.control_options("fcs00", Some(token)), world.shutdown.clone()).await;
    assert!(matches!(failed, Err(ControlError::Dial(DialError::Untrusted { .. }))));
}

#[tokio::test]
async fn a_certificate_of_another_mesh_is_refused() {
    let (world, other) = (World::start().await, World::start().await);
    let foreigner = other.agent("fcs00").await;
    let identity = foreigner.identity.borrow().clone();
    let bundle = world.agent("fcc00").await.identity.borrow().bundle.clone();
    let disguised = Identity {
        id: identity.id.clone(),
        chain: identity.chain.clone(),
        key: identity.key.clone_key(),
        bundle,
        not_before: identity.not_before,
        not_after: identity.not_after,
    };
    let mut client = world.call_as(&disguised).await;
    assert!(client.watch(v1::WatchRequest {}).await.is_err());
}

#[tokio::test]
async fn a_restarted_server_has_everything_and_agents_come_back() {
    let world = World::start().await;
    let address: SocketAddr = world.address.as_str().parse().unwrap();
    let lifetime = CancellationToken::new();
    let options = world.control_options("fcs00", Some(world.token().await));
    let agent = control::start(options, lifetime.clone()).await.unwrap();
    agent.report.send_replace(Some(report("10.99.0.20", 8181)));
    until(&agent, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;

    let directory = world.stop().await;
    agent.status.clone().wait_for(|status| status.connected.is_none()).await.unwrap();
    assert!(has_endpoint(&agent.catalog.borrow(), "10.99.0.20:8181"), "the last catalog is kept");

    let world = World::start_with(directory, |options| options.listen = vec![address]).await;
    agent.status.clone().wait_for(|status| status.connected.is_some()).await.unwrap();
    let newcomer = world.agent("fcc00").await;
    let first = until(&newcomer, |catalog| catalog.revision > 0).await;
    assert!(has_endpoint(&first, "10.99.0.20:8181"), "the first snapshot is complete");
}

#[tokio::test]
async fn a_member_needs_no_token_and_keeps_its_name() {
    let world = World::start().await;
    drop(world.agent("fcs00").await);
    let mut options = world.control_options("fcs00", None);
    options.node = "renamed".parse().unwrap();
    let again = control::start(options, world.shutdown.clone()).await.unwrap();
    assert_eq!(again.identity.borrow().id.node.as_str(), "fcs00");
    let stranger = control::start(world.control_options("fcs01", None), world.shutdown.clone()).await;
    assert!(matches!(stranger, Err(ControlError::NotJoined(_))));
}

#[tokio::test]
async fn another_trust_domain_is_not_served_from_the_same_directory() {
    let directory = World::start().await.stop().await;
    let mut options = options(directory.path());
    options.trust_domain = Some("other.test".parse().unwrap());
    assert!(matches!(Server::bind(options).await, Err(ServerError::OtherTrustDomain { .. })));
}
