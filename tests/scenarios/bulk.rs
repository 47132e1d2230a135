//! Long streams.

use std::time::Duration;

use anyhow::{Result, ensure};
use murmesh_lab::{Mesh, status};

const PORT: u16 = 9000;
const LENGTH: u64 = 100 * 1000 * 1000;

/// Unoptimised agents on a busy machine.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn a_hundred_megabytes_pass_both_ways_at_once_and_every_byte_is_right() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let exchange = format!("exchange={LENGTH}");
    let service = mesh.listen(PORT, &[&exchange])?;
    mesh.connect(PORT, &[&exchange])?.succeed(LONG)?;
    service.succeed(LONG)?;
    for direction in ["/traffic/bytes_sent", "/traffic/bytes_received"] {
        let carried = status(mesh.client()?, direction)?;
        ensure!(carried == LENGTH, "{direction}: {carried}");
    }
    mesh.ensure_carried(1)
}
