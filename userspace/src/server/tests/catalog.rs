//! Reports and the catalog: what a host says reaches the others, under its own name.

use std::net::IpAddr;

use tonic::Code;

use super::{World, has_endpoint, report, until};
use crate::api::v1;
use crate::identity::Identity;

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
async fn a_report_beyond_the_limits_is_refused_and_the_host_stays_connected() {
    let world = World::start().await;
    let (host, client) = (world.agent("host").await, world.agent("client").await);
    host.report.send_replace(Some(report("10.0.0.1", 80)));
    until(&client, |catalog| has_endpoint(catalog, "10.0.0.1:80")).await;
    let mut greedy = report("10.0.0.1", 81);
    greedy.addresses = (0..=255).map(|last| IpAddr::from([10, 0, 0, last])).collect();
    greedy.listeners = vec![greedy.listeners[0].clone(); 17];
    let status = world.report_as(&host, &greedy).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("4352, where 4096 are allowed"), "{status}");

    // The same by its own control plane, which must not take this for the end of its connection.
    let mut status = host.status.clone();
    host.report.send_replace(Some(greedy));
    let refused = status.wait_for(|status| status.refusal.is_some()).await.unwrap().clone();
    assert_eq!(refused.connected, Some(world.address.clone()));
    host.report.send_replace(Some(report("10.0.0.1", 82)));
    let taken = status.wait_for(|status| status.refusal.is_none()).await.unwrap().clone();
    assert_eq!(taken.connected, Some(world.address.clone()), "it never left");
    let catalog = until(&client, |catalog| has_endpoint(catalog, "10.0.0.1:82")).await;
    assert_eq!(catalog.endpoints().len(), 1);
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
async fn a_certificate_of_another_mesh_is_refused() {
    let (world, other) = (World::start().await, World::start().await);
    let foreigner = other.agent("fcs00").await;
    let identity = foreigner.identity.borrow().clone();
    let bundle = world.agent("fcc00").await.identity.borrow().bundle.clone();
    let disguised = Identity {
        id: identity.id.clone(),
        chain: identity.chain.clone(),
        key: identity.key.clone_key().into(),
        bundle,
        not_before: identity.not_before,
        not_after: identity.not_after,
    };
    let mut client = world.call_as(&disguised).await;
    assert!(client.watch(v1::WatchRequest {}).await.is_err());
}
