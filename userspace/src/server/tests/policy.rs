//! The policy: what an administrator asks for reaches every agent, in order, and survives a restart.

use std::time::{Duration, Instant};

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{World, report, until};
use crate::api::v1;
use crate::api::v1::administration_client::AdministrationClient;
use crate::api::v1::{Action, Mode};
use crate::local::connect_to_server;
use crate::policy;

impl World {
    pub(super) async fn administration(&self) -> AdministrationClient<Channel> {
        connect_to_server(&self.directory.path().join("run")).await.unwrap()
    }

    async fn rule(&self, action: Action, source: &str, destination: &str) -> Result<v1::Rule, Status> {
        let (source, destination) = (source.to_owned(), destination.to_owned());
        let request = v1::AddRuleRequest { action: action.into(), source, destination, dry_run: false };
        Ok(self.administration().await.add_rule(request).await?.into_inner())
    }

    pub(super) async fn service(&self, request: v1::SetServiceRequest) -> Result<v1::Service, Status> {
        Ok(self.administration().await.set_service(request).await?.into_inner())
    }
}

fn fortune(hosts: &[&str]) -> v1::SetServiceRequest {
    v1::SetServiceRequest {
        name: "fortune".to_owned(),
        hosts: hosts.iter().map(ToString::to_string).collect(),
        port: Some(8181),
        ..v1::SetServiceRequest::default()
    }
}

#[tokio::test]
async fn a_rule_reaches_every_agent_within_a_second_and_so_does_its_end() {
    let world = World::start().await;
    let agents = [world.agent("fcc00").await, world.agent("fcs00").await];
    until(&agents[0], |catalog| catalog.hosts.len() == 2).await;
    let begun = Instant::now();
    let rule = world.rule(Action::Deny, "fcc00", "fcs00:8181").await.unwrap();
    assert_eq!((rule.source.as_str(), rule.destination.as_str()), ("host/fcc00/*", "host/fcs00/*:8181"));
    for agent in &agents {
        let catalog = until(agent, |catalog| catalog.policy.rules().len() == 1).await;
        let (client, host) = ("fcc00".parse().unwrap(), "fcs00".parse().unwrap());
        let source = catalog.policy.source(&client, None, []);
        let verdict = catalog.policy.verdict(&source, &catalog.policy.destination(&host, None, 8181));
        assert_eq!((verdict.action, verdict.rule.unwrap().number()), (policy::Action::Deny, rule.id));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    world.administration().await.delete_rule(v1::DeleteRuleRequest { id: rule.id }).await.unwrap();
    for agent in &agents {
        until(agent, |catalog| catalog.policy.rules().is_empty()).await;
    }
}

#[tokio::test]
async fn what_was_asked_for_survives_a_restart_and_no_number_is_given_twice() {
    let world = World::start().await;
    let host = world.agent("fcs00").await;
    world.service(fortune(&["fcs00"])).await.unwrap();
    let first = world.rule(Action::Deny, "*", "fortune").await.unwrap();
    assert_eq!(first.destination, "service/fortune");
    let second = world.rule(Action::Allow, "*", "*:80").await.unwrap();
    let mut administration = world.administration().await;
    administration.delete_rule(v1::DeleteRuleRequest { id: second.id }).await.unwrap();
    let request =
        v1::SetDefaultsRequest { egress: Some(Action::Deny.into()), ..v1::SetDefaultsRequest::default() };
    administration.set_defaults(request).await.unwrap();
    drop(host);
    let world = World::start_with(world.stop().await, |_| {}).await;
    let newcomer = world.agent("fcc00").await;
    let catalog = until(&newcomer, |catalog| catalog.revision > 0).await;
    let policy = &catalog.policy;
    assert_eq!((policy.rules().len(), policy.services().len()), (1, 1));
    let (mesh, egress) = (policy.defaults.mesh, policy.defaults.egress);
    assert_eq!((mesh, egress), (policy::Action::Allow, policy::Action::Deny));
    assert_eq!(world.rule(Action::Allow, "*", "*:80").await.unwrap().id, second.id + 1);
}

#[tokio::test]
async fn the_same_rule_is_not_added_twice_even_at_once() {
    let world = World::start().await;
    let added = futures_util::future::join_all((0..8).map(|_| world.rule(Action::Deny, "*", "*:80"))).await;
    assert!(added.iter().all(|rule| rule.as_ref().unwrap().id == 1), "{added:?}");
    let others =
        (1..9).map(async |port| world.rule(Action::Deny, "*", &format!("*:{port}")).await.unwrap().id);
    let mut others = futures_util::future::join_all(others).await;
    others.sort_unstable();
    assert_eq!(others, (2..10).collect::<Vec<_>>(), "and different ones all are");
}

#[tokio::test]
async fn a_wrong_rule_is_refused_with_what_to_write() {
    let world = World::start().await;
    for (source, destination, hint) in [
        ("nobody", "*", "host/nobody or service/nobody"),
        ("*", "10.0.0.1/8", "10.0.0.0/8"),
        ("10.0.0.0/8", "*", "cannot be a source"),
        ("spiffe://other/host/a", "*", "spiffe://mesh.test/"),
    ] {
        let refused = world.rule(Action::Deny, source, destination).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(hint), "{}", refused.message());
    }
    assert_eq!(world.rule(Action::Unspecified, "*", "*").await.unwrap_err().code(), Code::InvalidArgument);
    let unknown = v1::DeleteRuleRequest { id: 7 };
    let refused = world.administration().await.delete_rule(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn there_are_no_more_rules_than_the_server_allows() {
    let world = World::start_with(tempfile::tempdir().unwrap(), |options| options.max_rules = 2).await;
    for port in 1..=2 {
        world.rule(Action::Deny, "*", &format!("*:{port}")).await.unwrap();
    }
    let refused = world.rule(Action::Deny, "*", "*:3").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("--max-rules"), "{}", refused.message());
    world.administration().await.delete_rule(v1::DeleteRuleRequest { id: 1 }).await.unwrap();
    world.rule(Action::Deny, "*", "*:3").await.unwrap();
}

#[tokio::test]
async fn a_service_keeps_what_a_change_does_not_name() {
    let world = World::start().await;
    let _hosts = (world.agent("fcs00").await, world.agent("fcs01").await);
    let networks = vec!["192.0.2.0/24".to_owned()];
    let strict = v1::SetServiceRequest {
        mode: Some(Mode::Strict.into()),
        force: true,
        exceptions: Some(v1::Exceptions { networks: networks.clone() }),
        ..fortune(&["fcs00"])
    };
    world.service(strict).await.unwrap();
    let moved = v1::SetServiceRequest { port: None, force: true, ..fortune(&["fcs01"]) };
    let moved = world.service(moved).await.unwrap();
    assert_eq!((moved.hosts, moved.port, moved.exceptions), (vec!["fcs01".to_owned()], 8181, networks));
    assert_eq!(moved.mode, i32::from(Mode::Strict), "a service does not stop being strict by accident");
}

#[tokio::test]
async fn a_new_service_is_kept_to_the_workload_that_listens_unless_that_is_not_just_one() {
    let world = World::start().await;
    let (web, other) = (world.agent("fcs00").await, world.agent("fcs01").await);
    let report = |address, workload: &str| {
        let mut report = report(address, 8181);
        report.listeners[0].workload = workload.parse().ok();
        report
    };
    world.report_as(&web, &report("10.0.0.1", "web.service")).await.unwrap();
    world.report_as(&other, &report("10.0.0.2", "user-mallory")).await.unwrap();
    let named =
        |name: &str, hosts: &[&str]| v1::SetServiceRequest { name: name.to_owned(), ..fortune(hosts) };
    let both = world.service(named("both", &["fcs00", "fcs01"])).await.unwrap();
    assert_eq!(both.workload, "");
    let removed = v1::RemoveServiceRequest { name: both.name, force: false };
    world.administration().await.remove_service(removed).await.unwrap();
    assert_eq!(world.service(fortune(&["fcs00"])).await.unwrap().workload, "web.service");
    let kept = world.service(fortune(&["fcs00", "fcs01"])).await.unwrap();
    assert_eq!(kept.workload, "web.service");
    let any = v1::SetServiceRequest { workload: Some(String::new()), ..fortune(&["fcs00"]) };
    assert_eq!(world.service(any).await.unwrap().workload, "");
    world.report_as(&other, &report("10.0.0.2", "docker-1.scope")).await.unwrap();
    assert_eq!(world.service(named("container", &["fcs01"])).await.unwrap().workload, "");
}

#[tokio::test]
async fn a_service_that_cannot_be_is_refused() {
    let world = World::start().await;
    let _host = world.agent("fcs00").await;
    let code = async |request| world.service(request).await.unwrap_err().code();
    assert_eq!(code(fortune(&[])).await, Code::InvalidArgument);
    assert_eq!(code(fortune(&["fcs09"])).await, Code::NotFound);
    assert_eq!(
        code(v1::SetServiceRequest { port: Some(0), ..fortune(&["fcs00"]) }).await,
        Code::InvalidArgument
    );
    world.service(fortune(&["fcs00"])).await.unwrap();
    let other = v1::SetServiceRequest { name: "other".to_owned(), ..fortune(&["fcs00"]) };
    assert_eq!(code(other).await, Code::FailedPrecondition);
}

#[tokio::test]
async fn a_service_that_rules_name_is_not_removed() {
    let world = World::start().await;
    let host = world.agent("fcs00").await;
    world.service(fortune(&["fcs00"])).await.unwrap();
    let rule = world.rule(Action::Deny, "*", "fortune:8181").await.unwrap();
    let mut administration = world.administration().await;
    let request = v1::RemoveServiceRequest { name: "fortune".to_owned(), force: false };
    let refused = administration.remove_service(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(&rule.id.to_string()), "{}", refused.message());
    administration.delete_rule(v1::DeleteRuleRequest { id: rule.id }).await.unwrap();
    administration.remove_service(request).await.unwrap();
    until(&host, |catalog| catalog.policy.services().is_empty()).await;
}
