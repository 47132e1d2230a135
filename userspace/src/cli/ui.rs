//! `murmesh ui`. JSON: `{url, expires_at}`.

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::output::{self, Format, relative, rfc3339};
use super::{ReadOptions, daemon};
use crate::api::{time_from_unix, v1};
use crate::cli::status::local_error;
use crate::local::connect_to_server;

/// Arguments of `murmesh ui`.
#[derive(Debug, Args)]
pub struct UiArgs {
    #[command(flatten)]
    read: ReadOptions,
}

#[derive(Serialize)]
struct Link {
    url: String,
    expires_at: Option<String>,
}

/// Prints a link to the page of the server on this host.
///
/// # Errors
/// When no server answers, or it has no page.
pub fn run(arguments: &UiArgs) -> anyhow::Result<ExitCode> {
    let answer = daemon::block_on(async {
        let mut server = connect_to_server(&arguments.read.run_directory.run_dir).await?;
        Ok(server.open_page(v1::OpenPageRequest {}).await.map_err(local_error)?.into_inner())
    })?;
    let end = time_from_unix(answer.expires_at);
    match arguments.read.output {
        Format::Json => output::print_json(&Link { url: answer.url, expires_at: end.map(rfc3339) })?,
        Format::Table => {
            output::print(&format!("{}\n", answer.url))?;
            let end = end.map_or("never".to_owned(), |end| relative(end, SystemTime::now()));
            eprintln!("It works once, in a browser on this host, and ends {end}.");
        }
    }
    Ok(ExitCode::SUCCESS)
}
