//! A service that does not listen any more.

use std::net::SocketAddr;

use anyhow::Result;
use murmesh_lab::{DEADLINE, Mesh};
use nix::sys::signal::Signal;

const PORT: u16 = 8700;
const OTHER_PORT: u16 = 8701;

#[test]
fn a_service_that_is_gone_is_refused() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.service()?;
    let destinations = service.addresses().map(|address| SocketAddr::new(address, PORT));
    let listener = mesh.listen(PORT, &["expect=x"])?;
    mesh.connect(PORT, &["send=x", "end"])?.succeed(DEADLINE)?;
    listener.succeed(DEADLINE)?;
    for destination in destinations {
        mesh.wait_not_carried(destination)?;
        for options in [&["--fails=ECONNREFUSED"][..], &["--fails=ECONNREFUSED", "--nonblocking"]] {
            let destination = destination.to_string();
            let arguments = ["connect", &destination];
            mesh.client()?.probe(arguments.iter().chain(options))?.succeed(DEADLINE)?;
        }
    }
    mesh.ensure_carried(1)
}

/// The catalog is kept from changing by a server that stands still, so the client's agent goes on to carry.
#[test]
fn a_service_that_is_gone_and_still_in_the_catalog_is_reset() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let listener = mesh.listen(PORT, &["expect=x"])?;
    // A workload gets its certificate with its first connection.
    let other = mesh.listen(OTHER_PORT, &["expect=x"])?;
    mesh.connect(OTHER_PORT, &["send=x", "end"])?.succeed(DEADLINE)?;
    other.succeed(DEADLINE)?;
    mesh.server().signal(Signal::SIGSTOP)?;
    mesh.connect(PORT, &["send=x", "end"])?.succeed(DEADLINE)?;
    listener.succeed(DEADLINE)?;
    for step in ["expect-reset", "expect-write-error"] {
        mesh.connect(PORT, &[step])?.succeed(DEADLINE)?;
    }
    mesh.ensure_carried(4)
}
