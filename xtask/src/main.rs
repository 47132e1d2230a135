//! Murmesh's developer commands. `cargo xtask help` lists them.

mod build;
mod setup;
mod shell;

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
    Setup,
    /// Builds `murmesh`, kernel half included, with the profile that the lab, the demo and the tests use.
    Build,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup => setup::run(),
        Command::Build => build::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
