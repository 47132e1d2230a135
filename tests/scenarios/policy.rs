//! Rules, from the administrator's command to the kernel's answer.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh};
use nix::sys::signal::Signal;

const PORT: u16 = 8181;

/// From the command to the first connection that is refused. The promise is one second; the rest is the busy machine.
const QUICKLY: Duration = Duration::from_secs(5);

/// What `nc` says about a connection to the service host, and whether it was made.
fn dial(client: &Host) -> Result<(bool, String)> {
    let output = client.run("nc", ["-vz", "fcs00", "8181"], b"", DEADLINE)?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Dials until it is made or refused as wanted, and returns what `nc` said then.
fn dial_until(client: &Host, made: bool) -> Result<String> {
    let begun = Instant::now();
    loop {
        let (is_made, said) = dial(client)?;
        if is_made == made {
            return Ok(said);
        }
        ensure!(begun.elapsed() < QUICKLY, "after {:?} nc still says: {said}", begun.elapsed());
    }
}

#[test]
fn a_denied_connection_fails_in_the_program_itself_and_is_made_again_without_the_rule() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client) = (mesh.host("murmesh00")?, mesh.client()?);
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:/bin/true"])?;
    ensure!(dial(client)?.0, "without a rule everything is allowed");

    let added = server.murmesh(["deny", "fcc00", "fcs00:8181"])?;
    ensure!(added == "rule 1: deny host/fcc00/* host/fcs00/*:8181\n", "{added}");
    let said = dial_until(client, false)?;
    ensure!(said.contains("Operation not permitted"), "{said}");

    // Any daemon answers, from what it knows itself.
    let asked = client.run("murmesh", ["policy", "test", "fcc00", "fcs00:8181"], b"", DEADLINE)?;
    let answer = String::from_utf8_lossy(&asked.stdout).into_owned();
    ensure!(asked.status.code() == Some(1) && answer.contains("rule 1"), "{answer}");

    server.murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", "8181"])?;
    server.murmesh(["allow", "fcc00", "fortune"])?;
    dial_until(client, true)?;
    server.murmesh(["policy", "delete", "2"])?;
    dial_until(client, false)?;
    server.murmesh(["policy", "delete", "1"])?;
    dial_until(client, true)?;
    Ok(())
}

#[test]
fn what_was_denied_stays_denied_while_the_server_is_down() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client) = (mesh.host("murmesh00")?, mesh.client()?);
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:/bin/true"])?;
    server.murmesh(["policy", "default", "deny"])?;
    dial_until(client, false)?;
    mesh.server().signal(Signal::SIGKILL)?;
    for _ in 0..3 {
        let (made, said) = dial(client)?;
        ensure!(!made && said.contains("Operation not permitted"), "{said}");
    }
    Ok(())
}
