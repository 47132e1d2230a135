//! Many connections at once to many services: each gets to the one it dialled.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};
use serde::Deserialize;

const FIRST_PORT: u16 = 20000;
const PORTS: u16 = 50;
const LONG: Duration = Duration::from_secs(60);

/// What `murmesh-probe storm` prints.
#[derive(Debug, Deserialize)]
struct Outcome {
    right: u64,
    wrong: Vec<String>,
    failed: BTreeMap<String, u64>,
}

/// Three hosts with fifty services each, asked by `connections` of a client whose ephemeral ports are `port_range`.
fn storm(connections: u64, parallel: u64, port_range: Option<&str>) -> Result<()> {
    let Some(mesh) = Mesh::start(3, 1)? else { return Ok(()) };
    let mut services = Vec::new();
    let mut destinations = Vec::new();
    let mut targets = Vec::new();
    for name in ["fcs00", "fcs01", "fcs02"] {
        let host = mesh.host(name)?;
        services.push(host.probe(["serve-ports", name])?);
        for address in host.addresses() {
            let ports = FIRST_PORT..FIRST_PORT + PORTS;
            destinations.extend(ports.map(|port| SocketAddr::new(address, port)));
            targets.push(format!("{name}={address}"));
        }
        targets.push(format!("{name}={}", host.ipv4().to_ipv6_mapped()));
    }
    for service in &services {
        service.wait_for_line("listening", DEADLINE)?;
    }
    mesh.wait_carried(&destinations)?;
    let client = mesh.client()?;
    if let Some(port_range) = port_range {
        let script = format!("echo {port_range} > /proc/sys/net/ipv4/ip_local_port_range");
        client.spawn("sh", ["-c", &script])?.succeed(DEADLINE)?;
    }
    let (connections_option, parallel) =
        (format!("--connections={connections}"), format!("--parallel={parallel}"));
    let options = ["storm".to_owned(), connections_option, parallel];
    let said = client.probe(options.iter().chain(&targets))?.succeed(LONG)?;
    let outcome: Outcome = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(outcome.wrong.is_empty(), "wrong answers: {:?}", outcome.wrong);
    ensure!(outcome.failed.is_empty(), "failed: {:?}", outcome.failed);
    ensure!(outcome.right == connections, "{} of {connections} answered", outcome.right);
    mesh.ensure_carried(connections)
}

#[test]
fn no_connection_reaches_another_service_than_it_dialled() -> Result<()> {
    storm(3000, 100, None)
}

/// Each port is used some twenty times, the next time as soon as it is free.
#[test]
fn no_connection_reaches_another_service_with_200_ephemeral_ports() -> Result<()> {
    storm(4000, 100, Some("40000 40199"))
}
