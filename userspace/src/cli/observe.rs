//! `murmesh observe`. JSON: one object a line, `{time, verdict, process, pid, uid, caller, source, host, destination,
//! protocol, rule, what, sent, received, duration_us}`, each null where it is not known or does not apply, or `{lost}`
//! with a number of events that were dropped.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output::{self, Format};
use super::{ReadOptions, daemon};
use crate::api::v1::{self, observe_response::Told};
use crate::cli::status::local_error;
use crate::local::{AGENT_SOCKET, SIDECAR_SOCKET, connect};

/// Arguments of `murmesh observe`.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    #[command(flatten)]
    read: ReadOptions,
    /// Show what happens from now on, until interrupted; connections that go well are only shown so.
    #[arg(short, long)]
    follow: bool,
    /// Only these; separated by commas, or given several times.
    #[arg(long = "verdict", value_enum, value_delimiter = ',', value_name = "VERDICT")]
    verdicts: Vec<Verdict>,
    /// Only from this identity, workload, host, process name or address.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    from: String,
    /// Only to this host or address, with or without its port, or to this :PORT.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    to: String,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verdict {
    /// Made through the mesh.
    Allowed,
    /// Refused, by a rule or because it came in clear.
    Denied,
    /// Let in, in clear.
    Plaintext,
    /// Allowed, and failed.
    Error,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line<'a> {
    time: String,
    verdict: &'static str,
    process: Option<&'a str>,
    pid: Option<u32>,
    uid: Option<u32>,
    caller: Option<&'a str>,
    source: Option<&'a str>,
    host: Option<&'a str>,
    destination: &'a str,
    protocol: Option<&'a str>,
    rule: Option<u32>,
    what: &'a str,
    sent: Option<u64>,
    received: Option<u64>,
    duration_us: Option<u64>,
}

#[derive(Serialize)]
struct Lost {
    lost: u64,
}

/// Prints what the agent on this host tells.
///
/// # Errors
/// When no agent answers, or it stops.
pub fn run(arguments: ObserveArgs) -> anyhow::Result<ExitCode> {
    let ObserveArgs { read, follow, verdicts, from, to } = arguments;
    let outcomes = verdicts.into_iter().map(|verdict| v1::Outcome::from(verdict).into()).collect();
    daemon::block_on(async {
        let sockets = [AGENT_SOCKET, SIDECAR_SOCKET];
        let mut agent = connect(&read.run_directory.run_dir, &sockets, "murmesh agent").await?;
        let request = v1::ObserveRequest { follow, outcomes, from, to };
        let mut told = agent.observe(request).await.map_err(local_error)?.into_inner();
        if read.output == Format::Table {
            output::print(&heading())?;
        }
        while let Some(response) = told.message().await.map_err(local_error)? {
            if !output::print_while_read(&printed(&response, read.output)?)? {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn printed(response: &v1::ObserveResponse, format: Format) -> anyhow::Result<String> {
    Ok(match (&response.told, format) {
        // A kind that is newer than this program.
        (None, _) => String::new(),
        (Some(Told::Event(event)), Format::Table) => Line::from(event).row(),
        (Some(Told::Event(event)), Format::Json) => serde_json::to_string(&Line::from(event))? + "\n",
        (Some(Told::Lost(lost)), Format::Table) => format!("{lost} events were dropped and are not shown\n"),
        (Some(Told::Lost(lost)), Format::Json) => serde_json::to_string(&Lost { lost: *lost })? + "\n",
    })
}

/// Columns have fixed widths: what comes next is not known yet.
fn columns([time, verdict, process, caller, destination, rule, what]: [&str; 7]) -> String {
    let line =
        format!("{time:<24}  {verdict:<9}  {process:<20}  {caller:<24}  {destination:<28}  {rule:<8}  ");
    format!("{line}{what}\n")
}

fn heading() -> String {
    columns(["TIME", "VERDICT", "PROCESS", "FROM", "TO", "BY", "WHAT"])
}

impl<'a> From<&'a v1::Observed> for Line<'a> {
    fn from(event: &'a v1::Observed) -> Self {
        let some = |text: &'a String| Some(text.as_str()).filter(|text| !text.is_empty());
        let process = event.process.as_ref();
        let time = UNIX_EPOCH + Duration::from_micros(event.time_us);
        Self {
            time: humantime::format_rfc3339_millis(time).to_string(),
            verdict: name(event.outcome()),
            process: process.and_then(|process| some(&process.name)),
            pid: process.map(|process| process.pid),
            uid: process.map(|process| process.uid),
            caller: some(&event.caller),
            source: some(&event.source),
            host: some(&event.node),
            destination: &event.destination,
            protocol: some(&event.protocol),
            rule: event.rule,
            what: &event.what,
            sent: event.end.map(|end| end.sent),
            received: event.end.map(|end| end.received),
            duration_us: event.end.map(|end| end.duration_us),
        }
    }
}

impl Line<'_> {
    fn row(&self) -> String {
        let process = match (self.process, self.pid) {
            (name, Some(pid)) => format!("{}[{pid}]", name.unwrap_or("?")),
            (_, None) => "-".to_owned(),
        };
        let destination = match self.host {
            Some(host) => format!("{host} {}", self.destination),
            None => self.destination.to_owned(),
        };
        let rule = self.rule.map_or("-".to_owned(), |rule| format!("rule {rule}"));
        let end = match (self.sent, self.received, self.duration_us) {
            (Some(sent), Some(received), Some(duration)) => {
                let duration = humantime::format_duration(Duration::from_micros(duration));
                format!(", {sent} bytes sent, {received} received, after {duration}")
            }
            _ => String::new(),
        };
        let caller = self.caller.or(self.source).unwrap_or("-");
        let what = format!("{}{end}", self.what);
        columns([&self.time, self.verdict, &process, caller, &destination, &rule, &what])
    }
}

fn name(outcome: v1::Outcome) -> &'static str {
    match outcome {
        v1::Outcome::Unspecified => "unknown",
        v1::Outcome::Allowed => "allowed",
        v1::Outcome::Denied => "denied",
        v1::Outcome::Plaintext => "plaintext",
        v1::Outcome::Error => "error",
    }
}

impl From<Verdict> for v1::Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allowed => Self::Allowed,
            Verdict::Denied => Self::Denied,
            Verdict::Plaintext => Self::Plaintext,
            Verdict::Error => Self::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(event: v1::Observed) -> v1::ObserveResponse {
        v1::ObserveResponse { told: Some(Told::Event(event)) }
    }

    fn event() -> v1::Observed {
        v1::Observed {
            time_us: 1_000_000,
            outcome: v1::Outcome::Denied.into(),
            process: Some(v1::Process { pid: 7, uid: 0, name: "nc".to_owned() }),
            caller: "host/fcc00/user-root".to_owned(),
            node: "fcs00".to_owned(),
            destination: "10.0.0.1:8181".to_owned(),
            rule: Some(3),
            what: "refused by a rule".to_owned(),
            ..v1::Observed::default()
        }
    }

    #[test]
    fn a_row_names_everything_that_is_known() {
        let row = printed(&response(event()), Format::Table).unwrap();
        let words: Vec<_> = row.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(
            words,
            [
                "1970-01-01T00:00:01.000Z",
                "denied",
                "nc[7]",
                "host/fcc00/user-root",
                "fcs00 10.0.0.1:8181",
                "rule 3",
                "refused by a rule"
            ]
        );
        let end = Some(v1::StreamEnd { sent: 1, received: 2, duration_us: 1500 });
        let row = printed(&response(v1::Observed { end, ..event() }), Format::Table).unwrap();
        assert!(row.ends_with(", 1 bytes sent, 2 received, after 1ms 500us\n"), "{row}");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let line = printed(&response(event()), Format::Json).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["verdict"], &value["rule"]), (&"denied".into(), &3.into()));
        assert_eq!((&value["source"], &value["sent"]), (&serde_json::Value::Null, &serde_json::Value::Null));
        let lost = v1::ObserveResponse { told: Some(Told::Lost(5)) };
        assert_eq!(printed(&lost, Format::Json).unwrap(), "{\"lost\":5}\n");
    }
}
