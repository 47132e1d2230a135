//! `murmesh whois`. JSON: a list of `{identity, process, pid, uid, cgroup, destination, service, mode, rules}`, each
//! null where it does not apply. `rules` are those that speak of it, in the order in which they are tried, as
//! `{id, text}`: of a process as the source, of a service as the destination.

use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use serde::Serialize;

use super::output::{self, Format};
use super::{ReadOptions, daemon};
use crate::agent::with_socket;
use crate::api::v1::{self, whois_request::Subject};
use crate::cli::status::local_error;
use crate::local::{AGENT_SOCKET, connect};
use crate::policy::Rule;

/// Arguments of `murmesh whois`.
#[derive(Debug, Args)]
pub struct WhoisArgs {
    #[command(flatten)]
    read: ReadOptions,
    /// The number of a process on this host, or IP:PORT of a service or of a connection of this host.
    subject: Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Process(u32),
    Address(SocketAddr),
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Known {
    identity: Option<String>,
    process: Option<String>,
    pid: Option<u32>,
    uid: Option<u32>,
    cgroup: Option<String>,
    destination: Option<String>,
    service: Option<String>,
    mode: Option<String>,
    rules: Vec<KnownRule>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct KnownRule {
    id: u32,
    text: String,
}

/// Prints who it is.
///
/// # Errors
/// When no agent answers, or it knows nobody there.
pub fn run(arguments: &WhoisArgs) -> anyhow::Result<ExitCode> {
    let known = daemon::block_on(async {
        let run_dir = &arguments.read.run_directory.run_dir;
        let mut agent = connect(run_dir, &[AGENT_SOCKET], "murmesh agent").await?;
        let holders = match arguments.subject {
            Asked::Address(address) => with_socket(address),
            Asked::Process(_) => Vec::new(),
        };
        let request = v1::WhoisRequest { subject: Some(arguments.subject.into()), holders };
        Ok(agent.whois(request).await.map_err(local_error)?.into_inner().known)
    })?;
    let known = known.into_iter().map(Known::try_from).collect::<Result<Vec<_>, _>>()?;
    match arguments.read.output {
        Format::Json => output::print_json(&known)?,
        Format::Table => output::print(&known.iter().map(page).collect::<Vec<_>>().join("\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn page(known: &Known) -> String {
    let process = known.process.as_ref().zip(known.pid).map(|(name, pid)| format!("{name} (pid {pid})"));
    let lines = [
        (
            "identity",
            Some(known.identity.clone().unwrap_or("none: outside of the agent's cgroup".to_owned())),
        ),
        ("process", process),
        ("uid", known.uid.map(|uid| uid.to_string())),
        ("cgroup", known.cgroup.clone()),
        ("at", known.destination.clone()),
        ("service", known.service.clone()),
        ("mode", known.mode.clone()),
    ];
    let mut page = String::new();
    for (name, value) in lines.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        let _ = writeln!(page, "{name:<10}{value}");
    }
    if known.rules.is_empty() {
        page.push_str("rules     none, the default holds\n");
    }
    known.rules.iter().for_each(|rule| _ = writeln!(page, "{:<10}{}: {}", "rule", rule.id, rule.text));
    page
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let process = text.parse().map(Self::Process);
        process
            .or_else(|_| text.parse().map(Self::Address))
            .map_err(|_| format!("{text:?} is neither a process number nor IP:PORT"))
    }
}

impl From<Asked> for Subject {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::Process(pid) => Self::Pid(pid),
            Asked::Address(address) => Self::Address(address.to_string()),
        }
    }
}

impl TryFrom<v1::Known> for Known {
    type Error = crate::policy::InvalidMessage;

    fn try_from(known: v1::Known) -> Result<Self, Self::Error> {
        let mode = match known.mode() {
            v1::Mode::Unspecified => None,
            v1::Mode::Observe => Some("observe".to_owned()),
            v1::Mode::Permissive => Some("permissive".to_owned()),
            v1::Mode::Strict => Some("strict".to_owned()),
        };
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let rules = known.rules.into_iter().map(Rule::try_from).collect::<Result<Vec<_>, _>>()?;
        let dry_run = |rule: &Rule| if rule.dry_run { " (dry run)" } else { "" };
        let rule = |rule: &Rule| KnownRule { id: rule.id.number(), text: format!("{rule}{}", dry_run(rule)) };
        let (pid, uid) = known.process.as_ref().map(|process| (process.pid, process.uid)).unzip();
        Ok(Self {
            identity: some(known.identity),
            process: known.process.and_then(|process| some(process.name)),
            pid,
            uid,
            cgroup: some(known.cgroup),
            destination: some(known.destination),
            service: some(known.service),
            mode,
            rules: rules.iter().map(rule).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_an_address_are_told_apart() {
        assert_eq!("17".parse(), Ok(Asked::Process(17)));
        assert_eq!("10.0.0.1:80".parse(), Ok(Asked::Address(([10, 0, 0, 1], 80).into())));
        for wrong in ["", "nc", "10.0.0.1", "-1"] {
            assert!(wrong.parse::<Asked>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_page_has_what_is_known_and_nothing_else() {
        let known = v1::Known {
            identity: "spiffe://mesh.test/service/fortune".to_owned(),
            destination: "fcs00:8181".to_owned(),
            mode: v1::Mode::Strict.into(),
            ..v1::Known::default()
        };
        assert_eq!(
            page(&Known::try_from(known).unwrap()),
            "identity  spiffe://mesh.test/service/fortune\nat        fcs00:8181\nmode      strict\n\
             rules     none, the default holds\n"
        );
        let rule = v1::Rule {
            id: 3,
            action: v1::Action::Deny.into(),
            source: "*".to_owned(),
            destination: "service/fortune".to_owned(),
            dry_run: true,
        };
        let known = v1::Known { rules: vec![rule], ..v1::Known::default() };
        let page = page(&Known::try_from(known).unwrap());
        assert!(page.ends_with("\nrule      3: deny * service/fortune (dry run)\n"), "{page}");
    }
}
