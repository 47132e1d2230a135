//! More connections to one service than one address of its host has ports for them.

use std::env;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, Process};

use crate::support::wait_until;

const PORT: u16 = 8590;

/// How many connections are held at once, with 500 ports; without it a few with 20.
const HELD: &str = "MURMESH_HELD_CONNECTIONS";

/// Until all are open: each takes a handshake between the agents.
const LONG: Duration = Duration::from_secs(150);

/// A service of `fcs00` that gives back what comes; that host has `ports` ports for connections that it makes.
fn service_with_ports(mesh: &Mesh, ports: usize) -> Result<Process> {
    let service = mesh.service()?;
    let keep = service.probe(["keep", &PORT.to_string()])?;
    keep.wait_for_line("listening", DEADLINE)?;
    mesh.wait_carried(&[destination(service)])?;
    let range = format!("echo 40000 {} > /proc/sys/net/ipv4/ip_local_port_range", 40000 + ports - 1);
    service.spawn("sh", ["-c", &range])?.succeed(DEADLINE)?;
    Ok(keep)
}

fn destination(service: &Host) -> SocketAddr {
    (service.ipv4(), PORT).into()
}

/// `fcc00` opens connections and keeps them open; says how many there are.
fn hold(mesh: &Mesh, connections: usize, options: &[&str]) -> Result<(Process, usize)> {
    let (to, number) = (destination(mesh.service()?).to_string(), connections.to_string());
    let hold = mesh.client()?.probe(["hold", &to, &number].iter().chain(options))?;
    let line = hold.wait_for_line("open ", LONG)?;
    let open = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok((hold, open))
}

/// Each of them still works, and they end.
fn release(mut hold: Process) -> Result<()> {
    hold.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
    hold.succeed(LONG).map(drop)
}

/// Resident memory of the agent of `host`, in bytes.
fn memory(mesh: &Mesh, host: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", mesh.agent(host)?.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a line with VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

#[test]
fn a_service_has_more_connections_than_one_address_has_ports() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (connections, ports) = match env::var(HELD) {
        Ok(number) => (number.parse().context(HELD)?, 500),
        Err(_) => (400, 20),
    };
    let _service = service_with_ports(&mesh, ports)?;
    let before = [memory(&mesh, "fcc00")?, memory(&mesh, "fcs00")?];
    let (holding, open) = hold(&mesh, connections, &[])?;
    let after = [memory(&mesh, "fcc00")?, memory(&mesh, "fcs00")?];
    let each = |index: usize| after[index].saturating_sub(before[index]) / open as u64;
    println!(
        "{open} connections at once with {ports} ports; {} bytes for each at the client's agent, {} at the service's",
        each(0),
        each(1)
    );
    release(holding)?;
    mesh.ensure_carried(connections as u64)
}

#[test]
fn where_no_address_has_a_port_left_a_connection_is_reset_with_a_reason_and_made_when_others_have_ended()
-> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let ports = 4;
    let _service = service_with_ports(&mesh, ports)?;
    let (holding, open) = hold(&mesh, 1000, &["--at-most"])?;
    ensure!(open > 2 * ports && open < 1000, "{open} connections with {ports} ports");
    let line = mesh.agent("fcs00")?.wait_for_line("no local port is left", DEADLINE)?;
    ensure!(line.contains(&destination(mesh.service()?).to_string()), "{line}");
    // Those that are open are none the worse.
    release(holding)?;
    wait_until("connections are made again", || {
        let (holding, again) = hold(&mesh, 2 * ports, &["--at-most"])?;
        release(holding)?;
        Ok(again == 2 * ports)
    })
}
