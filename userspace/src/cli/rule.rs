//! `murmesh allow` and `murmesh deny`.

use std::process::ExitCode;

use clap::Args;

use super::{RunDirectory, daemon, output};
use crate::api::v1;
use crate::cli::status::local_error;
use crate::local::connect_to_server;
use crate::policy::{Action, Rule};

/// Arguments of `murmesh allow` and `murmesh deny`.
#[derive(Debug, Args)]
pub struct RuleArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// Who connects: *, a host, host/NODE/WORKLOAD, host/*/WORKLOAD, a service or service/*.
    source: String,
    /// To what: as a source, with :PORT if wanted; or a network outside the mesh, such as 10.0.0.0/8:443/tcp.
    destination: String,
    /// Change nothing yet: only report which connections would be treated otherwise.
    #[arg(long)]
    dry_run: bool,
}

/// Adds a rule, and prints it with its number.
///
/// # Errors
/// When no server answers or it refuses.
pub fn run(action: Action, arguments: RuleArgs) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = v1::AddRuleRequest {
            action: v1::Action::from(action).into(),
            source: arguments.source,
            destination: arguments.destination,
            dry_run: arguments.dry_run,
        };
        let rule = server.add_rule(request).await.map_err(local_error)?.into_inner();
        output::print(&line(&Rule::try_from(rule)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

/// `rule NUMBER: ACTION SOURCE DESTINATION`, and whether it is a dry run.
pub(super) fn line(rule: &Rule) -> String {
    format!("rule {}: {rule}{}\n", rule.id, if rule.dry_run { " (dry run)" } else { "" })
}
