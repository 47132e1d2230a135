//! `murmesh host`: what an administrator does to hosts.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{RunDirectory, daemon, output};
use crate::api::v1;
use crate::cli::status::local_error;
use crate::identity::NodeName;
use crate::local::connect_to_server;

/// The commands on hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Stop new connections through the mesh to all that a host serves; those that are open go on until they end.
    Drain(DrainArgs),
    /// Let connections go to a host again.
    Undrain(DrainArgs),
    /// Take a host out of the mesh: nobody accepts its certificates any more, and its connections are cut. It can join
    /// again with a new token.
    Remove(RemoveArgs),
}

/// Arguments of `murmesh host drain` and `undrain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// The host.
    #[arg(value_name = "NODE")]
    host: NodeName,
}

/// Arguments of `murmesh host remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// Its name, as `murmesh members` has it.
    #[arg(value_name = "NODE")]
    node: String,
}

/// Asks the server on this host.
///
/// # Errors
/// No server answers, or it refuses.
pub fn run(command: HostCommand) -> anyhow::Result<ExitCode> {
    match command {
        HostCommand::Drain(arguments) => drain(&arguments, true),
        HostCommand::Undrain(arguments) => drain(&arguments, false),
        HostCommand::Remove(arguments) => remove(arguments),
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

fn remove(arguments: RemoveArgs) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = v1::RemoveHostRequest { node: arguments.node };
        let removed = server.remove_host(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("{} is not part of the mesh any more\n", removed.node))?;
        Ok(ExitCode::SUCCESS)
    })
}
