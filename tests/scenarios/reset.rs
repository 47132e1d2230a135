//! What breaks on one side is an error on the other, and never a clean end.

use anyhow::Result;
use murmesh_lab::{DEADLINE, Mesh};

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

/// After the end of a direction its reader sees a reset only by writing.
#[test]
fn a_reset_by_a_client_that_has_ended_reaches_the_service() -> Result<()> {
    play(&["expect=x", "end", "send=y", "expect-write-error"], &["send=x", "shutdown", "expect=y", "reset"])
}

#[test]
fn a_reset_by_a_service_that_has_ended_reaches_the_client() -> Result<()> {
    play(&["send=x", "shutdown", "expect=y", "reset"], &["expect=x", "end", "send=y", "expect-write-error"])
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
