//! Restarts and expiry: nothing acknowledged is lost, and everybody comes back.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use super::{World, has_endpoint, options, report, until};
use crate::api::v1;
use crate::control::{self, ControlError, Membership};
use crate::seal::Sealer;
use crate::server::{Server, ServerError, ServerOptions};

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
async fn a_connection_ends_with_the_certificate_that_opened_it() {
    let world = World::start_with(tempfile::tempdir().unwrap(), |options| {
        options.certificate_lifetime = Duration::from_secs(5);
    })
    .await;
    let agent = world.agent("fcs00").await;
    let identity = agent.identity.borrow().clone();
    let mut calling = world.call_as(&identity).await;
    let mut told = calling.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    while let Ok(Some(_)) = told.message().await {}
    assert!(identity.is_expired(SystemTime::now()));
}

#[tokio::test]
async fn a_host_whose_certificate_expired_comes_back_by_itself() {
    let short = |options: &mut ServerOptions| options.certificate_lifetime = Duration::from_secs(3);
    let world = World::start_with(tempfile::tempdir().unwrap(), short).await;
    drop(world.agent("fcs00").await);
    let options = world.control_options("fcs00", None);
    let directory = world.stop().await;
    let sealer = Sealer::new(&options.seal.load(None).unwrap()).unwrap();
    let expired = Membership::load(&options.data_dir, &sealer).unwrap().unwrap().identity().unwrap();
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
    assert_eq!(again.identity.borrow().node().unwrap().as_str(), "fcs00");
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
