//! Several servers over one etcd: everybody knows what one of them was told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::web::Browser;
use super::{World, has_endpoint, report, until};
use crate::api::v1;
use crate::catalog::{Catalog, Report};
use crate::control;
use crate::flows::{Client, Flows, Key};
use crate::identity::Subject;
use crate::local::{SERVER_SOCKET, connect, connect_to_server};
use crate::seal::{DEFAULT_KEY_FILE, KeySource};
use crate::server::{PageOptions, ServerOptions, StoreOptions, export, import};
use crate::store::etcd_testing::Cluster;

async fn server(cluster: &Cluster, name: &str, directory: TempDir) -> World {
    server_with(cluster, name, directory, |_| {}).await
}

async fn server_with(
    cluster: &Cluster,
    name: &str,
    directory: TempDir,
    change: impl FnOnce(&mut ServerOptions),
) -> World {
    let (store, seal) = (cluster.options(name), KeySource::Default(cluster.directory().join("seal.key")));
    World::start_with(directory, |options| {
        options.store = StoreOptions::Etcd(store);
        options.seal = seal;
        options.node = name.parse().unwrap();
        options.page = PageOptions::At("127.0.0.1:0".parse().unwrap());
        change(options);
    })
    .await
}

async fn two(cluster: &Cluster) -> (World, World) {
    let one = server(cluster, "one", tempfile::tempdir().unwrap()).await;
    (one, server(cluster, "two", tempfile::tempdir().unwrap()).await)
}

async fn members(world: &World) -> Catalog {
    let mut server = connect(&world.directory.path().join("run"), &[SERVER_SOCKET], "server").await.unwrap();
    server.members(v1::MembersRequest {}).await.unwrap().into_inner().try_into().unwrap()
}

/// Asks until it is so: the other server hears of it a moment later.
async fn sees(world: &World, wanted: impl Fn(&Catalog) -> bool) -> Catalog {
    let asking = async {
        loop {
            let catalog = members(world).await;
            if wanted(&catalog) {
                return catalog;
            }
        }
    };
    match tokio::time::timeout(Duration::from_secs(30), asking).await {
        Ok(catalog) => catalog,
        Err(_) => panic!("the server does not hear of it: {:?}", members(world).await),
    }
}

fn leaders(catalog: &Catalog) -> Vec<String> {
    catalog.servers.iter().filter(|server| server.leader).map(|server| server.node.to_string()).collect()
}

fn is_connected(catalog: &Catalog, node: &str) -> bool {
    catalog.hosts.get(&node.parse().unwrap()).is_some_and(|host| host.connected)
}

#[tokio::test]
async fn what_one_server_is_told_all_of_them_answer() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let (one, two) = two(&cluster).await;
    // The token is made by one and used at the other, and the certificate of either is good for both.
    let token = one.token().await;
    assert_eq!(token.servers.len(), 1 + usize::from(token.servers.contains(&two.address)));
    let token = crate::identity::JoinToken { servers: vec![two.address.clone()], ..token };
    let options = two.control_options("fcs00", Some(token));
    let agent = control::start(options, CancellationToken::new()).await.unwrap();
    let identity = agent.identity.borrow().clone();
    one.call_as(&identity).await.report(v1::HostReport::from(&report("10.99.0.20", 8181))).await.unwrap();
    until(&agent, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;
    // The agent hears it from the other one.
    sees(&one, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;
    let mut admin = connect_to_server(&one.directory.path().join("run")).await.unwrap();
    let rule = v1::AddRuleRequest {
        action: v1::Action::Deny.into(),
        source: "fcs00".to_owned(),
        destination: "fcs00:8181".to_owned(),
        dry_run: false,
    };
    admin.add_rule(rule).await.unwrap();
    until(&agent, |catalog| !catalog.policy.rules().is_empty()).await;
    sees(&two, |catalog| catalog.policy.rules().len() == 1).await;
}

#[tokio::test]
async fn servers_see_each_other_each_others_hosts_and_one_leader() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let (one, two) = two(&cluster).await;
    let agent = one.agent("fcs00").await;
    let knows_all = |catalog: &Catalog| {
        catalog.servers.len() == 2
            && catalog.servers.iter().all(|server| server.connected)
            && is_connected(catalog, "fcs00")
            && leaders(catalog) == ["one"]
    };
    sees(&one, knows_all).await;
    sees(&two, knows_all).await;
    one.stop().await;
    let catalog = sees(&two, |catalog| leaders(catalog) == ["two"]).await;
    assert!(!catalog.servers.iter().any(|server| server.node.as_str() == "one" && server.connected));
    drop(agent);
    sees(&two, |catalog| !is_connected(catalog, "fcs00")).await;
}

#[tokio::test]
async fn the_pages_of_all_servers_show_what_hosts_tell_one_of_them() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let (one, two) = two(&cluster).await;
    let agent = one.agent("fcc00").await;
    let flows = Arc::<Flows>::default();
    let key = Key {
        client: Client::Known(Subject::Workload("fcc00".parse().unwrap(), "user-root".parse().unwrap())),
        destination: ([10, 99, 0, 20], 8181).into(),
        outcome: v1::Outcome::Allowed,
    };
    flows.of(&key).opened(None);
    agent.flows.send_replace(Some(flows.clone()));
    let pages = [Browser::admitted(&one).await, Browser::admitted(&two).await];
    for connections in [1, 2] {
        for page in &pages {
            let state = page.state(|state| state["flows"][0]["connections"] == connections).await;
            let (flow, host) = (&state["flows"][0], &state["hosts"][0]);
            assert_eq!((&flow["host"], &flow["workload"]), (&"fcc00".into(), &"user-root".into()));
            assert_eq!((&host["reports"], state["flows"].as_array().unwrap().len()), (&true.into(), 1));
        }
        flows.of(&key).opened(None);
    }
    drop(agent);
    for page in &pages {
        page.state(|state| state["flows"].as_array().is_some_and(Vec::is_empty)).await;
    }
}

#[tokio::test]
async fn the_page_of_one_server_names_the_other_that_knows_more_of_a_host_and_cannot_be_asked() {
    let Some(cluster) = Cluster::start(1).await else { return };
    // Nothing listens there.
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let directory = || tempfile::tempdir().unwrap();
    let one = server_with(&cluster, "one", directory(), |options| options.advertise = vec![nowhere]).await;
    let two = server(&cluster, "two", directory()).await;
    let agent = two.agent("fcc00").await;
    let identity = agent.identity.borrow().clone();
    drop(agent);
    let mut host = one.call_as(&identity).await;
    let _watch = host.watch(v1::WatchRequest {}).await.unwrap();
    let (reports, outgoing) = mpsc::channel(1);
    let _wanted = host.flows(ReceiverStream::new(outgoing)).await.unwrap();
    let pages = [Browser::admitted(&one).await, Browser::admitted(&two).await];
    let is_of_one = |state: &Value| state["hosts"][0]["servers"] == json!(["one"]);
    pages[0].state(is_of_one).await;
    reports.send(v1::FlowReport::default()).await.unwrap();
    pages[0].state(|state| state["hosts"][0]["reports"] == true).await;
    let state = pages[1].state(is_of_one).await;
    assert_eq!((&state["server"], &state["hosts"][0]["reports"]), (&"two".into(), &false.into()));
}

#[tokio::test]
async fn only_servers_are_told_what_hosts_tell() {
    let world = World::start().await;
    let token = world.token().await;
    let request = v1::ToldFlowsRequest {};
    let refused = world.call_anonymously(&token).await.told_flows(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let agent = world.agent_with("traitor", token).await;
    let identity = agent.identity.borrow().clone();
    let refused = world.call_as(&identity).await.told_flows(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    world.stop().await;
}

#[tokio::test]
async fn an_agent_learns_all_servers_and_goes_on_with_those_that_are_left() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let (one, two) = two(&cluster).await;
    let lifetime = CancellationToken::new();
    let options = one.control_options("fcs00", Some(one.token().await));
    let agent = control::start(options.clone(), lifetime.clone()).await.unwrap();
    agent.status.clone().wait_for(|status| status.servers.len() == 2).await.unwrap();
    let directory = one.stop().await;
    agent.status.clone().wait_for(|status| status.connected.as_ref() == Some(&two.address)).await.unwrap();
    agent.report.send_replace(Some(report("10.99.0.20", 8181)));
    until(&agent, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;
    // It knows both when it is started again while the one by which it joined is gone.
    lifetime.cancel();
    drop(agent);
    let again = control::start(options, two.shutdown.clone()).await.unwrap();
    again.status.clone().wait_for(|status| status.connected.as_ref() == Some(&two.address)).await.unwrap();
    drop(directory);
}

#[tokio::test]
async fn a_server_without_its_store_keeps_no_hosts_and_takes_them_back_afterwards() {
    let Some(mut cluster) = Cluster::start(1).await else { return };
    let one = server(&cluster, "one", tempfile::tempdir().unwrap()).await;
    let agent = one.agent("fcs00").await;
    agent.report.send_replace(Some(report("10.99.0.20", 8181)));
    until(&agent, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;
    cluster.kill(0);
    let refused = |status: &control::ServerStatus| {
        let error = status.error.as_deref().unwrap_or_default();
        status.connected.is_none() && error.contains("does not reach its database")
    };
    agent.status.clone().wait_for(refused).await.unwrap();
    assert!(has_endpoint(&agent.catalog.borrow(), "10.99.0.20:8181"), "it knows what it knew");
    cluster.restart(0).await;
    agent.status.clone().wait_for(|status| status.connected.is_some()).await.unwrap();
    let catalog = sees(&one, |catalog| is_connected(catalog, "fcs00")).await;
    assert!(!catalog.hosts[&"fcs00".parse().unwrap()].lost);
}

/// As many as a host may have; etcd takes 128 operations in a transaction.
#[tokio::test]
async fn a_host_with_many_addresses_changes_all_of_them() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let one = server(&cluster, "one", tempfile::tempdir().unwrap()).await;
    let agent = one.agent("fcs00").await;
    let addresses = |network: u8| -> Vec<_> {
        (0..=255).map(|number| std::net::IpAddr::from([10, network, 0, number])).collect()
    };
    for (network, after) in [(1, 0), (2, 1)] {
        let wanted = Report { addresses: addresses(network), ..report("10.99.0.20", 8181) };
        agent.report.send_replace(Some(wanted.clone()));
        let host = "fcs00".parse().unwrap();
        until(&agent, |catalog| catalog.hosts.get(&host).is_some_and(|host| host.report == wanted)).await;
        // What it has let go anybody may have.
        let other = one.agent(&format!("other{network}")).await;
        let taken = Report { addresses: addresses(after), ..report("10.99.0.20", 8181) };
        assert!(one.report_as(&other, &taken).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_server_that_comes_back_has_everything() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let (one, two) = two(&cluster).await;
    let agent = two.agent("fcs00").await;
    agent.report.send_replace(Some(report("10.99.0.20", 8181)));
    until(&agent, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;
    drop(one.stop().await);
    let one = server(&cluster, "one", tempfile::tempdir().unwrap()).await;
    assert!(has_endpoint(&members(&one).await, "10.99.0.20:8181"), "before it is ready");
    sees(&one, |catalog| is_connected(catalog, "fcs00") && leaders(catalog).len() == 1).await;
}

#[tokio::test]
async fn a_mesh_moves_from_the_file_to_etcd_and_back_and_its_hosts_do_not_notice() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let world = World::start().await;
    let address: SocketAddr = world.address.as_str().parse().unwrap();
    let lifetime = CancellationToken::new();
    let options = world.control_options("fcs00", Some(world.token().await));
    let agent = control::start(options, lifetime.clone()).await.unwrap();
    agent.report.send_replace(Some(report("10.99.0.20", 8181)));
    until(&agent, |catalog| has_endpoint(catalog, "10.99.0.20:8181")).await;
    let unused = world.token().await;
    let mut admin = connect_to_server(&world.directory.path().join("run")).await.unwrap();
    let defaults = v1::SetDefaultsRequest { egress: Some(v1::Action::Deny.into()), ..Default::default() };
    admin.set_defaults(defaults).await.unwrap();
    let mut directory = world.stop().await;

    let (file, back) = (directory.path().join("export"), directory.path().join("back"));
    let (embedded, etcd) = (
        StoreOptions::Embedded(directory.path().join("server")),
        StoreOptions::Etcd(cluster.options("murmesh00")),
    );
    let key = directory.path().join("server").join(DEFAULT_KEY_FILE);
    for (from, to, file) in [(embedded.clone(), etcd.clone(), file), (etcd, embedded, back)] {
        export(&from, &file).await.unwrap();
        if let StoreOptions::Embedded(directory) = &to {
            std::fs::remove_file(directory.join("server.redb")).unwrap();
        }
        import(&to, &file).await.unwrap();
        agent.status.clone().wait_for(|status| status.connected.is_none()).await.unwrap();
        let world = World::start_with(directory, |options| {
            (options.store, options.seal) = (to, KeySource::Default(key.clone()));
            options.listen = vec![address];
        })
        .await;
        agent.status.clone().wait_for(|status| status.connected.is_some()).await.unwrap();
        let catalog = members(&world).await;
        assert!(has_endpoint(&catalog, "10.99.0.20:8181"));
        assert_eq!(catalog.policy.defaults.egress, crate::policy::Action::Deny);
        let identity = agent.identity.borrow().clone();
        assert!(world.report_as(&agent, &report("10.99.0.20", 8181)).await.unwrap().is_empty());
        assert_eq!(identity.node().unwrap().as_str(), "fcs00");
        directory = world.stop().await;
    }
    // A token that was not used before is good after it.
    let world = World::start_with(directory, |options| options.listen = vec![address]).await;
    let options = world.control_options("fcc00", Some(unused));
    control::start(options, world.shutdown.clone()).await.unwrap();
}
