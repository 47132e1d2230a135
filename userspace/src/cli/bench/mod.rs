//! `murmesh bench`. JSON of `run` and `report`: `{command, started_at, machine: {processor, cores, kernel, load},
//! seconds, paths}`, where a path is `{name, kind, figures, failures}` and `figures` has a list of values, one for
//! each round, under names such as `fortune_median` (µs), `connection_rate` (per second), `download_four` (Gbit/s),
//! `gigabyte_cpu` (s) and `idle_memory` (KiB).

mod report;
mod run;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::output;
use crate::{
    bench::{self, Service, serve},
    sandbox::raise_descriptor_limit,
};

/// The subcommands of `murmesh bench`.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Serve what `bench run` measures: four services on consecutive ports.
    Serve(ServeArgs),
    /// Measure paths to a host on which `bench serve` runs.
    ///
    /// Rounds are interleaved: each measures every path before it goes on to the next load. Nothing is measured on
    /// a path that is not what it says.
    Run(run::RunArgs),
    /// Join results of several runs, and show them in other forms.
    Report(report::ReportArgs),
}

/// Arguments of `murmesh bench serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// First of four consecutive ports: fortune, echo, source, sink.
    #[arg(long, default_value_t = serve::DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..=65532), value_name = "PORT")]
    port: u16,
}

/// Runs a subcommand.
///
/// # Errors
/// A port cannot be bound, a path is not what it says or fails, or a file cannot be read or written.
pub fn run(command: BenchCommand) -> anyhow::Result<ExitCode> {
    match command {
        BenchCommand::Serve(arguments) => serve(&arguments)?,
        BenchCommand::Run(arguments) => arguments.form.show(&bench::run(&arguments.plan()?)?)?,
        BenchCommand::Report(arguments) => report::run(&arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(arguments: &ServeArgs) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let port = arguments.port;
    let listeners = serve::bind(port).with_context(|| {
        format!("ports {port} to {} cannot be bound; choose others with --port", port + 3)
    })?;
    let names = Service::ALL.map(|service| format!("{} on {}", service.name(), service.port(port)));
    output::print(&format!("serving {}\n", names.join(", ")))?;
    serve::serve(listeners).context("a listener failed")
}
