//! `murmesh policy`.

mod list;
mod test;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::going_strict::{GoingStrict, way_back};
use super::rule::line;
use super::{RunDirectory, daemon, output};
use crate::api::v1;
use crate::cli::status::local_error;
use crate::local::connect_to_server;
use crate::policy::{Action, Defaults, Mode, Rule, RuleId};

/// The commands on rules.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// List the rules in the order in which they are tried, and what holds where none speaks.
    List(list::ListArgs),
    /// Delete rules by their numbers (on the server's host).
    Delete(DeleteArgs),
    /// Tell what would become of a connection, and by which rule; exit 1 if it would be refused.
    Test(test::TestArgs),
    /// Set what holds where no rule speaks (on the server's host).
    Default(DefaultArgs),
    /// Keep a default mode that was set with --confirm (on the server's host).
    Confirm(ConfirmArgs),
}

/// Arguments of `murmesh policy delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    /// Numbers of the rules.
    #[arg(required = true, value_name = "NUMBER")]
    rules: Vec<RuleId>,
}

/// Arguments of `murmesh policy default`.
#[derive(Debug, Args)]
pub struct DefaultArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
    #[command(flatten)]
    changes: DefaultChanges,
    #[command(flatten)]
    going_strict: GoingStrict,
}

/// Arguments of `murmesh policy confirm`.
#[derive(Debug, Args)]
pub struct ConfirmArgs {
    #[command(flatten)]
    run_directory: RunDirectory,
}

/// What is not given stays as it is.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct DefaultChanges {
    /// Between hosts of the mesh: allow or deny.
    #[arg(value_name = "ACTION")]
    mesh: Option<Action>,
    /// From hosts of the mesh to elsewhere: allow or deny.
    #[arg(long, value_name = "ACTION")]
    egress: Option<Action>,
    /// Of services that have no mode of their own: observe, permissive or strict.
    #[arg(long, visible_alias = "default-mode", value_name = "MODE")]
    mode: Option<Mode>,
}

/// Runs one of the commands.
///
/// # Errors
/// When no daemon answers or it refuses.
pub fn run(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::List(arguments) => list::run(&arguments),
        PolicyCommand::Delete(arguments) => delete(arguments),
        PolicyCommand::Test(arguments) => test::run(&arguments),
        PolicyCommand::Default(arguments) => set_defaults(arguments),
        PolicyCommand::Confirm(arguments) => confirm(&arguments),
    }
}

fn delete(arguments: DeleteArgs) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        for id in arguments.rules {
            let request = v1::DeleteRuleRequest { id: id.number() };
            let rule = server.delete_rule(request).await.map_err(local_error)?.into_inner();
            output::print(&format!("deleted {}", line(&Rule::try_from(rule)?)))?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn set_defaults(arguments: DefaultArgs) -> anyhow::Result<ExitCode> {
    let DefaultChanges { mesh, egress, mode } = arguments.changes;
    let action = |action: Action| v1::Action::from(action).into();
    let request = v1::SetDefaultsRequest {
        mesh: mesh.map(action),
        egress: egress.map(action),
        mode: mode.map(|mode| v1::Mode::from(mode).into()),
        existing: arguments.going_strict.existing(),
        confirm_seconds: arguments.going_strict.confirm_seconds(),
        force: arguments.going_strict.force,
    };
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let defaults = server.set_defaults(request).await.map_err(local_error)?.into_inner();
        output::print(&defaults_line(&Defaults::try_from(defaults)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn confirm(arguments: &ConfirmArgs) -> anyhow::Result<ExitCode> {
    daemon::block_on(async {
        let mut server = connect_to_server(&arguments.run_directory.run_dir).await?;
        let request = v1::ConfirmDefaultsRequest {};
        let defaults = server.confirm_defaults(request).await.map_err(local_error)?.into_inner();
        output::print(&defaults_line(&Defaults::try_from(defaults)?))?;
        Ok(ExitCode::SUCCESS)
    })
}

fn defaults_line(defaults: &Defaults) -> String {
    let Defaults { mesh, egress, mode, unconfirmed, .. } = defaults;
    let back = way_back(*unconfirmed);
    format!("default: {mesh} in the mesh, {egress} to elsewhere; services are {mode}{back}\n")
}
