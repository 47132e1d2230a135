//! `murmesh host`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{RunDirectory, daemon, output};
use crate::api::v1::RemoveHostRequest;
use crate::cli::status::local_error;
use crate::local::connect_to_server;

/// The commands on hosts.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Take a host out of the mesh: nobody accepts its certificates any more, and its connections are cut. It can join
    /// again with a new token.
    Remove(RemoveArgs),
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
/// When no server answers or it refuses.
pub fn run(command: HostCommand) -> anyhow::Result<ExitCode> {
    let HostCommand::Remove(arguments) = command;
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = RemoveHostRequest { node: arguments.node };
        let removed = server.remove_host(request).await.map_err(local_error)?.into_inner();
        output::print(&format!("{} is not part of the mesh any more\n", removed.node))?;
        Ok(ExitCode::SUCCESS)
    })
}
