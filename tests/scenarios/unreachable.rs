//! A host that is gone without a word.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};

const PORT: u16 = 8800;

/// A tunnel is given up after 10 s without an acknowledgement, and one at rest is then replaced by a new one, whose
/// connect time-out is 5 s; the rest is for a busy machine.
const BOUND: Duration = Duration::from_secs(20);

#[test]
fn a_host_that_is_gone_is_an_error_in_bounded_time() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _service = mesh.listen(PORT, &["send=hello", "pause=600000"])?;
    let writer = mesh.connect(PORT, &["expect=hello", "say=open", "expect-write-error"])?;
    writer.wait_for_line("open", DEADLINE)?;
    mesh.ensure_carried(1)?;

    mesh.service()?.unplug()?;
    let unplugged = Instant::now();
    let newcomers = [
        mesh.connect(PORT, &["expect-reset"])?,
        mesh.connect(PORT, &["send=x", "expect-reset"])?,
        mesh.connect(PORT, &["shutdown", "expect-reset"])?,
    ];
    for process in newcomers.into_iter().chain([writer]) {
        process.succeed(DEADLINE)?;
        let taken = unplugged.elapsed();
        ensure!(taken < BOUND, "an error after {taken:?}");
    }
    mesh.ensure_carried(4)
}
