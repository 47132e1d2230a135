//! `cargo xtask bench micro`: what single steps cost that need no socket and no kernel half.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::{command_line, default_directory};
use crate::setup;
use crate::shell::{self, cargo, progress};

/// Where there are micro-benchmarks.
const PACKAGES: [&str; 2] = ["murmesh", "murmesh-common"];

/// Options of `cargo xtask bench micro`.
#[derive(Args)]
pub struct Arguments {
    /// Runs each step once, to see that it works. Measures nothing.
    #[arg(long)]
    quick: bool,
}

/// Measures, prints and writes the results.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::for_building()?;
    if arguments.quick { quick() } else { measure(&default_directory()) }
}

/// Sees that everything works, with the profile that the tests use.
pub fn quick() -> Result<()> {
    progress("micro-benchmarks, each once");
    shell::run(cargo().args(arguments()).args(["--profile", "dev", "--", "--test"]))
}

fn measure(directory: &Path) -> Result<()> {
    let mut command = cargo();
    // Seconds for each step. Without it some would be measured for a few microseconds only.
    command.args(arguments()).env("DIVAN_MIN_TIME", "1").stdout(Stdio::piped());
    let mut child = command.spawn().context("starting cargo")?;
    let mut results = String::new();
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        let line = line.context("reading what was measured")?;
        println!("{line}");
        writeln!(results, "{line}")?;
    }
    let status = child.wait().context("waiting for cargo")?;
    ensure!(status.success(), "the micro-benchmarks ended with {status}");
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let file = directory.join("micro.md");
    fs::write(&file, page(&results)).with_context(|| format!("writing {}", file.display()))?;
    progress(&format!("written to {}", file.display()));
    Ok(())
}

fn arguments() -> Vec<&'static str> {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    ["bench", "--locked", "--benches"].into_iter().chain(packages).collect()
}

fn page(results: &str) -> String {
    format!(
        "# What single steps cost\n\nMade by a command, not by hand:\n\n```\n{}\n```\n\n\
         [How to read it](../../benchmarks.md#micro-benchmarks).\n\n```\n{}\n```\n",
        command_line(),
        results.trim()
    )
}
