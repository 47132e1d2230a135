//! What breaks on one side is an error on the other, and never a clean end.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use murmesh_lab::{DEADLINE, Mesh, Process};

const PORT: u16 = 8600;

fn play(service: &[&str], client: &[&str]) -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, service)?;
    mesh.connect(PORT, client)?.succeed(DEADLINE)?;
    service.succeed(DEADLINE)?;
    mesh.ensure_carried(1)
}

#[test]
fn a_reset_by_the_client_reaches_the_service() -> Result<()> {
    play(&["expect=x", "send=y", "expect-reset"], &["send=x", "expect=y", "reset"])
}

#[test]
fn a_reset_by_the_service_reaches_the_client() -> Result<()> {
    play(&["expect=x", "send=y", "expect=z", "reset"], &["send=x", "expect=y", "send=z", "expect-reset"])
}

#[test]
fn a_reset_by_the_service_reaches_a_client_that_has_ended() -> Result<()> {
    play(&["expect=x", "end", "reset"], &["send=x", "shutdown", "expect-reset"])
}

#[test]
fn a_reset_by_the_client_reaches_a_service_that_has_ended() -> Result<()> {
    play(&["send=x", "shutdown", "expect-reset"], &["expect=x", "end", "reset"])
}

#[test]
fn a_reset_by_a_client_that_has_ended_reaches_the_service() -> Result<()> {
    play(&["expect=x", "end", "send=y", "expect-broken=EPIPE"], &["send=x", "shutdown", "expect=y", "reset"])
}

#[test]
fn a_reset_by_a_service_that_has_ended_reaches_the_client() -> Result<()> {
    play(&["send=x", "shutdown", "expect=y", "reset"], &["expect=x", "end", "send=y", "expect-broken=EPIPE"])
}

/// One end fills the way to the other, which does not read, and resets the connection; then the other reads on.
const FILLS: [&str; 3] = ["expect=x", "fill", "reset"];
const READS_LATER: [&str; 3] = ["send=x", "wait", "expect-reset"];

fn read_on(mut reader: Process) -> Result<()> {
    reader.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
    reader.succeed(DEADLINE)?;
    Ok(())
}

#[test]
fn a_reset_behind_more_than_the_service_has_read_is_no_clean_end() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &READS_LATER)?;
    mesh.connect(PORT, &FILLS)?.succeed(DEADLINE)?;
    read_on(service)?;
    mesh.ensure_carried(1)
}

#[test]
fn a_reset_behind_more_than_the_client_has_read_is_no_clean_end() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &FILLS)?;
    let client = mesh.connect(PORT, &READS_LATER)?;
    service.succeed(DEADLINE)?;
    read_on(client)?;
    mesh.ensure_carried(1)
}

/// Kills the agent of `host` while the service sends to the client.
fn kill_agent_while_the_service_sends(host: &str) -> Result<()> {
    let Some(mut mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &["send=hello", "expect-write-error"])?;
    let client = mesh.connect(PORT, &["expect=hello", "say=receiving", "expect-reset"])?;
    client.wait_for_line("receiving", DEADLINE)?;
    mesh.ensure_carried(1)?;
    mesh.kill_agent(host)?;
    client.succeed(DEADLINE)?;
    service.succeed(DEADLINE)?;
    Ok(())
}

/// Kills the agent of `host` while the client sends to the service.
fn kill_agent_while_the_client_sends(host: &str) -> Result<()> {
    let Some(mut mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &["expect=hello", "say=receiving", "expect-reset"])?;
    let client = mesh.connect(PORT, &["send=hello", "expect-write-error"])?;
    service.wait_for_line("receiving", DEADLINE)?;
    mesh.ensure_carried(1)?;
    mesh.kill_agent(host)?;
    client.succeed(DEADLINE)?;
    service.succeed(DEADLINE)?;
    Ok(())
}

#[test]
fn a_killed_far_agent_is_an_error_while_the_service_sends() -> Result<()> {
    kill_agent_while_the_service_sends("fcs00")
}

#[test]
fn a_killed_near_agent_is_an_error_while_the_service_sends() -> Result<()> {
    kill_agent_while_the_service_sends("fcc00")
}

#[test]
fn a_killed_far_agent_is_an_error_while_the_client_sends() -> Result<()> {
    kill_agent_while_the_client_sends("fcs00")
}

#[test]
fn a_killed_near_agent_is_an_error_while_the_client_sends() -> Result<()> {
    kill_agent_while_the_client_sends("fcc00")
}

/// A stream that carries nothing when it breaks, with one direction ended: the hardest to tell from a clean end.
#[test]
fn a_killed_agent_is_an_error_to_a_client_that_has_ended_and_waits() -> Result<()> {
    for host in ["fcs00", "fcc00"] {
        let Some(mut mesh) = Mesh::start(1, 1)? else { return Ok(()) };
        let service = mesh.listen(PORT, &["expect=question", "end", "say=asked", "pause=60000"])?;
        let client = mesh.connect(PORT, &["send=question", "shutdown", "expect-reset"])?;
        service.wait_for_line("asked", DEADLINE)?;
        mesh.ensure_carried(1)?;
        mesh.kill_agent(host)?;
        client.succeed(DEADLINE)?;
    }
    Ok(())
}
