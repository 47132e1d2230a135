//! `cargo xtask build`.

use anyhow::Result;

use crate::{setup, shell};

/// Prepares the machine for building, and builds `murmesh`.
///
/// The lab, the demo and the tests all use the dev profile. It optimises dependencies, where a connection spends
/// its time (cryptography, the runtime, the store), and leaves our own crates quick to compile, so that one build
/// serves everything and fits a small machine. Releases and benchmarks are built with `cargo build --release`.
pub fn run() -> Result<()> {
    setup::for_building()?;
    shell::progress("building murmesh");
    // For the whole workspace, so that dependencies get the same features, and are compiled once, as for the tests.
    shell::run(shell::cargo().args(["build", "--workspace", "--bin", "murmesh", "--locked"]))
}
