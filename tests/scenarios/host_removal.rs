//! A host is removed: nobody accepts it any more, and what it had open is cut.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology};

use crate::support::{
    Daemons, ask, greet, greeting, json, murmesh, skipped, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;
const STREAM_PORT: u16 = 8282;

/// How long the streams of a removed host may live on.
const LIMIT: Duration = Duration::from_secs(2);

fn run(host: &Host, arguments: &[&str]) -> Result<()> {
    let output = murmesh(host, arguments)?;
    ensure!(output.status.success(), "murmesh {arguments:?}: {}", text(&output.stderr));
    Ok(())
}

/// Both ends of a stream from `client` to `service` that has carried something, and is cut some time.
fn stream(client: &Host, service: &Host) -> Result<[Process; 2]> {
    const CUT: [&str; 4] = ["send=x", "expect=x", "say=open", "expect-reset"];
    let listening = service.probe(["listen", &format!("[::]:{STREAM_PORT}")].iter().chain(&CUT))?;
    listening.wait_for_line("listening", DEADLINE)?;
    wait_for_endpoint(client, service, STREAM_PORT)?;
    let destination = format!("{}:{STREAM_PORT}", service.ipv4());
    let connected = client.probe(["connect", &destination].iter().chain(&CUT))?;
    connected.wait_for_line("open", DEADLINE)?;
    Ok([listening, connected])
}

/// Both ends are reset in time.
fn ensure_cut(stream: [Process; 2], removed: Instant) -> Result<()> {
    for mut end in stream {
        let status = end.wait(LIMIT.saturating_sub(removed.elapsed()))?;
        ensure!(status.success(), "{}", end.said());
    }
    Ok(())
}

#[test]
fn a_removed_host_is_cut_off_at_once_and_joins_again_only_with_a_new_token() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { clients: 2, ..Topology::default() })?;
    let (server, service) = (lab.host("murmesh00")?, lab.host("fcs00")?);
    let (gone, stays) = (lab.host("fcc00")?, lab.host("fcc01")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    run(server, &["service", "set", "fortune", "--host", "fcs00", "--port", "8181", "--mode", "strict"])?;
    let open = stream(gone, service)?;
    wait_until("both are carried", || {
        Ok(daemons.ask_through_mesh(gone, service, PORT).is_ok()
            && daemons.ask_through_mesh(stays, service, PORT).is_ok())
    })?;

    let before = Instant::now();
    run(server, &["host", "remove", "fcc00"])?;
    ensure_cut(open, before)?;
    daemons.agent(service)?.wait_for_line("one of its hosts was removed from the mesh", DEADLINE)?;
    for _ in 0..3 {
        ensure!(
            ask(gone, &service.ipv4().to_string(), PORT).map_or(true, |said| said.is_empty()),
            "still accepted"
        );
    }
    daemons.agent(service)?.wait_for_line("the host of spiffe://murmesh.internal/host/fcc00", DEADLINE)?;
    daemons.ask_through_mesh(stays, service, PORT)?;
    wait_until("its status says so", || {
        Ok(text(&murmesh(gone, &["status"])?.stdout).contains("was removed from the mesh"))
    })?;

    // Neither a restart nor the old token changes anything.
    daemons.kill_agent(gone)?;
    daemons.start_agent(gone)?;
    ensure!(
        ask(gone, &service.ipv4().to_string(), PORT).map_or(true, |said| said.is_empty()),
        "accepted after a restart"
    );
    daemons.kill_agent(gone)?;
    daemons.renew_token(gone)?;
    daemons.start_agent(gone)?;
    wait_until("it is a member again", || Ok(json(server, "members")?.to_string().contains("fcc00")))?;
    wait_until("it is let in again", || {
        Ok(ask(gone, &service.ipv4().to_string(), PORT).is_ok_and(|said| said == greeting(service)))
    })?;
    daemons.ask_through_mesh(gone, service, PORT)?;
    Ok(())
}

#[test]
fn a_service_on_a_removed_host_is_nobody_to_those_who_had_tunnels_to_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    run(server, &["service", "set", "fortune", "--host", "fcs00", "--port", "8181"])?;
    let open = stream(client, service)?;
    wait_until("it is carried", || Ok(daemons.ask_through_mesh(client, service, PORT).is_ok()))?;
    let before = Instant::now();
    run(server, &["host", "remove", "fcs00"])?;
    ensure_cut(open, before)?;
    crate::support::wait_for_no_endpoint(client, service, PORT)?;
    let services = json(server, "services")?.to_string();
    ensure!(!services.contains("fcs00"), "{services}");
    // What nobody else serves keeps its name, to be given to another host.
    let _other = greet(client, PORT)?;
    run(server, &["service", "set", "fortune", "--host", "fcc00"])
}
