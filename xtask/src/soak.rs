//! `cargo xtask soak`: everything at once, and what it leaves.

use anyhow::Result;
use clap::Args;

use crate::shell::{self, cargo, progress};
use crate::{build, setup};

/// The scenario.
const NAME: &str = "soak::nothing_grows_under_everything_at_once";

/// Options of `cargo xtask soak`.
#[derive(Args)]
pub struct Arguments {
    /// How long.
    #[arg(long, default_value_t = 30, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
}

/// Runs the scenario for that long, by `cargo test`: nextest would take it for one that hangs.
pub fn run(arguments: &Arguments) -> Result<()> {
    build::run()?;
    setup::for_running()?;
    progress(&format!("mixed load for {} minutes", arguments.minutes));
    let mut test = cargo();
    test.args([
        "test",
        "--package",
        "murmesh-lab",
        "--test",
        "scenarios",
        "--",
        "--exact",
        NAME,
        "--nocapture",
    ]);
    shell::run(test.env("MURMESH_SOAK_MINUTES", arguments.minutes.to_string()))
}
