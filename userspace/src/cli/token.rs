//! `murmesh token create`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{RunDirectory, daemon, output};
use crate::api::v1::CreateTokenRequest;
use crate::cli::status::local_error;
use crate::local::{SERVER_SOCKET, connect};

/// The commands on tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token that lets one host join, once. Prints it alone on one line.
    Create(CreateArgs),
}

/// Arguments of `murmesh token create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// How long it may be used, such as "15m"; at most 31 days.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration, value_name = "DURATION")]
    valid_for: Duration,
}

/// Asks the server on this host for a token.
///
/// # Errors
/// When no server answers or it refuses.
pub fn run(command: TokenCommand) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create(arguments) = command;
    daemon::block_on(async {
        let run_dir = &arguments.run_directory.run_dir;
        let mut server = connect(run_dir, &[SERVER_SOCKET], "murmesh server").await?;
        let request = CreateTokenRequest { valid_seconds: arguments.valid_for.as_secs() };
        let answer = server.create_token(request).await.map_err(local_error)?;
        output::print(&format!("{}\n", answer.into_inner().token))?;
        Ok(ExitCode::SUCCESS)
    })
}
