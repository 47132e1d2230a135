//! A program that does not read for a while, so that every buffer on the way is full.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};

const PORT: u16 = 9100;

/// More than all buffers on the way hold.
const LENGTH: u64 = 40 * 1000 * 1000;

/// A reset of one side's program, seen by the other side's: two seconds are given to the other agent to take the
/// news by a frame, and tunnels are looked at every 2.5 s. The rest is for a busy machine.
const BOUND: Duration = Duration::from_secs(10);

/// The connection of a host that is gone is given up after 17.5 s, if it was at rest.
const GONE_BOUND: Duration = Duration::from_secs(25);

/// Longer than it takes to give up a host that is gone.
const PAUSE: &str = "pause=20000";

#[test]
fn a_stream_survives_a_reader_that_pauses_for_longer_than_a_host_that_is_gone_is_waited_for() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let exchange = format!("exchange={LENGTH}");
    let service = mesh.listen(PORT, &[&exchange])?;
    mesh.connect(PORT, &[PAUSE, &exchange])?.succeed(2 * DEADLINE)?;
    service.succeed(DEADLINE)?;
    mesh.ensure_carried(1)
}

#[test]
fn a_reset_by_the_client_reaches_a_service_that_does_not_read() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &["expect-broken=ECONNRESET"])?;
    let client = mesh.connect(PORT, &["fill", "say=full", "reset"])?;
    client.wait_for_line("full", DEADLINE)?;
    let reset = Instant::now();
    service.succeed(DEADLINE)?;
    let taken = reset.elapsed();
    ensure!(taken < BOUND, "reset after {taken:?}");
    mesh.ensure_carried(1)
}

#[test]
fn a_reset_by_the_service_reaches_a_client_that_does_not_read() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &["fill", "say=full", "reset"])?;
    let client = mesh.connect(PORT, &["expect-broken=ECONNRESET"])?;
    service.wait_for_line("full", DEADLINE)?;
    let reset = Instant::now();
    client.succeed(DEADLINE)?;
    let taken = reset.elapsed();
    ensure!(taken < BOUND, "reset after {taken:?}");
    mesh.ensure_carried(1)
}

#[test]
fn a_client_that_does_not_read_learns_that_the_other_host_is_gone() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &["fill", "say=full", "expect-write-error"])?;
    let client = mesh.connect(PORT, &["expect-broken=ECONNRESET"])?;
    service.wait_for_line("full", DEADLINE)?;
    mesh.service()?.unplug()?;
    let unplugged = Instant::now();
    client.succeed(DEADLINE)?;
    let taken = unplugged.elapsed();
    ensure!(taken < GONE_BOUND, "reset after {taken:?}");
    mesh.ensure_carried(1)
}
