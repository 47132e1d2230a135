//! Connections within a host are left alone.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};

const PORT: u16 = 8900;

#[test]
fn connections_within_a_host_never_meet_its_agent() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.service()?;
    let listen = format!("tcp6-l:{PORT},ipv6only=0,fork,reuseaddr");
    let _service = mesh.serve(service, PORT, "socat", [&listen, "exec:echo here"])?;
    let [v4, v6] = service.addresses().map(|address| address.to_string());
    let port = PORT.to_string();
    for name in ["127.0.0.1", "127.1.2.3", "::1", "localhost", &v4, &v6, "fcs00"] {
        let output = service.run("nc", [name, &port], b"", DEADLINE)?;
        ensure!(output.stdout == b"here\n", "{name}: {output:?}");
    }
    ensure!(
        murmesh_lab::status(service, "/traffic/streams_total")? == 0,
        "the service's agent carried something"
    );
    let said = mesh.agent("fcs00")?.said();
    ensure!(!said.contains("access"), "the access log is not empty: {said}");

    // The same service is carried for others, and the access log would have shown it.
    mesh.client()?.spawn("nc", ["fcs00", &port])?.succeed(DEADLINE)?;
    mesh.agent("fcs00")?.wait_for_line("access", DEADLINE)?;
    mesh.ensure_carried(1)
}

#[test]
fn a_listener_on_loopback_is_never_reached_from_another_host() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.service()?;
    let (private_port, shared_port) = (PORT, PORT + 1);
    let private = format!("tcp-l:{private_port},bind=127.0.0.1,fork,reuseaddr");
    let _private = service.spawn("socat", [&private, "exec:echo private"])?;
    service.wait_listening(private_port, DEADLINE)?;
    // The port of a private listener may be that of a public one, at another address.
    let also_private = format!("tcp-l:{shared_port},bind=127.0.0.1,fork,reuseaddr");
    let _also_private = service.spawn("socat", [&also_private, "exec:echo private"])?;
    service.wait_listening(shared_port, DEADLINE)?;
    let public = format!("tcp-l:{shared_port},bind={},fork,reuseaddr", service.ipv4());
    let _public = mesh.serve(service, shared_port, "socat", [&public, "exec:echo public"])?;

    let client = mesh.client()?;
    let carried = murmesh_lab::services(client)?;
    ensure!(!carried.iter().any(|destination| destination.port() == private_port), "carried: {carried:?}");
    for address in service.addresses() {
        let destination = SocketAddr::new(address, private_port).to_string();
        client.probe(["connect", &destination, "--fails=ECONNREFUSED"])?.succeed(DEADLINE)?;
    }
    let answer = client.spawn("nc", ["fcs00", &shared_port.to_string()])?.succeed(DEADLINE)?;
    ensure!(answer == "public\n", "{answer:?}");
    let own = service.spawn("nc", ["127.0.0.1", &shared_port.to_string()])?.succeed(DEADLINE)?;
    ensure!(own == "private\n", "{own:?}");
    mesh.ensure_carried(1)
}
