use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::PathBuf, process::Command};

use super::{
    MetricsAddress, Page,
    definitions::{ALL, CONNECTION_ENDS, Daemons, Definition, Kind, SERVER_STORE_SECONDS, TUNNELS_IDLE},
};
use prometheus_client::metrics::histogram::Histogram;

/// Set to have documents written anew instead of compared.
const UPDATE: &str = "MURMESH_UPDATE_DOCS";

const BEGIN: &str = "<!-- made from the source: begin -->\n";
const END: &str = "<!-- made from the source: end -->";

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn table() -> String {
    let mut table = "| figure | of | labels | |\n|---|---|---|---|\n".to_owned();
    for Definition { name, kind, labels, of, help } in ALL.iter().copied() {
        let suffix = if *kind == Kind::Counter { "_total" } else { "" };
        let of = match of {
            Daemons::Agent => "agent",
            Daemons::Server => "server",
            Daemons::Both => "both",
        };
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(table, "| `{name}{suffix}` | {of} | {} | {help} |", labels.join(", "));
    }
    table
}

#[test]
fn the_documentation_has_every_figure() {
    let (path, document) = (repository("docs/metrics.md"), read("docs/metrics.md"));
    let (before, rest) = document.split_once(BEGIN).expect("the table begins");
    let (found, after) = rest.split_once(END).expect("the table ends");
    if env::var_os(UPDATE).is_some() {
        fs::write(path, format!("{before}{BEGIN}{}{END}{after}", table())).expect("the document is written");
    } else {
        assert_eq!(found, table(), "run this test with {UPDATE}=1");
    }
}

/// Words in a file that are figures of ours.
fn figures(text: &str) -> BTreeSet<&str> {
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let words = text.split(|character: char| !is_name(character));
    words.filter(|word| word.starts_with("murmesh_")).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_figures_that_there_are() {
    let series: BTreeSet<String> = ALL.iter().flat_map(|definition| definition.series()).collect();
    for file in ["deploy/prometheus/murmesh.rules.yml", "deploy/grafana/murmesh.json"] {
        let text = read(file);
        let named = figures(&text);
        assert!(named.len() > 8, "{file} names {} figures", named.len());
        for name in named {
            assert!(series.contains(name), "{file} names {name}, which there is not");
        }
    }
}

/// Every query of the dashboard.
fn queries() -> Vec<String> {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/murmesh.json")).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("it has panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    targets.map(|target| target["expr"].as_str().expect("a target has a query").to_owned()).collect()
}

#[test]
fn prometheus_takes_the_alerts_and_the_queries_of_the_dashboard() {
    let queries = queries();
    assert!(queries.len() > 10);
    let directory = tempfile::tempdir().expect("a directory");
    let rules = directory.path().join("dashboard.yml");
    let mut text = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, query) in queries.iter().enumerate() {
        let query = query.replace("$__rate_interval", "5m").replace("$service", "fortune");
        let _ = writeln!(text, "  - record: dashboard:{number}\n    expr: {}", serde_json::json!(query));
    }
    fs::write(&rules, text).expect("the file is written");
    let check = Command::new("promtool")
        .args(["check", "rules"])
        .args([repository("deploy/prometheus/murmesh.rules.yml"), rules])
        .output();
    match check {
        Ok(check) => {
            let said = String::from_utf8_lossy(&check.stdout) + String::from_utf8_lossy(&check.stderr);
            assert!(check.status.success(), "{said}");
        }
        Err(error) => eprintln!("skipped: promtool of Debian's package prometheus: {error}"),
    }
}

#[test]
fn a_page_is_in_the_open_metrics_format() {
    let mut page = Page::default();
    page.gauge(&TUNNELS_IDLE, &[], 3.0);
    page.counter(&CONNECTION_ENDS, &["inbound", "quote\" and\nline"], 7);
    let histogram = Histogram::new([0.5, 1.0]);
    histogram.observe(0.7);
    page.histogram(&SERVER_STORE_SECONDS, &["get"], &histogram);
    let text = page.text();
    for line in [
        "# TYPE murmesh_connection_ends counter",
        "murmesh_connection_ends_total{direction=\"inbound\",reason=\"quote\\\" and\\nline\"} 7",
        "murmesh_server_store_seconds_bucket{le=\"1.0\",operation=\"get\"} 1",
        "murmesh_tunnels_idle 3.0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn an_address_or_off_is_asked_for() {
    assert_eq!("off".parse(), Ok(MetricsAddress::Off));
    assert_eq!("[::1]:9192".parse::<MetricsAddress>().map(MetricsAddress::port), Ok(Some(9192)));
    assert!("9192".parse::<MetricsAddress>().is_err());
}
