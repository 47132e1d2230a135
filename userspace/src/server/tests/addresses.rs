//! Whose address it is: the first host that claimed it has it, for as long as it claims it.

use std::net::IpAddr;

use super::{World, has_endpoint, report, until};
use crate::api::v1;
use crate::catalog::{Catalog, Report};
use crate::control::Control;

const ADDRESS: &str = "10.0.0.1";

fn owner(catalog: &Catalog, address: &str) -> Option<String> {
    let endpoints = catalog.endpoints();
    Some(endpoints.get(&address.parse().unwrap())?.host.node.to_string())
}

impl World {
    /// Reports as `host`, whose own control plane reports nothing; returns what is contested.
    async fn report(&self, host: &Control, report: &Report) -> Vec<String> {
        self.report_as(host, report).await.unwrap()
    }
}

#[tokio::test]
async fn an_address_stays_with_the_host_that_claimed_it_first() {
    let world = World::start().await;
    // The name of the later one comes first: order of names does not decide.
    let (first, later) = (world.agent("first").await, world.agent("claimant").await);
    assert!(world.report(&first, &report(ADDRESS, 80)).await.is_empty());
    let mut both = report(ADDRESS, 80);
    both.addresses.push("10.0.0.2".parse().unwrap());
    for _ in 0..2 {
        assert_eq!(world.report(&later, &both).await, [ADDRESS]);
    }
    let catalog = until(&first, |catalog| has_endpoint(catalog, "10.0.0.2:80")).await;
    assert_eq!(owner(&catalog, "10.0.0.1:80").as_deref(), Some("first"));
    assert_eq!(owner(&catalog, "10.0.0.2:80").as_deref(), Some("claimant"));
    assert!(world.report(&first, &report(ADDRESS, 80)).await.is_empty(), "the first is not disturbed");
}

#[tokio::test]
async fn a_repeated_report_changes_nothing() {
    let world = World::start().await;
    let (first, later) = (world.agent("first").await, world.agent("later").await);
    world.report(&first, &report(ADDRESS, 80)).await;
    let identity = later.identity.borrow().clone();
    let mut client = world.call_as(&identity).await;
    let mut revisions = Vec::new();
    for _ in 0..2 {
        let answer = client.report(v1::HostReport::from(&report(ADDRESS, 80))).await.unwrap();
        revisions.push(answer.into_inner().revision);
    }
    assert_eq!(revisions[0], revisions[1]);
}

#[tokio::test]
async fn an_address_that_its_owner_lets_go_is_taken_over_by_the_waiting_host() {
    let world = World::start().await;
    let (first, later) = (world.agent("first").await, world.agent("later").await);
    world.report(&first, &report(ADDRESS, 80)).await;
    later.report.send_replace(Some(report(ADDRESS, 81)));
    let contested: Vec<IpAddr> = vec![ADDRESS.parse().unwrap()];
    later.status.clone().wait_for(|status| status.contested == contested).await.unwrap();
    assert!(!has_endpoint(&later.catalog.borrow(), "10.0.0.1:81"));

    world.report(&first, &report("10.0.0.3", 80)).await;
    let catalog = until(&first, |catalog| has_endpoint(catalog, "10.0.0.1:81")).await;
    assert_eq!(owner(&catalog, "10.0.0.1:81").as_deref(), Some("later"));
    later.status.clone().wait_for(|status| status.contested.is_empty()).await.unwrap();
    assert_eq!(world.report(&first, &report(ADDRESS, 80)).await, [ADDRESS], "now the other has it");
}

#[tokio::test]
async fn of_hosts_racing_for_an_address_exactly_one_gets_it() {
    let world = World::start().await;
    let mut racers = Vec::new();
    for number in 0..6 {
        let racer = world.agent(&format!("racer{number}")).await;
        let identity = racer.identity.borrow().clone();
        let mut client = world.call_as(&identity).await;
        let request = v1::HostReport::from(&report(ADDRESS, 80));
        racers.push(tokio::spawn(async move { client.report(request).await.unwrap().into_inner() }));
    }
    let mut owners = 0;
    for racer in racers {
        owners += usize::from(racer.await.unwrap().contested_addresses.is_empty());
    }
    assert_eq!(owners, 1);
}

#[tokio::test]
async fn a_restarted_server_knows_whose_address_it_is() {
    let world = World::start().await;
    let first = world.agent("first").await;
    world.report(&first, &report(ADDRESS, 80)).await;
    let world = World::start_with(world.stop().await, |_| {}).await;
    let later = world.agent("later").await;
    assert_eq!(world.report(&later, &report(ADDRESS, 80)).await, [ADDRESS]);
    assert!(world.report(&first, &report(ADDRESS, 80)).await.is_empty());
    assert!(world.report(&first, &report("10.0.0.3", 80)).await.is_empty());
    assert!(world.report(&later, &report(ADDRESS, 80)).await.is_empty());
}
