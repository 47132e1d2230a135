//! `murmesh policy test`. JSON: a list of `{source, destination, action, rule, dry_run}`, one for each pair that the
//! arguments name (a service may be on several hosts). `rule` is the number of the rule that decides, or null for the
//! default; `dry_run` that of the dry-run rule that would decide otherwise, or null.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::api::v1;
use crate::catalog::{Catalog, Reach};
use crate::cli::output::{self, Format};
use crate::cli::status::local_error;
use crate::cli::{ReadOptions, daemon};
use crate::local::{ANY_SOCKET, connect};
use crate::policy::{Action, Names};

/// Arguments of `murmesh policy test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    #[command(flatten)]
    read: ReadOptions,
    /// Who would connect: host/NODE/WORKLOAD, a service, or a host, which stands for a workload that no rule names.
    source: String,
    /// To what: a service, HOST:PORT, or ADDRESS:PORT, with /udp after it if that is meant.
    destination: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Tested {
    source: String,
    destination: String,
    action: String,
    rule: Option<u32>,
    dry_run: Option<u32>,
}

/// Prints what the rules that the daemon on this host knows say.
///
/// # Errors
/// When no daemon answers, or the arguments name nothing that could connect.
pub fn run(arguments: &TestArgs) -> anyhow::Result<ExitCode> {
    let (catalog, names) = fetch(&arguments.read)?;
    let reached = catalog.reach(&names, &arguments.source, &arguments.destination)?;
    let tested: Vec<_> = reached.iter().map(Tested::from).collect();
    match arguments.read.output {
        Format::Json => output::print_json(&tested)?,
        Format::Table => {
            let rows: Vec<_> = tested.iter().map(row).collect();
            output::print(&output::table(["FROM", "TO", "VERDICT", "BY", "DRY RUN"], &rows))?;
        }
    }
    let deny = Action::Deny.to_string();
    let denied = tested.iter().any(|tested| tested.action == deny);
    Ok(if denied { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn fetch(read: &ReadOptions) -> anyhow::Result<(Catalog, Names)> {
    daemon::block_on(async {
        let mut daemon = connect(&read.run_directory.run_dir, ANY_SOCKET, "murmesh daemon").await?;
        let snapshot = daemon.members(v1::MembersRequest {}).await.map_err(local_error)?.into_inner();
        let status = daemon.status(v1::StatusRequest {}).await.map_err(local_error)?.into_inner();
        let catalog = Catalog::try_from(snapshot)?;
        let names = Names {
            trust_domain: status.trust_domain.parse()?,
            hosts: catalog.hosts.keys().cloned().collect(),
            services: catalog.policy.services().keys().cloned().collect(),
        };
        Ok((catalog, names))
    })
}

impl From<&Reach> for Tested {
    fn from(reach: &Reach) -> Self {
        Self {
            source: reach.source.clone(),
            destination: reach.destination.clone(),
            action: reach.verdict.action.to_string(),
            rule: reach.verdict.rule.map(|rule| rule.number()),
            dry_run: reach.verdict.dry_run.map(|rule| rule.number()),
        }
    }
}

fn row(tested: &Tested) -> [String; 5] {
    let rule = |rule: Option<u32>, none: &str| rule.map_or(none.to_owned(), |rule| format!("rule {rule}"));
    [
        tested.source.clone(),
        tested.destination.clone(),
        tested.action.clone(),
        rule(tested.rule, "default"),
        rule(tested.dry_run, "-"),
    ]
}
