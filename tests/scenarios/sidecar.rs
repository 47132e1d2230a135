//! The plain sidecar: the same tunnel, dialled by hand, with nothing in the kernel.

use std::process::Output;

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, Process, TUNNEL_PORT, Topology, Trace, tls_records};

use crate::support::kernel::hooks;
use crate::support::{DEADLINE, Daemons, json, skipped, text, wait_for_endpoint};

const PORT: u16 = 8181;
const UPSTREAM: [&str; 4] = ["--listen", "127.0.0.1:9191", "--upstream", "fcs00:8181"];

fn fortune(host: &Host) -> Result<Process> {
    let service = host.spawn("socat", ["tcp-l:8181,bind=0,fork,reuseaddr", "exec:/usr/games/fortune"])?;
    host.wait_listening(PORT, DEADLINE)?;
    Ok(service)
}

/// What the guide's client does, and what passed on its wire.
fn dial_by_hand(client: &Host) -> Result<(Output, Trace)> {
    let capture = client.capture("tcp")?;
    let output = client.run("nc", ["127.0.0.1", "9191"], b"", DEADLINE)?;
    Ok((output, capture.stop()?))
}

fn ensure_secret(client: &Host, answer: &Output, trace: &Trace) -> Result<()> {
    ensure!(
        answer.status.success() && answer.stdout.len() > 10,
        "{:?}: {}",
        answer.stdout,
        text(&answer.stderr)
    );
    ensure!(!trace.contains(&answer.stdout), "the answer was on the wire");
    ensure!(
        !trace.packets().iter().any(|packet| packet.uses_port(PORT)),
        "the service's port was on the wire"
    );
    let tunnels: Vec<_> =
        trace.streams().into_iter().filter(|stream| stream.destination.port() == TUNNEL_PORT).collect();
    ensure!(!tunnels.is_empty(), "there was no tunnel");
    for tunnel in tunnels {
        tls_records(&tunnel.bytes)?;
    }
    ensure!(hooks(client)?.is_empty() && !client.bpf_directory().exists(), "a sidecar has no hooks");
    Ok(())
}

#[test]
fn a_sidecar_reaches_a_service_behind_an_agent() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let _fortune = fortune(service)?;
    let _sidecar = client.start_sidecar(&daemons.token(client)?, &UPSTREAM)?;
    wait_for_endpoint(client, service, PORT)?;
    let (answer, trace) = dial_by_hand(client)?;
    ensure_secret(client, &answer, &trace)
}

#[test]
fn two_sidecars_carry_a_fortune_with_no_hook_on_either_host() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    let far = service.start_sidecar(&daemons.token(service)?, &[])?;
    let _fortune = fortune(service)?;
    let _near = client.start_sidecar(&daemons.token(client)?, &UPSTREAM)?;
    wait_for_endpoint(client, service, PORT)?;
    let (answer, trace) = dial_by_hand(client)?;
    ensure_secret(client, &answer, &trace)?;
    ensure!(hooks(service)?.is_empty(), "a sidecar has no hooks");
    far.wait_for_line("direction=\"inbound\"", DEADLINE)?;

    let status = json(client, "status")?;
    ensure!(
        status["role"] == "sidecar" && status["healthy"] == true && status["interception"].is_null(),
        "{status}"
    );
    Ok(())
}

#[test]
fn a_sidecar_resets_its_client_when_the_service_is_gone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    let _far = service.start_sidecar(&daemons.token(service)?, &[])?;
    let near = client.start_sidecar(&daemons.token(client)?, &UPSTREAM)?;
    client.probe(["connect", "127.0.0.1:9191", "expect-reset"])?.succeed(DEADLINE)?;
    ensure!(near.stop(DEADLINE)?.success());
    Ok(())
}
