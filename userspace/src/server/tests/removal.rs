//! A host is taken out of the mesh, and comes back.

use std::time::SystemTime;

use super::{World, report, until};
use crate::api::v1;
use crate::catalog::Catalog;
use crate::control::{self, Control};
use crate::identity::{NodeName, Subject, peer_identity};
use crate::local::connect_to_server;

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
    let catalog = until(&stays, |catalog| catalog.hosts.contains_key(&"gone".parse().unwrap())).await;
    assert!(!refuses(&catalog, &back));
    assert!(
        catalog.removed.refuses(&peer_identity(&before.chain).unwrap()),
        "the old certificate stays refused"
    );
    until(&back, |catalog| catalog.revision > 0).await;
    assert!(back.identity.borrow().not_before < SystemTime::now());
}
