//! The page, as a browser asks for it.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{World, report, until};
use crate::api::{unix_seconds, v1};
use crate::flows::{Client, Flows, Key};
use crate::identity::Subject;
use crate::local::connect_to_server;
use crate::server::PageOptions;

async fn world() -> World {
    let page = PageOptions::At("127.0.0.1:0".parse().unwrap());
    World::start_with(tempfile::tempdir().unwrap(), |options| options.page = page).await
}

/// A browser that says what it is told to.
pub struct Browser {
    address: String,
    cookie: String,
}

impl Browser {
    /// With a link that was not opened yet.
    async fn new(world: &World) -> (Self, String) {
        let mut server = connect_to_server(&world.directory.path().join("run")).await.unwrap();
        let link = server.open_page(v1::OpenPageRequest {}).await.unwrap().into_inner();
        assert!(link.expires_at > 0);
        let rest = link.url.strip_prefix("http://").unwrap();
        let (address, path) = rest.split_once('/').unwrap();
        (Self { address: address.to_owned(), cookie: String::new() }, format!("/{path}"))
    }

    /// That has opened it.
    pub async fn admitted(world: &World) -> Self {
        let (mut browser, link) = Self::new(world).await;
        let opened = browser.get(&link).await;
        browser.cookie = cookie(&opened).split(';').next().unwrap().to_owned();
        browser
    }

    async fn get(&self, path: &str) -> String {
        self.say("GET", path, &self.address).await
    }

    async fn say(&self, method: &str, path: &str, host: &str) -> String {
        let cookie = &self.cookie;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
        );
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let mut answer = Vec::new();
        // Who asks for too much may be cut off.
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    /// The state, once it is as wanted.
    pub async fn state(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut version = String::new();
        loop {
            let answer = self.get(&format!("/api/mesh?after={version}")).await;
            if status(&answer) == 204 {
                continue;
            }
            assert_eq!(status(&answer), 200, "{answer}");
            let state: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            if wanted(&state) {
                return state;
            }
            version = state["version"].as_str().unwrap().to_owned();
        }
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn cookie(answer: &str) -> &str {
    answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_default()
}

#[tokio::test]
async fn a_link_opens_the_page_once_for_the_browser_that_opened_it() {
    let world = world().await;
    let (mut browser, link) = Browser::new(&world).await;
    for closed in ["/", "/main.js", "/api/mesh", "/api/reach?from=a&to=b", "/open?key=", "/open", "/nothing"]
    {
        assert_eq!(status(&browser.get(closed).await), 401, "{closed}");
    }
    let opened = browser.get(&link).await;
    let given = cookie(&opened);
    assert!(
        given.contains("; HttpOnly") && given.contains("; SameSite=Strict") && given.contains("Max-Age="),
        "{given}"
    );
    let again = browser.get(&link).await;
    assert_eq!((status(&again), cookie(&again)), (401, ""));
    given.split(';').next().unwrap().clone_into(&mut browser.cookie);
    for open in ["/", "/main.js", "/page.css", "/api/mesh"] {
        assert_eq!(status(&browser.get(open).await), 200, "{open}");
    }
    assert_eq!(status(&browser.get("/nothing").await), 404);
    world.stop().await;
}

#[tokio::test]
async fn other_names_and_other_methods_are_refused_whoever_asks() {
    let world = world().await;
    let browser = Browser::admitted(&world).await;
    assert_eq!(status(&browser.say("GET", "/", "localhost:80").await), 200);
    for strange in ["rebound.example", "rebound.example:9194", "192.0.2.1", ""] {
        assert_eq!(status(&browser.say("GET", "/api/mesh", strange).await), 421, "{strange}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(status(&browser.say(method, "/api/mesh", &browser.address).await), 405, "{method}");
    }
    let long = browser.get(&format!("/{}", "x".repeat(64 * 1024))).await;
    assert!(!long.starts_with("HTTP/1.1 200"), "{long}");
    world.stop().await;
}

#[tokio::test]
async fn every_answer_keeps_the_browser_from_other_places() {
    let world = world().await;
    let (mut browser, link) = Browser::new(&world).await;
    let closed = browser.get("/").await;
    let opened = browser.get(&link).await;
    cookie(&opened).split(';').next().unwrap().clone_into(&mut browser.cookie);
    for answer in [closed, opened, browser.get("/").await, browser.get("/api/mesh").await] {
        for header in [
            "content-security-policy: default-src 'none'; ",
            "x-frame-options: DENY",
            "cache-control: no-store",
        ] {
            assert!(answer.contains(header), "{header}: {answer}");
        }
    }
    let page = browser.get("/").await;
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains("<script>"), "{page}");
    world.stop().await;
}

#[tokio::test]
async fn the_state_is_that_of_the_catalog_and_follows_it() {
    let world = world().await;
    let browser = Browser::admitted(&world).await;
    assert_eq!(browser.state(|_| true).await["hosts"].as_array().unwrap().len(), 0);
    let host = world.agent("fcs00").await;
    host.report.send_replace(Some(report("10.0.0.1", 8181)));
    let state = browser.state(|state| state["services"][0]["id"] == "fcs00:8181").await;
    assert_eq!(
        (&state["hosts"][0]["node"], &state["services"][0]["named"]),
        (&"fcs00".into(), &false.into())
    );
    let mut server = connect_to_server(&world.directory.path().join("run")).await.unwrap();
    let service = v1::SetServiceRequest {
        name: "fortune".to_owned(),
        hosts: vec!["fcs00".to_owned()],
        port: Some(8181),
        ..v1::SetServiceRequest::default()
    };
    server.set_service(service).await.unwrap();
    let is_named = |state: &Value| state["services"][0]["id"] == "fortune";
    let state = browser.state(is_named).await;
    assert_eq!(state["services"][0]["instances"][0]["state"], "healthy");
    host.report.send_modify(|report| report.iter_mut().for_each(|report| report.listeners.clear()));
    browser.state(|state| state["services"][0]["instances"][0]["state"] == "down").await;
    drop(host);
    browser.state(|state| state["hosts"][0]["connected"] == false).await;
    world.stop().await;
}

#[tokio::test]
async fn what_the_rules_would_say_is_answered_as_on_the_command_line() {
    let world = world().await;
    let browser = Browser::admitted(&world).await;
    let (one, other) = (world.agent("one").await, world.agent("other").await);
    other.report.send_replace(Some(report("10.0.0.2", 80)));
    until(&one, |catalog| !catalog.endpoints().is_empty()).await;
    let mut server = connect_to_server(&world.directory.path().join("run")).await.unwrap();
    let rule = v1::AddRuleRequest {
        action: v1::Action::Deny.into(),
        source: "one".to_owned(),
        destination: "other:80".to_owned(),
        dry_run: false,
    };
    server.add_rule(rule).await.unwrap();
    let denied = browser.get("/api/reach?from=host%2Fone%2Fuser-root&to=other%3A80").await;
    assert!(denied.contains(r#""action":"deny","rule":1"#), "{denied}");
    let wrong = browser.get("/api/reach?from=*&to=other%3A80").await;
    assert!(status(&wrong) == 400 && wrong.contains("stands for many"), "{wrong}");
    assert_eq!(status(&browser.get("/api/reach?from=one").await), 400);
    world.stop().await;
}

#[tokio::test]
async fn hosts_tell_who_connects_to_whom_while_somebody_looks() {
    let world = world().await;
    let (client, service) = (world.agent("fcc00").await, world.agent("fcs00").await);
    service.report.send_replace(Some(report("10.0.0.1", 8181)));
    let flows = Arc::<Flows>::default();
    let subject = Subject::Workload("fcc00".parse().unwrap(), "user-root".parse().unwrap());
    let workload = Client::Known(subject);
    let to =
        |port, outcome| Key { client: workload.clone(), destination: ([10, 0, 0, 1], port).into(), outcome };
    flows.of(&to(8181, v1::Outcome::Allowed)).opened(None);
    client.flows.send_replace(Some(flows.clone()));
    let browser = Browser::admitted(&world).await;
    let state = browser.state(|state| state["flows"][0]["to"] == "fcs00:8181").await;
    let flow = &state["flows"][0];
    assert_eq!(
        (&flow["host"], &flow["workload"], &flow["kind"]),
        (&"fcc00".into(), &"user-root".into(), &"encrypted".into())
    );
    assert_eq!((&flow["connections"], &flow["open"]), (&1.into(), &1.into()));
    assert_eq!(state["left_out"], 0);
    let reports: Vec<_> = state["hosts"].as_array().unwrap().iter().map(|host| &host["reports"]).collect();
    assert_eq!(reports, [true, false]);
    flows.of(&to(22, v1::Outcome::Denied)).began(None);
    browser.state(|state| state["flows"].as_array().is_some_and(|flows| flows.len() == 2)).await;
    // Its counts go with it.
    drop(client);
    browser.state(|state| state["flows"].as_array().is_some_and(Vec::is_empty)).await;
    world.stop().await;
}

#[tokio::test]
async fn who_reaches_services_in_clear_is_shown_by_the_records_of_all_servers() {
    let world = world().await;
    let browser = Browser::admitted(&world).await;
    let host = world.agent("fcs00").await;
    host.report.send_replace(Some(report("10.0.0.1", 8181)));
    let now = unix_seconds(SystemTime::now());
    let client = v1::PlaintextClient { address: "192.0.2.7".to_owned(), last_seen: now };
    let port = v1::PlaintextPort { port: 8181, connections: 3, clients: vec![client], others_last_seen: 0 };
    host.plaintext.send_replace(Some(v1::PlaintextReport { now, ports: vec![port] }));
    let state = browser.state(|state| state["flows"][0]["kind"] == "plaintext").await;
    let flow = &state["flows"][0];
    assert_eq!(
        (&flow["host"], &flow["address"], &flow["to"]),
        (&Value::Null, &"192.0.2.7".into(), &"fcs00:8181".into())
    );
    world.stop().await;
}
