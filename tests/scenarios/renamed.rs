//! A service gets a name, loses it and gets another one while clients come and go.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Mesh, Process};
use serde_json::Value;

const PORT: u16 = 20000;
const CONNECTIONS: u64 = 1000;

/// Names the service, takes the name away and gives it another, for as long as clients come. Returns how often.
fn rename_during(mesh: &Mesh, clients: &mut Process) -> Result<u32> {
    let (server, port) = (mesh.host("murmesh00")?, PORT.to_string());
    let mut rounds = 0;
    while clients.wait(std::time::Duration::ZERO).is_err() {
        for name in ["fortune", "shop"] {
            server.murmesh(["service", "set", name, "--host", "fcs00", "--port", &port])?;
            server.murmesh(["service", "remove", name])?;
        }
        rounds += 1;
    }
    Ok(rounds)
}

#[test]
fn no_connection_fails_while_a_service_gets_and_loses_names() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.service()?;
    let ports = service.probe(["serve-ports", "fcs00", "--count=1"])?;
    ports.wait_for_line("listening", DEADLINE)?;
    mesh.wait_carried(&[SocketAddr::new(service.ipv4().into(), PORT)])?;
    let (target, connections) = (format!("fcs00={}", service.ipv4()), format!("--connections={CONNECTIONS}"));
    let storm = ["storm", &target, "--count=1", &connections, "--parallel=50", "--per-second=200"];
    let mut clients = mesh.client()?.probe(storm)?;
    let rounds = rename_during(&mesh, &mut clients)?;
    let said = clients.succeed(DEADLINE)?;
    let outcome: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(outcome["right"] == CONNECTIONS, "after {rounds} rounds of names: {said}");
    ensure!(rounds > 1, "the names changed {rounds} times only");
    mesh.ensure_carried(CONNECTIONS)
}
