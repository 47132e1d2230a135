//! A host is taken out of the mesh, and comes back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use tonic::Code;

use super::{World, join_request, report, until};
use crate::api::v1;
use crate::catalog::Catalog;
use crate::control::{self, Control};
use crate::identity::authority::{Issue, VerifiedRequest};
use crate::identity::{HostKey, Identity, NodeName, PeerIdentity, SpiffeId, Subject, peer_identity};
use crate::local::connect_to_server;
use crate::seal::{DEFAULT_KEY_FILE, KeySource};
use crate::server::roots::RootRecords;
use crate::server::{StoreOptions, open_store, sealing};

async fn remove(world: &World, node: &str) -> Result<(), tonic::Status> {
    let mut server = connect_to_server(&world.directory.path().join("run")).await.unwrap();
    server.remove_host(v1::RemoveHostRequest { node: node.to_owned() }).await.map(drop)
}

fn refuses(catalog: &Catalog, host: &Control) -> bool {
    catalog.removed.refuses(&peer_identity(&host.identity.borrow().chain).unwrap())
}

#[tokio::test]
async fn what_a_removed_host_has_is_refused_by_all_and_its_address_is_free() {
    let world = World::start().await;
    let (gone, stays) = (world.agent("gone").await, world.agent("stays").await);
    world.report_as(&gone, &report("10.0.0.1", 80)).await.unwrap();
    assert_eq!(world.report_as(&stays, &report("10.0.0.1", 80)).await.unwrap(), ["10.0.0.1"]);
    let name: NodeName = "gone".parse().unwrap();
    until(&stays, |catalog| catalog.hosts.contains_key(&name)).await;
    remove(&world, "gone").await.unwrap();
    let catalog = until(&stays, |catalog| !catalog.hosts.contains_key(&name)).await;
    until(&stays, |catalog| refuses(catalog, &gone)).await;
    assert!(!refuses(&catalog, &stays));
    assert!(world.report_as(&gone, &report("10.0.0.1", 80)).await.unwrap_err().message().contains("removed"));
    let workload = Subject::Workload(name, "user-root".parse().unwrap());
    assert!(gone.issuer().issue(&workload).await.is_err());
    assert!(world.report_as(&stays, &report("10.0.0.1", 80)).await.unwrap().is_empty());
    gone.status
        .clone()
        .wait_for(|status| status.error.as_ref().is_some_and(|error| error.contains("removed")))
        .await
        .unwrap();
    assert!(remove(&world, "gone").await.unwrap_err().message().contains("murmesh members"));
}

#[tokio::test]
async fn a_removed_host_joins_again_under_its_name_with_a_new_token_and_with_no_other() {
    let world = World::start().await;
    let (old_token, stays) = (world.token().await, world.agent("stays").await);
    let gone = world.agent_with("gone", old_token.clone()).await;
    let before = gone.identity.borrow().clone();
    remove(&world, "gone").await.unwrap();
    drop(gone);
    let again = |token| control::start(world.control_options("gone", Some(token)), world.shutdown.clone());
    let unchanged = again(old_token).await.unwrap();
    assert_eq!(unchanged.identity.borrow().chain, before.chain, "the old token does not help");
    drop(unchanged);
    let back = again(world.token().await).await.unwrap();
    // The host was there before it was removed, too.
    let old = peer_identity(&before.chain).unwrap();
    let name: NodeName = "gone".parse().unwrap();
    let catalog = until(&stays, |catalog| catalog.removed.refuses(&old) && catalog.hosts.contains_key(&name));
    let catalog = catalog.await;
    assert!(!refuses(&catalog, &back));
    until(&back, |catalog| catalog.revision > 0).await;
    assert!(back.identity.borrow().not_before < SystemTime::now());
}

#[tokio::test]
async fn the_token_that_a_removed_host_used_does_not_let_it_in_again_and_a_new_one_does() {
    let world = World::start().await;
    let (token, key) = (world.token().await, HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    client.join(join_request(&token, "gone", &key)).await.unwrap();
    remove(&world, "gone").await.unwrap();
    for _ in 0..2 {
        let refused = client.join(join_request(&token, "gone", &key)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("murmesh token create"), "{}", refused.message());
    }
    let renewal =
        v1::RenewRequest { node: "gone".to_owned(), certificate_request: key.certificate_request().unwrap() };
    assert_eq!(client.renew(renewal.clone()).await.unwrap_err().code(), Code::PermissionDenied);
    let new = world.token().await;
    client.join(join_request(&new, "gone", &key)).await.unwrap();
    client.renew(renewal).await.unwrap();
}

fn peer(chain: &[Vec<u8>]) -> PeerIdentity {
    peer_identity(&[CertificateDer::from(chain[0].as_slice())]).unwrap()
}

/// A mesh, and what one of its servers, whose clock is ahead of the others', has signed for the host.
async fn signed_ahead(node: &NodeName, key: &HostKey, joined_after: Option<SystemTime>) -> (World, Identity) {
    let directory = World::start().await.stop().await;
    let path = directory.path().join("server");
    let store = open_store(&StoreOptions::Embedded(path.clone())).await.unwrap();
    let sealer = sealing::open(&*store, &KeySource::Default(path.join(DEFAULT_KEY_FILE))).await.unwrap();
    let records = RootRecords { store, sealer: sealer.into() };
    let authority = records.load(None).await.unwrap().authority;
    drop(records);
    let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
    let id = SpiffeId::host(authority.trust_domain().clone(), node.clone());
    let made = SystemTime::now() + Duration::from_secs(200);
    let issue = Issue { holder: None, joined_after, made, lifetime: Duration::from_secs(3600) };
    let leaf = authority.sign_as(&request, &id, &issue).unwrap();
    let identity = Identity::new(key, vec![leaf], vec![authority.root().clone()]).unwrap();
    (World::start_with(directory, |_| {}).await, identity)
}

#[tokio::test]
async fn a_removed_host_with_a_certificate_of_a_later_date_is_refused_by_servers() {
    let (node, key): (NodeName, _) = ("gone".parse().unwrap(), HostKey::generate().unwrap());
    let (world, identity) = signed_ahead(&node, &key, None).await;
    let token = world.token().await;
    let mut client = world.call_anonymously(&token).await;
    client.join(join_request(&token, "gone", &key)).await.unwrap();
    let mut calling = world.call_as(&identity).await;
    let heard = v1::HostReport::from(&report("10.0.0.1", 80));
    calling.report(heard.clone()).await.unwrap();
    remove(&world, "gone").await.unwrap();
    let refused = calling.report(heard).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("removed"), "{}", refused.message());
    assert!(calling.watch(v1::WatchRequest {}).await.is_err());
    let certificate_request = key.certificate_request().unwrap();
    let spiffe_id = "spiffe://mesh.test/host/gone/user-root".to_owned();
    let asked = v1::SignWorkloadRequest { spiffe_id, certificate_request };
    assert!(calling.sign_workload(asked).await.is_err());
}

#[tokio::test]
async fn what_a_host_had_before_it_was_removed_stays_refused_whatever_the_clock_of_who_signed_it() {
    let (node, key): (NodeName, _) = ("gone".parse().unwrap(), HostKey::generate().unwrap());
    let (world, identity) = signed_ahead(&node, &key, Some(UNIX_EPOCH)).await;
    let (token, stays) = (world.token().await, world.agent("stays").await);
    let mut client = world.call_anonymously(&token).await;
    let first = client.join(join_request(&token, "gone", &key)).await.unwrap().into_inner();
    let asked = v1::SignWorkloadRequest {
        spiffe_id: "spiffe://mesh.test/host/gone/user-root".to_owned(),
        certificate_request: key.certificate_request().unwrap(),
    };
    let mut calling = world.call_as(&identity).await;
    let workload = calling.sign_workload(asked.clone()).await.unwrap().into_inner();
    remove(&world, "gone").await.unwrap();

    let new = world.token().await;
    let back = client.join(join_request(&new, "gone", &key)).await.unwrap().into_inner();
    let catalog = until(&stays, |catalog| catalog.removed.at(&node).is_some()).await;
    for ended in [&peer_identity(&identity.chain).unwrap(), &peer(&first.chain), &peer(&workload.chain)] {
        assert!(catalog.removed.refuses(ended), "{ended:?}");
    }
    assert!(calling.sign_workload(asked.clone()).await.is_err());
    let chain = |der: &[Vec<u8>]| der.iter().cloned().map(CertificateDer::from).collect();
    let member = Identity::new(&key, chain(&back.chain), chain(&back.bundle)).unwrap();
    let workload = world.call_as(&member).await.sign_workload(asked).await.unwrap().into_inner();
    let renewal =
        v1::RenewRequest { node: "gone".to_owned(), certificate_request: key.certificate_request().unwrap() };
    let renewed = client.renew(renewal).await.unwrap().into_inner();
    for current in [&back, &workload, &renewed].map(|answer| peer(&answer.chain)) {
        assert!(!catalog.removed.refuses(&current), "{current:?}");
        assert!(
            current.made <= SystemTime::now(),
            "dated ahead, it would not be valid yet where a clock is behind"
        );
    }
}
