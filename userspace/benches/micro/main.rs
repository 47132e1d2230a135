//! What single steps cost that need no socket: frames, TLS records, routes, verdicts. `cargo xtask bench micro` runs them.

mod frames;
mod policy;
mod verdicts;
// Compiled from their source: they are no part of the library's interface.
#[path = "../../src/tunnel/tls/key.rs"]
#[expect(dead_code, reason = "its tests do not run here")]
mod key;
#[path = "../../src/tunnel/tls/record.rs"]
#[expect(dead_code, reason = "the handshake, which uses the rest, is not compiled here")]
mod record;
mod records;
mod routes;

use anyhow::Result;
use murmesh::bench::Machine;

fn main() -> Result<()> {
    let Machine { processor, cores, kernel, load } = Machine::this()?;
    println!("{processor}, {cores} cores, Linux {kernel}; load average {load:.2?}");
    divan::main();
    Ok(())
}
