//! `murmesh host`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{RunDirectory, daemon, output};
use crate::api::v1;
use crate::cli::status::local_error;
use crate::identity::NodeName;
use crate::local::connect_to_server;

/// The commands on hosts of the mesh.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Stop new connections through the mesh to all that a host serves; those that are open go on until they end.
    Drain(DrainArgs),
    /// Let connections go to a host again.
    Undrain(DrainArgs),
}

/// Arguments of `murmesh host drain` and `undrain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The host.
    host: NodeName,
}

/// Runs one of the commands.
///
/// # Errors
/// When no server answers or it refuses.
pub fn run(command: HostCommand) -> anyhow::Result<ExitCode> {
    match command {
        HostCommand::Drain(arguments) => drain(&arguments, true),
        HostCommand::Undrain(arguments) => drain(&arguments, false),
    }
}

fn drain(arguments: &DrainArgs, drained: bool) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = v1::DrainHostRequest { node: arguments.host.to_string(), drained };
        let hosts = server.drain_host(request).await.map_err(local_error)?.into_inner().hosts;
        let hosts = if hosts.is_empty() { "none".to_owned() } else { hosts.join(", ") };
        output::print(&format!("drained hosts: {hosts}\n"))?;
        Ok(ExitCode::SUCCESS)
    })
}
