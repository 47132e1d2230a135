//! Going strict: nobody is locked out by accident, and a mode that nobody confirms goes back.

use std::time::{Duration, SystemTime};

use tonic::Code;

use super::{World, report, until};
use crate::api::unix_seconds;
use crate::api::v1::{self, Mode};
use crate::catalog::Catalog;
use crate::control::Control;
use crate::policy;

fn strict(name: &str, hosts: &[&str]) -> v1::SetServiceRequest {
    v1::SetServiceRequest {
        name: name.to_owned(),
        hosts: hosts.iter().map(ToString::to_string).collect(),
        port: Some(8181),
        mode: Some(Mode::Strict.into()),
        ..v1::SetServiceRequest::default()
    }
}

/// Sends what was seen `seconds_ago`, and waits until the server knows.
async fn seen(world: &World, host: &Control, clients: &[(&str, u64)]) {
    let now = unix_seconds(SystemTime::now()) - 1000;
    let client = |(address, ago): &(&str, u64)| v1::PlaintextClient {
        address: (*address).to_owned(),
        last_seen: now - ago,
    };
    let clients = clients.iter().map(client).collect();
    let port = v1::PlaintextPort { port: 8181, connections: 9, clients, others_last_seen: 0 };
    let ports = if port.clients.is_empty() { vec![] } else { vec![port] };
    let identity = host.identity.borrow().clone();
    // Its clock is wrong.
    let report = v1::PlaintextReport { now, ports };
    world.call_as(&identity).await.report_plaintext(report).await.unwrap();
}

/// A host that is connected and serves, and has told what it saw.
async fn host(world: &World, clients: &[(&str, u64)]) -> Control {
    let host = world.agent("fcs00").await;
    world.report_as(&host, &report("10.0.0.1", 8181)).await.unwrap();
    until(&host, |catalog| catalog.hosts.values().any(|host| host.connected)).await;
    seen(world, &host, clients).await;
    host
}

async fn refused(world: &World, request: v1::SetServiceRequest) -> String {
    let refused = world.service(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{}", refused.message());
    refused.message().to_owned()
}

#[tokio::test]
async fn a_service_that_is_reached_in_clear_becomes_strict_only_by_force() {
    let world = World::start().await;
    let _host = host(&world, &[("192.0.2.7", 120), ("192.0.2.8", 3590), ("192.0.2.9", 3601)]).await;
    let message = refused(&world, strict("fortune", &["fcs00"])).await;
    for part in ["fcs00:8181", "192.0.2.7 (2m", "192.0.2.8 (59m", "--except", "--force"] {
        assert!(message.contains(part), "no {part} in {message}");
    }
    assert!(!message.contains("192.0.2.9"), "longer than an hour ago: {message}");
    let let_in = v1::Exceptions { networks: vec!["192.0.2.0/24".to_owned()] };
    let excepted = v1::SetServiceRequest { exceptions: Some(let_in), ..strict("fortune", &["fcs00"]) };
    world.service(excepted).await.unwrap();
    // And these do not lose their exception by accident.
    let without = v1::SetServiceRequest {
        exceptions: Some(v1::Exceptions::default()),
        ..strict("fortune", &["fcs00"])
    };
    assert!(refused(&world, without.clone()).await.contains("192.0.2.7"));
    world.service(v1::SetServiceRequest { force: true, ..without }).await.unwrap();
}

#[tokio::test]
async fn the_default_becomes_strict_only_by_force_where_it_holds() {
    let world = World::start().await;
    let _host = host(&world, &[("192.0.2.7", 1)]).await;
    let mut administration = world.administration().await;
    let request =
        v1::SetDefaultsRequest { mode: Some(Mode::Strict.into()), ..v1::SetDefaultsRequest::default() };
    let refused = administration.set_defaults(request).await.unwrap_err();
    assert!(refused.message().contains("192.0.2.7"), "{}", refused.message());
    let permissive =
        v1::SetServiceRequest { mode: Some(Mode::Permissive.into()), ..strict("fortune", &["fcs00"]) };
    world.service(permissive).await.unwrap();
    administration.set_defaults(request).await.unwrap();
    // Without its name the port would have the default.
    let remove = v1::RemoveServiceRequest { name: "fortune".to_owned(), force: false };
    let refused = administration.remove_service(remove.clone()).await.unwrap_err();
    assert!(refused.message().contains("192.0.2.7"), "{}", refused.message());
    administration.remove_service(v1::RemoveServiceRequest { force: true, ..remove }).await.unwrap();
}

#[tokio::test]
async fn a_host_that_cannot_tell_keeps_its_services_from_becoming_strict() {
    let world = World::start().await;
    let silent = world.agent("fcs01").await;
    until(&silent, |catalog| catalog.hosts.values().any(|host| host.connected)).await;
    let message = refused(&world, strict("fortune", &["fcs01"])).await;
    assert!(message.contains("host fcs01 cannot tell") && message.contains("a sidecar"), "{message}");
    seen(&world, &silent, &[]).await;
    world.service(strict("fortune", &["fcs01"])).await.unwrap();

    let gone = host(&world, &[]).await;
    let watcher = silent;
    let knows = |catalog: &Catalog, connected: bool| {
        catalog.hosts.values().any(|host| host.node.as_str() == "fcs00" && host.connected == connected)
    };
    // It was not connected before it came, either.
    until(&watcher, |catalog| knows(catalog, true)).await;
    drop(gone);
    until(&watcher, |catalog| knows(catalog, false)).await;
    let message = refused(&world, strict("fortune", &["fcs00", "fcs01"])).await;
    assert!(message.contains("host fcs00 cannot tell") && message.contains("not connected"), "{message}");
}

#[tokio::test]
async fn what_a_host_saw_before_its_agent_or_the_server_was_started_counts() {
    let world = World::start().await;
    let seen_before = host(&world, &[("192.0.2.7", 60)]).await;
    seen(&world, &seen_before, &[]).await;
    drop(seen_before);
    let world = World::start_with(world.stop().await, |_| {}).await;
    assert!(refused(&world, strict("fortune", &["fcs00"])).await.contains("192.0.2.7"));
}

#[tokio::test]
async fn a_report_beyond_the_limits_is_refused() {
    let world = World::start().await;
    let host = host(&world, &[]).await;
    let identity = host.identity.borrow().clone();
    let port = v1::PlaintextPort { port: 8181, ..v1::PlaintextPort::default() };
    let client = |address: &str| v1::PlaintextClient { address: address.to_owned(), last_seen: 1 };
    for ports in [
        vec![port.clone(); 257],
        vec![v1::PlaintextPort { port: 65_536, ..port.clone() }],
        vec![v1::PlaintextPort { clients: vec![client("10.0.0.1"); 17], ..port.clone() }],
        vec![v1::PlaintextPort { clients: vec![client("nobody")], ..port }],
    ] {
        let report = v1::PlaintextReport { now: 1, ports };
        let refused = world.call_as(&identity).await.report_plaintext(report).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

fn confirmed_within(seconds: u64) -> v1::SetServiceRequest {
    v1::SetServiceRequest { confirm_seconds: seconds, force: true, ..strict("fortune", &["fcs00"]) }
}

#[tokio::test]
async fn a_mode_that_nobody_confirms_goes_back_and_one_that_somebody_does_stays() {
    let world = World::start().await;
    let host = host(&world, &[]).await;
    let mode = |wanted: Option<policy::Mode>, unconfirmed: bool| {
        until(&host, move |catalog| {
            catalog
                .policy
                .services()
                .values()
                .any(|service| service.mode == wanted && service.unconfirmed.is_some() == unconfirmed)
        })
    };
    world.service(confirmed_within(1)).await.unwrap();
    mode(Some(policy::Mode::Strict), true).await;
    mode(None, false).await;

    world.service(confirmed_within(3600)).await.unwrap();
    let mut administration = world.administration().await;
    let confirm = v1::ConfirmServiceRequest { name: "fortune".to_owned() };
    administration.confirm_service(confirm.clone()).await.unwrap();
    mode(Some(policy::Mode::Strict), false).await;
    let refused = administration.confirm_service(confirm).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let refused = world.service(confirmed_within(60)).await.unwrap_err();
    assert!(refused.message().contains("another one than before"), "{}", refused.message());
}

#[tokio::test]
async fn the_way_back_survives_a_restart_of_the_server_and_other_changes() {
    let world = World::start().await;
    let host_before = host(&world, &[]).await;
    world.service(confirmed_within(2)).await.unwrap();
    let mut administration = world.administration().await;
    let defaults = v1::SetDefaultsRequest {
        mode: Some(Mode::Strict.into()),
        confirm_seconds: 2,
        force: true,
        ..v1::SetDefaultsRequest::default()
    };
    administration.set_defaults(defaults).await.unwrap();
    let exceptions = Some(v1::Exceptions { networks: vec!["192.0.2.0/24".to_owned()] });
    world.service(v1::SetServiceRequest { mode: None, exceptions, ..strict("fortune", &[]) }).await.unwrap();
    drop(host_before);
    let world = World::start_with(world.stop().await, |_| {}).await;
    let newcomer = world.agent("fcc00").await;
    let catalog = until(&newcomer, |catalog| {
        let service = catalog.policy.services().values().next();
        service.is_some_and(|service| service.mode.is_none())
            && catalog.policy.defaults.mode == policy::Mode::Permissive
    });
    let catalog = tokio::time::timeout(Duration::from_secs(30), catalog).await.unwrap();
    let service = catalog.policy.services().values().next().unwrap();
    assert_eq!((service.exceptions.len(), service.unconfirmed), (1, None));
}
