//! Agents that are killed again and again under load: nothing of a strict service is ever in clear.

use std::env;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Capture, DEADLINE, Host, Lab, Process, Steady, Topology};

use crate::support::{Daemons, ask, go_strict, skipped, wait_for_endpoint, wait_until};

const PORT: u16 = 8181;

/// What the service says. It is on the wire in clear if a connection ever is.
const SECRET: &str = "a secret of the strict service 41c7";

/// How many times an agent is killed; 200 take some minutes.
const CYCLES: &str = "MURMESH_KILL_CYCLES";

/// Kills that are recorded together.
const RECORDED: u32 = 10;

/// Searches what passed for the secret, and begins anew without missing a packet.
fn search<'a>(host: &'a Host, capture: Capture<'_>) -> Result<Capture<'a>> {
    let next = host.capture("ip or ip6")?;
    let trace = capture.stop()?;
    ensure!(!trace.contains(SECRET.as_bytes()), "the secret went in clear");
    let data = trace.packets().iter().find(|packet| packet.uses_port(PORT) && !packet.payload.is_empty());
    ensure!(data.is_none(), "data to or from the port of the service: {data:?}");
    Ok(next)
}

#[test]
fn agents_killed_under_load_never_let_a_byte_of_a_strict_service_go_in_clear() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let cycles: u32 = env::var(CYCLES).map_or(Ok(10), |cycles| cycles.parse()).context(CYCLES)?;
    let lab = Lab::new(Topology::default())?;
    let (outsider, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let name = service.probe(["name", SECRET, &PORT.to_string()])?;
    name.wait_for_line("listening", DEADLINE)?;
    wait_for_endpoint(client, service, PORT)?;
    let strict = ["service", "set", "secret", "--host", "fcs00", "--port", "8181", "--mode", "strict"];
    outsider.murmesh(strict)?;
    let address = service.ipv4().to_string();
    wait_until("plaintext is refused", || Ok(ask(outsider, &address, PORT).is_err()))?;

    let destination = SocketAddr::from((service.ipv4(), PORT));
    let mut capture = service.capture("ip or ip6")?;
    let (member, stranger) = (Steady::begin(client, destination)?, Steady::begin(outsider, destination)?);
    let begun = Instant::now();
    for cycle in 1..=cycles {
        let killed = if cycle % 2 == 0 { client } else { service };
        daemons.kill_agent(killed)?;
        daemons.start_agent(killed)?;
        wait_until("connections are carried again", || {
            Ok(ask(client, &address, PORT).is_ok_and(|answer| answer == SECRET))
        })?;
        if cycle % RECORDED == 0 {
            capture = search(service, capture)?;
        }
    }
    let (carried, refused) = (member.end()?, stranger.end()?);
    search(service, capture)?;
    println!("{cycles} kills in {:?}; the client: {carried:?}; the stranger: {refused:?}", begun.elapsed());
    ensure!(refused.named.is_empty(), "a stranger was told: {refused:?}");
    ensure!(carried.named.keys().eq([SECRET]), "{carried:?}");
    Ok(())
}

#[test]
fn a_mode_that_is_newer_than_what_is_on_disk_holds_after_a_kill() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (outsider, service) = (lab.host("murmesh00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let name = service.probe(["name", SECRET, &PORT.to_string()])?;
    name.wait_for_line("listening", DEADLINE)?;
    let address = service.ipv4().to_string();
    let is_refused = || -> Result<bool> { Ok(ask(outsider, &address, PORT).is_err()) };
    wait_until("the service answers in clear", || Ok(!is_refused()?))?;
    let token = daemons.token(service)?;
    go_strict(outsider, service, "secret", PORT)?;
    daemons.kill_agent(service)?;
    daemons.kill_server()?;
    let agent = Process::spawn(&mut service.agent_command(&token)?)?;
    agent.wait_for_line("hooks attached", DEADLINE)?;
    for _ in 0..20 {
        ensure!(is_refused()?, "it went back to what was on disk: {}", agent.said());
    }
    daemons.start_server()?;
    agent.wait_for_line(": ready", DEADLINE)?;
    ensure!(is_refused()?, "{}", agent.said());
    Ok(())
}
