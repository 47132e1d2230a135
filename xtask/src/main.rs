//! Murmesh's developer commands. `cargo xtask help` lists them.

mod bench;
mod build;
mod ci;
mod demo;
mod docs;
mod kernel;
mod lab;
mod package;
mod setup;
mod shell;
mod soak;
mod terraform;
mod test;
mod trials;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Murmesh's developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what building and running Murmesh needs and this machine lacks.
    Setup(setup::Arguments),
    /// Builds `murmesh`, kernel half included, with the profile that the lab, the demo and the tests use.
    Build,
    /// Measures what connections cost: plain TCP, sidecars, the mesh, and other proxies. Needs root.
    Bench(bench::Arguments),
    /// Shows the same `nc` reach the same `socat` first in clear and then through Murmesh. Needs root.
    Demo,
    /// Makes hosts on this machine and runs commands in them. Needs root.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Runs the unit tests, then the integration tests (which need root), and counts them; or the latter elsewhere.
    Test(test::Arguments),
    /// Has a mesh in the lab carry everything at once for half an hour, and fails when anything grows. Needs root.
    Soak(soak::Arguments),
    /// Makes the Debian package, and tries it on an overlay of this machine (which needs root).
    Package(package::Arguments),
    /// Writes docs/commands.md anew.
    Docs,
    /// Checks formatting, lints, documentation and dependencies, then runs all tests.
    Ci,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Build => build::run(),
        Command::Demo => demo::run(),
        Command::Lab(command) => lab::run(command),
        Command::Test(arguments) => test::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Package(arguments) => package::run(&arguments),
        Command::Docs => docs::write(),
        Command::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            murmesh_lab::wait_if_interrupted();
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
