//! `murmesh policy list`. JSON: `{defaults: {mesh, egress, mode, existing, unconfirmed}, rules}`, where `unconfirmed` is null
//! or `{mode, until}`, and `rules` a list of `{id, action, source, destination, dry_run}`, the one that is tried first at
//! its beginning.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::defaults_line;
use crate::cli::going_strict::ListedUnconfirmed;
use crate::cli::output::{self, Format};
use crate::cli::{ReadOptions, members};
use crate::policy::{Policy, Rule};

/// Arguments of `murmesh policy list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    read: ReadOptions,
}

#[derive(Serialize)]
struct Listed {
    defaults: ListedDefaults,
    rules: Vec<ListedRule>,
}

#[derive(Serialize)]
struct ListedDefaults {
    mesh: String,
    egress: String,
    mode: String,
    existing: String,
    unconfirmed: Option<ListedUnconfirmed>,
}

#[derive(Serialize)]
struct ListedRule {
    id: u32,
    action: String,
    source: String,
    destination: String,
    dry_run: bool,
}

/// Prints the rules that the daemon on this host knows.
///
/// # Errors
/// When no daemon answers.
pub fn run(arguments: &ListArgs) -> anyhow::Result<ExitCode> {
    let policy = members::fetch(&arguments.read)?.policy;
    match arguments.read.output {
        Format::Json => output::print_json(&Listed::from(&*policy))?,
        Format::Table => {
            let rows: Vec<_> = policy.rules_in_order().into_iter().map(row).collect();
            output::print(&output::table(["RULE", "ACTION", "FROM", "TO", "IN FORCE"], &rows))?;
            output::print(&defaults_line(&policy.defaults))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(rule: &Rule) -> [String; 5] {
    [
        rule.id.to_string(),
        rule.action.to_string(),
        rule.source.to_string(),
        rule.destination.to_string(),
        if rule.dry_run { "no, dry run" } else { "yes" }.to_owned(),
    ]
}

impl From<&Policy> for Listed {
    fn from(policy: &Policy) -> Self {
        let defaults = ListedDefaults {
            mesh: policy.defaults.mesh.to_string(),
            egress: policy.defaults.egress.to_string(),
            mode: policy.defaults.mode.to_string(),
            existing: policy.defaults.existing.to_string(),
            unconfirmed: policy.defaults.unconfirmed.map(Into::into),
        };
        let listed = |rule: &Rule| ListedRule {
            id: rule.id.number(),
            action: rule.action.to_string(),
            source: rule.source.to_string(),
            destination: rule.destination.to_string(),
            dry_run: rule.dry_run,
        };
        Self { defaults, rules: policy.rules_in_order().into_iter().map(listed).collect() }
    }
}
