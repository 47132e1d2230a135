//! A host that is gone without a word.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};

const PORT: u16 = 8800;

/// Data is given up after five retransmissions, about 9 s, a connection at rest after 17.5 s; connect time-out and
/// handshake time-out are 5 s each. The rest is for a busy machine.
const BOUND: Duration = Duration::from_secs(20);

#[test]
fn a_host_that_is_gone_is_an_error_in_bounded_time() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let greet = ["send=hello", "pause=600000"];
    let _services = [mesh.listen(PORT, &greet)?, mesh.listen(PORT + 1, &greet)?];
    let writer = mesh.connect(PORT, &["expect=hello", "say=open", "expect-write-error"])?;
    // What it sends after the pause fits into buffers: only the missing acknowledgement tells.
    let asker =
        mesh.connect(PORT + 1, &["expect=hello", "say=open", "pause=3000", "send=x", "expect-reset"])?;
    for process in [&writer, &asker] {
        process.wait_for_line("open", DEADLINE)?;
    }
    mesh.ensure_carried(2)?;

    mesh.service()?.unplug()?;
    let unplugged = Instant::now();
    let newcomers = [
        mesh.connect(PORT, &["expect-reset"])?,
        mesh.connect(PORT, &["send=x", "expect-reset"])?,
        mesh.connect(PORT, &["shutdown", "expect-reset"])?,
    ];
    for process in newcomers.into_iter().chain([writer, asker]) {
        process.succeed(DEADLINE)?;
        let taken = unplugged.elapsed();
        ensure!(taken < BOUND, "an error after {taken:?}");
    }
    mesh.ensure_carried(5)
}
