//! What rules refuse is refused in clear, too: at addresses that are in no catalog, and before the client's host knows
//! the service.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, Process, patience};

use crate::support::text;

const PORT: u16 = 8181;
const OTHER_PORT: u16 = 8182;

/// Says whether the connection was made, and what `nc` said.
fn dial(client: &Host, address: &str, port: u16) -> Result<(bool, String)> {
    let output = client.run("nc", ["-vz", address, &port.to_string()], b"", DEADLINE)?;
    Ok((output.status.success(), text(&output.stderr)))
}

/// Dials until it is made, or refused by the other host: rules take a moment to arrive.
fn dial_until(client: &Host, address: &str, port: u16, made: bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let (is_made, said) = dial(client, address, port)?;
        if is_made == made {
            ensure!(made || said.contains("Connection refused"), "{said}");
            return Ok(());
        }
        ensure!(begun.elapsed() < patience(DEADLINE), "{address} port {port}, wanted {made}: {said}");
    }
}

/// A service that listens on any address; other hosts may not have heard of it yet.
fn serve(host: &Host, port: u16) -> Result<Process> {
    let listen = format!("tcp6-l:{port},ipv6only=0,fork,reuseaddr");
    let service = host.spawn("socat", [&listen, "exec:/bin/true"])?;
    host.wait_listening(port, DEADLINE)?;
    Ok(service)
}

/// The link-local address of `host`, once it may be used.
pub fn link_local(host: &Host) -> Result<String> {
    let begun = Instant::now();
    loop {
        let shown =
            host.run("ip", ["-6", "-o", "addr", "show", "scope", "link", "-tentative"], b"", DEADLINE)?;
        let shown = text(&shown.stdout);
        let mut words = shown.split_whitespace().skip_while(|word| *word != "inet6");
        if let Some(address) = words.nth(1) {
            return Ok(address.split('/').next().context("a prefix")?.to_owned());
        }
        ensure!(begun.elapsed() < patience(DEADLINE), "{} has no link-local address: {shown}", host.name());
    }
}

#[test]
fn a_rule_holds_at_link_local_addresses() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client, service) = (mesh.host("murmesh00")?, mesh.client()?, mesh.service()?);
    let _services = [serve(service, PORT)?, serve(service, OTHER_PORT)?];
    link_local(client)?;
    let interface = client.run("ip", ["-o", "route", "get", &service.ipv4().to_string()], b"", DEADLINE)?;
    let interface = text(&interface.stdout);
    let interface = interface.split_whitespace().skip_while(|word| *word != "dev").nth(1);
    let address = format!("{}%{}", link_local(service)?, interface.context("a device")?);
    dial_until(client, &address, PORT, true)?;
    server.murmesh(["deny", "fcc00", &format!("fcs00:{PORT}")])?;
    dial_until(client, &address, PORT, false)?;
    let told = service.run("murmesh", ["observe", "--verdict", "denied"], b"", DEADLINE)?;
    let told = text(&told.stdout);
    ensure!(told.contains("in clear, from a host some of whose workloads the rules refuse"), "{told}");
    ensure!(dial(client, &address, OTHER_PORT)?.0, "no rule is about the other port");
    server.murmesh(["policy", "delete", "1"])?;
    dial_until(client, &address, PORT, true)
}

#[test]
fn a_rule_holds_before_the_clients_host_knows_the_service() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client, service) = (mesh.host("murmesh00")?, mesh.client()?, mesh.service()?);
    server.murmesh(["deny", "fcc00", &format!("fcs00:{PORT}")])?;
    // As long as the moment in which the news travel can be.
    server.cut_off_from(client)?;
    let _services = [serve(service, PORT)?, serve(service, OTHER_PORT)?];
    let address = service.ipv4().to_string();
    dial_until(client, &address, PORT, false)?;
    ensure!(dial(client, &address, OTHER_PORT)?.0, "in clear, which no rule forbids");
    let address = SocketAddr::new(service.ipv4().into(), PORT);
    ensure!(!murmesh_lab::services(client)?.contains(&address), "the client's host has heard of it");
    Ok(())
}
