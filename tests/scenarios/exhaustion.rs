//! A host runs out of descriptors, ports or room in the kernel's maps: connections fail with a reason or wait, nothing goes
//! in clear, and all is well again by itself when there is enough.

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Mesh, Process, Topology};

use crate::support::{
    Daemons, ask, greet, greeting, json, murmesh, skipped, strings, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;

/// How many descriptors a process may have from now on; those that it has, it keeps.
fn limit_descriptors(process: &Process, limit: &str) -> Result<()> {
    let id = process.id().to_string();
    let mut prlimit = std::process::Command::new("prlimit");
    let prlimit = Process::spawn(prlimit.args(["--pid", &id, &format!("--nofile={limit}")]))?;
    prlimit.succeed(DEADLINE).map(drop)
}

#[test]
fn an_agent_without_descriptors_has_clients_wait_and_serves_them_when_it_has_some() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let agent = daemons.agent(client)?;
    let capture = client.capture("tcp port 8181")?;

    limit_descriptors(agent, "1:20000")?;
    let waiting = client.spawn("nc", ["fcs00", "8181"])?;
    let line = agent.wait_for_line("cannot accept connections", DEADLINE)?;
    ensure!(line.contains("Too many open files"), "{line}");
    let status = client.spawn("murmesh", ["status"])?;
    agent.wait_for_line("the command line is not answered", DEADLINE)?;

    limit_descriptors(agent, "20000:20000")?;
    let answer = waiting.succeed(DEADLINE)?;
    ensure!(answer == greeting(service), "{answer:?}");
    // It may say what was wrong.
    status.output(DEADLINE)?;
    wait_until("status is green again", || Ok(murmesh(client, &["status"])?.status.success()))?;
    daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}

#[test]
fn a_service_whose_agent_has_no_descriptors_is_reached_again_when_it_has_some() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let agent = daemons.agent(service)?;
    let capture = client.capture("tcp port 8181")?;
    limit_descriptors(agent, "1:20000")?;
    // On a tunnel at rest it is refused, and on a new one nobody answers in time.
    let output = client.run("nc", ["fcs00", "8181"], b"", DEADLINE)?;
    ensure!(output.stdout.is_empty(), "{output:?}");
    agent.wait_for_line("Too many open files", DEADLINE)?;

    limit_descriptors(agent, "20000:20000")?;
    wait_until("the service is reached again", || {
        Ok(ask(client, "fcs00", PORT).is_ok_and(|answer| answer == greeting(service)))
    })?;
    wait_until("status is green again", || Ok(murmesh(service, &["status"])?.status.success()))?;
    daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}

#[test]
fn a_client_host_without_ports_resets_with_a_reason_and_goes_on_when_connections_have_ended() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (client, service) = (mesh.client()?, mesh.service()?);
    let destination = SocketAddr::from((service.ipv4(), PORT));
    let keep = service.probe(["keep", &PORT.to_string()])?;
    keep.wait_for_line("listening", DEADLINE)?;
    mesh.wait_carried(&[destination])?;
    let range = "echo 40000 40007 > /proc/sys/net/ipv4/ip_local_port_range";
    client.spawn("sh", ["-c", range])?.succeed(DEADLINE)?;
    let capture = client.capture("tcp port 8181")?;
    let hold = |number: &str| {
        let holding = client.probe(["hold", &destination.to_string(), number, "--at-most"])?;
        let line = holding.wait_for_line("open ", DEADLINE)?;
        let open: usize = line.split_whitespace().nth(1).context("a number")?.parse()?;
        Ok::<_, anyhow::Error>((holding, open, line))
    };
    let release = |mut holding: Process| {
        holding.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
        holding.succeed(DEADLINE).map(drop)
    };
    let (holding, open, line) = hold("100")?;
    ensure!(open <= 8, "{open} connections with eight ports");
    // The program itself has no port for the way to the agent, or the agent has none for a tunnel.
    if !line.contains("EADDRNOTAVAIL") {
        mesh.agent("fcc00")?.wait_for_line("no local port is left", DEADLINE)?;
    }
    // Those that are open are none the worse.
    release(holding)?;
    wait_until("connections are made again", || {
        let (holding, open, _) = hold("2")?;
        release(holding)?;
        Ok(open == 2)
    })?;
    wait_until("status is green again", || Ok(murmesh(client, &["status"])?.status.success()))?;
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}

/// What `status` says is wrong on `host`.
fn problems(host: &Host) -> Result<Vec<String>> {
    Ok(strings(&json(host, "status")?["problems"]))
}

#[test]
fn services_that_do_not_fit_into_a_small_map_are_refused_until_there_is_room() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let mut command = client.agent_command(&daemons.token(client)?)?;
    daemons.start_agent_by(client, command.args(["--max-endpoints", "16"]))?;
    let capture = client.capture("tcp portrange 20000-20039")?;
    let mut many = service.probe(["serve-ports", "fcs00", "--count=40"])?;
    many.wait_for_line("listening", DEADLINE)?;
    wait_until("status says that not all fit", || {
        Ok(problems(client)?.iter().any(|problem| problem.contains("--max-endpoints")))
    })?;
    wait_until("all are in the catalog", || {
        let listed = murmesh_lab::services(client)?;
        Ok((20000..20040).all(|port| listed.contains(&SocketAddr::from((service.ipv4(), port)))))
    })?;
    let target = format!("fcs00={}", service.ipv4());
    let storm = ["storm", "--connections=80", "--parallel=4", "--count=40", &target];
    let outcome: serde_json::Value = serde_json::from_str(&client.probe(storm)?.succeed(DEADLINE)?)?;
    let refused = outcome["failed"]["EPERM"].as_u64().unwrap_or_default();
    let right = outcome["right"].as_u64().unwrap_or_default();
    ensure!(refused > 0 && right > 0 && refused + right == 80, "{outcome}");

    many.signal(nix::sys::signal::Signal::SIGKILL)?;
    many.wait(DEADLINE)?;
    wait_until("status is green again", || Ok(problems(client)?.is_empty()))?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    let page = text(&murmesh(client, &["status"])?.stdout);
    ensure!(page.contains("all is well"), "{page}");
    let clear = capture.stop()?;
    ensure!(clear.packets().is_empty(), "connections went in clear: {:?}", clear.packets().first());
    Ok(())
}
