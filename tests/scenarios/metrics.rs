//! The figures that Prometheus reads: what they say, and that others than we can read them.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Mesh, Process, Topology};

use crate::support::{Daemons, ask, greet, skipped, text, wait_until};

const PORT: u16 = 8181;
const AGENT: u16 = 9192;
const SERVER: u16 = 9193;

/// Reads a page in the OpenMetrics format, and prints how many figures it has.
const PARSER: &str = "import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
print(sum(len(family.samples) for family in text_string_to_metric_families(sys.stdin.read())))";

/// What `path` is answered with: everything, and the body.
fn get(host: &Host, port: u16, path: &str) -> Result<(String, String)> {
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    let output = host.run("nc", ["127.0.0.1", &port.to_string()], request.as_bytes(), DEADLINE)?;
    let answer = text(&output.stdout);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok((
        answer.clone(),
        body.with_context(|| format!("no answer on port {port} of {}: {answer}", host.name()))?,
    ))
}

fn page(host: &Host, port: u16) -> Result<String> {
    Ok(get(host, port, "/metrics")?.1)
}

/// The value of a series, by all that comes before it on its line.
fn value(page: &str, series: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok())
}

/// By a parser that is not ours.
fn parsed(host: &Host, page: &str) -> Result<Option<usize>> {
    if !Command::new("python3").args(["-c", "import prometheus_client"]).output()?.status.success() {
        eprintln!("not parsed: Debian's package python3-prometheus-client is not installed");
        return Ok(None);
    }
    let output = host.run("python3", ["-c", PARSER], page.as_bytes(), DEADLINE)?;
    ensure!(output.status.success(), "{} in {page}", text(&output.stderr));
    Ok(Some(text(&output.stdout).trim().parse()?))
}

#[test]
fn prometheus_reads_what_agents_and_servers_count() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client, service) = (mesh.host("murmesh00")?, mesh.client()?, mesh.service()?);
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let _service = mesh.serve(service, PORT, "socat", [&listen, "exec:echo twelve-bytes"])?;
    server.murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", &PORT.to_string()])?;
    let carried = |host: &Host, direction: &str, way: &str| -> Result<f64> {
        let page = page(host, AGENT)?;
        let labels = format!("direction=\"{direction}\",service=\"fortune\"");
        let connections = format!("murmesh_connections_total{{{labels},verdict=\"allowed\"}}");
        let bytes = format!("murmesh_connection_bytes_total{{{labels},way=\"{way}\"}}");
        Ok(value(&page, &connections).zip(value(&page, &bytes)).map_or(0.0, |(_, bytes)| bytes))
    };
    wait_until("a connection to the named service is counted on both hosts", || {
        ask(client, "fcs00", PORT)?;
        Ok(carried(client, "outbound", "received")? >= 13.0 && carried(service, "inbound", "sent")? >= 13.0)
    })?;

    server.murmesh(["deny", "fcc00", "fcs00:8181"])?;
    wait_until("the kernel half counts a refusal", || {
        client.run("nc", ["-z", "fcs00", &PORT.to_string()], b"", DEADLINE)?;
        Ok(value(&page(client, AGENT)?, "murmesh_kernel_events_total{event=\"denied\"}") >= Some(1.0))
    })?;

    let of_agent = page(client, AGENT)?;
    for (series, least) in [
        ("murmesh_interception_healthy", 1.0),
        ("murmesh_server_connected", 1.0),
        ("murmesh_catalog_revision", 1.0),
        ("murmesh_certificate_expires_timestamp_seconds{certificate=\"own\"}", 1e9),
        ("murmesh_tunnel_handshakes_total", 1.0),
        ("murmesh_connection_ends_total{direction=\"outbound\",reason=\"ended\"}", 1.0),
        ("murmesh_process_resident_memory_bytes", 1e6),
    ] {
        ensure!(value(&of_agent, series) >= Some(least), "{series} in {of_agent}");
    }
    let of_server = page(server, SERVER)?;
    for (series, least) in [
        ("murmesh_server_hosts{state=\"connected\"}", 2.0),
        ("murmesh_server_watches", 2.0),
        ("murmesh_server_leader", 1.0),
        ("murmesh_server_store_up", 1.0),
        ("murmesh_server_store_seconds_count{operation=\"commit\"}", 1.0),
        ("murmesh_server_calls_total{call=\"Join\",result=\"ok\"}", 2.0),
        ("murmesh_server_certificates_signed_total{subject=\"host\"}", 2.0),
        ("murmesh_server_rules", 1.0),
    ] {
        ensure!(value(&of_server, series) >= Some(least), "{series} in {of_server}");
    }
    for page in [&of_agent, &of_server] {
        let lines = page.lines().filter(|line| !line.starts_with('#')).count();
        let figures = parsed(client, page)?;
        ensure!(figures.is_none_or(|figures| figures == lines), "{figures:?} figures of {lines} in {page}");
    }
    for (host, port) in [(client, AGENT), (server, SERVER)] {
        let (answer, body) = get(host, port, "/healthz")?;
        ensure!(answer.starts_with("HTTP/1.0 200") && body == "ok\n", "{answer}");
        ensure!(get(host, port, "/elsewhere")?.0.starts_with("HTTP/1.0 404"));
    }
    Ok(())
}

#[test]
fn an_agent_whose_metrics_address_is_taken_runs_without_until_it_is_free() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let squatter = greet(client, AGENT)?;
    daemons.start_agent(client)?;
    daemons.agent(client)?.wait_for_line("no metrics at 127.0.0.1:9192", DEADLINE)?;
    drop(squatter);
    daemons.agent(client)?.wait_for_line("metrics are served", DEADLINE)?;
    ensure!(page(client, AGENT)?.ends_with("# EOF\n"));
    Ok(())
}

#[test]
fn the_agent_that_takes_over_has_the_metrics_address_too() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    daemons.agent(client)?.wait_for_line("metrics are served", DEADLINE)?;
    let token = daemons.token(client)?;
    let mut next = client.agent_command(&token)?;
    let next = Process::spawn(next.arg("--take-over"))?;
    next.wait_for_line("metrics are served", DEADLINE)?;
    ensure!(page(client, AGENT)?.contains("\nmurmesh_interception_healthy "));
    daemons.replace_agent(client, next).map(drop)
}
