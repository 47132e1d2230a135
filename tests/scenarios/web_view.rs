//! The page of a server in a browser.

use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use murmesh::api::v1;
use murmesh::local::connect_to_server;
use murmesh_lab::{DEADLINE, Host, Lab, Mesh, Process, Topology};

use crate::support::browser::{self, Browser};
use crate::support::cluster::Cluster;
use crate::support::instances::{Instances, PORT};
use crate::support::{Daemons, ask, greet, skipped, wait_for_endpoint};

/// A service that the rules keep from the client.
const DENIED: u16 = 8300;

/// A service that is reached once a server is gone.
const LATER: u16 = 8301;

/// What is in the part of the page that is shown, without line breaks.
const SHOWN: &str = "[...document.querySelectorAll('main > section')].find((view) => !view.hidden).innerText.replace(/\\s+/g, ' ')";

fn open(host: &Host) -> Result<Browser> {
    let mut browser = Browser::start(host)?;
    let link = host.murmesh(["ui"])?;
    browser.resize(1280, 900)?;
    browser.open(link.trim())?;
    browser.wait_for("document.querySelector('#live')?.dataset.state === 'live'")?;
    Ok(browser)
}

/// Every edge of the graph, as it is called.
fn edge(kind: &str, words: &str) -> String {
    format!(
        "[...document.querySelectorAll('.edge.kind-{kind}')].some((edge) => edge.getAttribute('aria-label').includes('{words}'))"
    )
}

fn shows(words: &str) -> String {
    format!("{SHOWN}.includes('{words}')")
}

fn ensure_well(browser: &mut Browser) -> Result<()> {
    let complaints = browser.complaints()?;
    ensure!(complaints.is_empty(), "the page complained: {complaints:#?}");
    let origin = browser.evaluate("location.origin")?;
    let origin = format!("{}/", origin.as_str().context("an origin")?);
    let requested = browser.requested()?;
    let strange: Vec<_> = requested.iter().filter(|url| !url.starts_with(&origin)).collect();
    ensure!(!requested.is_empty() && strange.is_empty(), "the page asked for {strange:?}");
    Ok(())
}

fn refused(output: &Output) -> bool {
    !output.status.success()
}

#[test]
fn the_page_shows_who_talks_to_whom_and_follows_the_mesh() -> Result<()> {
    if browser::is_missing() {
        return Ok(());
    }
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let (server, client, service) = (mesh.host("murmesh00")?, mesh.client()?, mesh.service()?);
    let mut instances = Instances::start(&mesh, &["fcs00", "fcs01"], &[])?;
    let _denied = greet(service, DENIED)?;
    wait_for_endpoint(client, service, DENIED)?;
    server.murmesh(["deny", "fcc00", &format!("fcs00:{DENIED}")])?;
    let address = service.ipv4().to_string();
    crate::support::wait_until("the rule holds", || {
        Ok(refused(&client.run("nc", [&*address, &DENIED.to_string()], b"", DEADLINE)?))
    })?;
    instances.who("fcs00")?;
    ask(server, &address, PORT)?;

    let mut browser = open(server)?;
    browser.wait_for(&edge("encrypted", "fcc00 to fortune"))?;
    browser.wait_for(&edge("denied", &format!("fcc00 to fcs00:{DENIED}")))?;
    browser.wait_for(&edge("plaintext", &format!("{} to fortune", server.ipv4())))?;
    browser.wait_for("document.querySelector('#mesh-name').textContent === 'murmesh.internal'")?;
    browser.press("ArrowRight")?;
    browser.wait_for("document.querySelector('#graph-detail').textContent.includes('last seen')")?;
    browser.wait_for("document.activeElement.classList.contains('chosen')")?;
    browser.evaluate("document.activeElement.blur()")?;

    instances.who("fcs00")?;
    browser.press("4")?;
    browser.wait_for(&shows("fortune"))?;
    browser.press("2")?;
    browser.wait_for(&shows("2 of 2 healthy"))?;
    instances.kill("fcs01")?;
    browser.wait_for(&shows("1 of 2 healthy"))?;
    browser.wait_for(&shows("fcs01: down (nothing listens on the port)"))?;
    instances.run("fcs01")?;
    browser.wait_for(&shows("2 of 2 healthy"))?;
    browser.press("3")?;
    browser.wait_for(&shows("fcc00 connected"))?;
    browser.press("6")?;
    browser.wait_for(&shows("signs"))?;
    ensure_well(&mut browser)
}

#[test]
fn the_page_is_used_with_a_keyboard_alone_and_in_the_dark() -> Result<()> {
    if browser::is_missing() {
        return Ok(());
    }
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, service) = (mesh.host("murmesh00")?, mesh.service()?);
    let _greeting = greet(service, PORT)?;
    wait_for_endpoint(mesh.client()?, service, PORT)?;
    server.murmesh(["deny", "fcc00", &format!("fcs00:{PORT}")])?;
    let mut browser = open(server)?;
    let ground = "getComputedStyle(document.body).backgroundColor";
    browser.prefer("light")?;
    let light = browser.evaluate(ground)?;
    browser.prefer("dark")?;
    let dark = browser.evaluate(ground)?;
    ensure!(light != dark, "{light} and {dark}");
    browser.press("5")?;
    browser.wait_for(&shows("deny host/fcc00/*"))?;
    browser.evaluate("document.querySelector('#reach-from').focus()")?;
    browser.write("fcc00")?;
    browser.press("Tab")?;
    browser.write(&format!("fcs00:{PORT}"))?;
    browser.press("Enter")?;
    browser.wait_for("document.querySelector('#reached').innerText.includes('by rule 1')")?;
    // An answer that is not true any more is given anew.
    server.murmesh(["policy", "delete", "1"])?;
    browser.wait_for("document.querySelector('#reached').innerText.includes('no rule speaks of it')")?;
    browser.evaluate("document.activeElement.blur()")?;
    browser.press("/")?;
    browser.wait_for("document.activeElement.id === 'search'")?;
    browser.write("nobody at all")?;
    browser.press("Escape")?;
    browser.wait_for("document.querySelector('#search').value === ''")?;
    browser.press("1")?;
    browser.wait_for("location.hash === '#graph'")?;
    let reached = browser.evaluate(
        "[...document.querySelectorAll('a, button, input, select')].filter((node) => node.tabIndex < 0).length",
    )?;
    ensure!(reached == 0, "{reached} controls cannot be reached by the tab key");
    ensure_well(&mut browser)
}

/// As an administrator makes them.
fn name_services(host: &Host, count: u16) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut server = connect_to_server(&host.run_directory()).await?;
        for number in 0..count {
            let service = v1::SetServiceRequest {
                name: format!("shop-{number:03}"),
                hosts: vec![["fcs00", "fcs01"][usize::from(number % 2)].to_owned()],
                port: Some((20_000 + number).into()),
                workload: Some(String::new()),
                force: true,
                ..v1::SetServiceRequest::default()
            };
            server.set_service(service).await?;
        }
        Ok(())
    })
}

#[test]
fn one_of_three_hundred_services_is_found() -> Result<()> {
    if browser::is_missing() || skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 2, clients: 0 })?;
    let _daemons = Daemons::start(&lab)?;
    let server = lab.host("murmesh00")?;
    name_services(server, 300)?;
    let mut browser = open(server)?;
    let rows = "document.querySelectorAll('[data-service]').length";
    browser.press("2")?;
    browser.wait_for(&format!("{rows} === 200 && {}", shows("Show all 300")))?;
    browser.evaluate("[...document.querySelectorAll('button.plain')].at(-1).click()")?;
    browser.wait_for(&format!("{rows} === 300"))?;
    browser.press("/")?;
    browser.write("shop-217")?;
    browser.wait_for(&format!("{rows} === 1 && {}", shows("port 20217")))?;
    browser.press("Escape")?;
    let group = "const group = document.querySelector('#service-grouping'); group.value = 'host'; group.dispatchEvent(new Event('change'))";
    browser.evaluate(group)?;
    browser.wait_for(&shows("fcs01 150 services, 150 not healthy"))?;
    browser.evaluate("document.querySelector('[data-key=\"fold-fcs01\"]').click()")?;
    browser.wait_for(&format!("{rows} === 150"))?;
    browser.press("1")?;
    browser.wait_for("document.querySelectorAll('#graph .node').length >= 60")?;
    browser.wait_for("document.querySelector('#graph-note').textContent.includes('search for them')")?;
    browser.press("/")?;
    browser.write("shop-299")?;
    browser.wait_for("document.querySelectorAll('#graph .node').length === 1")?;
    ensure_well(&mut browser)
}

#[test]
fn the_page_of_a_server_shows_hosts_of_the_others_and_goes_on_when_one_is_killed() -> Result<()> {
    if browser::is_missing() || skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 3, ..Topology::default() })?;
    let mut cluster = Cluster::start(&lab)?;
    let (client, service) = (cluster.client, cluster.service);
    let _greetings = [greet(service, PORT)?, greet(service, LATER)?];
    for port in [PORT, LATER] {
        wait_for_endpoint(client, service, port)?;
    }
    let address = service.ipv4().to_string();
    ask(client, &address, PORT)?;
    let server = cluster.server_of(client)?.context("the agent is connected")?;
    let mut browser = open(cluster.another(server)?)?;
    browser.wait_for(&edge("encrypted", &format!("fcc00 to fcs00:{PORT}")))?;
    browser.wait_for(&format!("!{}", shows("has not told this server")))?;

    cluster.kill_server(server)?;
    ask(client, &address, LATER)?;
    browser.wait_for(&edge("encrypted", &format!("fcc00 to fcs00:{LATER}")))?;
    ensure_well(&mut browser)
}

/// A service in a unit of its own.
fn serve_in_unit(mesh: &Mesh, host: &str, unit: &str, port: u16) -> Result<Process> {
    let service = format!("exec socat tcp-l:{port},bind=0,fork,reuseaddr 'exec:echo hello from {host}'");
    mesh.serve(mesh.host(host)?, port, "sh", ["-c", &in_unit(mesh.host(host)?, unit, &service)?])
}

/// Connections of a unit, one after the other, whatever becomes of them.
fn call_in_unit(mesh: &Mesh, host: &str, unit: &str, to: (&str, u16), times: u32) -> Result<()> {
    let (address, port) = (mesh.host(to.0)?.ipv4(), to.1);
    let calls = format!("for call in $(seq {times}); do nc {address} {port} </dev/null; done; true");
    let script = in_unit(mesh.host(host)?, unit, &calls)?;
    mesh.host(host)?.spawn("sh", ["-c", &script])?.succeed(DEADLINE).map(drop)
}

fn in_unit(host: &Host, unit: &str, script: &str) -> Result<String> {
    let cgroup = host.cgroup().join(unit);
    std::fs::create_dir_all(&cgroup)?;
    Ok(format!("echo $$ > {}/cgroup.procs; {script}", cgroup.display()))
}

/// Not a claim: a mesh with something of everything, for the documentation.
#[test]
fn pictures_for_the_documentation() -> Result<()> {
    if std::env::var_os("MURMESH_SCREENSHOTS").is_none() || browser::is_missing() {
        eprintln!("skipped: MURMESH_SCREENSHOTS names no directory to keep pictures in");
        return Ok(());
    }
    let Some(mesh) = Mesh::start(3, 2)? else { return Ok(()) };
    let server = mesh.host("murmesh00")?;
    let mut running = Vec::new();
    for (host, unit, port) in [
        ("fcs00", "fortune.service", 8181),
        ("fcs01", "fortune.service", 8181),
        ("fcs01", "postgresql.service", 5432),
        ("fcs02", "node-exporter.service", 9100),
        ("fcs02", "reports.service", 8080),
    ] {
        running.push(serve_in_unit(&mesh, host, unit, port)?);
    }
    for (name, hosts, port) in
        [("fortune", "fcs00,fcs01", "8181"), ("ledger", "fcs01", "5432"), ("reports", "fcs02", "8080")]
    {
        server.murmesh(["service", "set", name, "--host", hosts, "--port", port])?;
    }
    ask(server, &mesh.host("fcs02")?.ipv4().to_string(), 9100)?;
    server.murmesh(["service", "set", "fortune", "--mode", "strict"])?;
    server.murmesh(["deny", "host/*/cron.service", "ledger"])?;
    server.murmesh(["allow", "fcc01", "ledger"])?;
    for (host, unit, to, times) in [
        ("fcc00", "shop.service", ("fcs00", 8181), 24),
        ("fcc00", "shop.service", ("fcs01", 5432), 12),
        ("fcc00", "cron.service", ("fcs01", 5432), 3),
        ("fcc01", "batch.service", ("fcs01", 5432), 4),
        ("fcc01", "batch.service", ("fcs01", 8181), 5),
        ("fcc01", "batch.service", ("fcs02", 8080), 2),
        ("fcs00", "fortune.service", ("fcs02", 9100), 3),
    ] {
        call_in_unit(&mesh, host, unit, to, times)?;
    }
    running.pop();
    murmesh_lab::wait_for_availability(
        mesh.host("fcc01")?,
        (mesh.host("fcs02")?.ipv4(), 8080).into(),
        false,
    )?;
    call_in_unit(&mesh, "fcc01", "cron.service", ("fcs02", 8080), 2)?;
    call_in_unit(&mesh, "murmesh00", "curious", ("fcs00", 8181), 2)?;
    let mut browser = open(server)?;
    for (kind, words) in [
        ("encrypted", "shop.service"),
        ("plaintext", "fcs02:9100"),
        ("denied", "to fortune"),
        ("unavailable", "reports"),
    ] {
        browser.wait_for(&edge(kind, words))?;
    }
    for (key, view, scheme, name) in [
        ("1", "graph", "light", "graph"),
        ("2", "services", "light", "services"),
        ("4", "flows", "dark", "dark"),
    ] {
        browser.prefer(scheme)?;
        browser.press(key)?;
        browser.wait_for(&format!("document.body.dataset.drawn === '{view}'"))?;
        browser.keep_picture(&format!("web-view-{name}"))?;
    }
    Ok(())
}
