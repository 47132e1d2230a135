//! Certificates and roots are replaced while connections are open and others are made: nobody notices.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology};
use serde::Deserialize;

use crate::support::{Daemons, ask, greet, greeting, murmesh, skipped, text, wait_for_endpoint, wait_until};

const STREAM_PORT: u16 = 8570;
const STORM_PORT: u16 = 20000;
/// A hundred new connections per second.
const STORM: [&str; 4] = ["storm", "--per-second=100", "--parallel=8", "--count=1"];

/// How often the certificates of the client are renewed in `short_certificates_…`; 100 takes nine minutes.
const ROTATIONS: &str = "MURMESH_ROTATIONS";
const FEW_ROTATIONS: usize = 4;
/// The shortest that a server signs, and how long until the next at most.
const SHORT: &str = "10s";
const LONGEST_ROTATION: Duration = Duration::from_secs(12);

/// What `murmesh-probe storm` prints.
#[derive(Debug, Deserialize)]
struct Outcome {
    right: u64,
    wrong: Vec<String>,
    failed: BTreeMap<String, u64>,
}

/// A stream that is open all the time, and a hundred new connections each second.
struct Load {
    stream: [Process; 2],
    _service: Process,
    storm: Process,
}

impl Load {
    fn start(client: &Host, service: &Host) -> Result<Self> {
        const STEPS: [&str; 5] = ["send=x", "expect=x", "say=open", "wait", "exchange=100000"];
        let listening = service.probe(["listen", &format!("[::]:{STREAM_PORT}")].iter().chain(&STEPS))?;
        let ports = service.probe(["serve-ports", "fcs00", "--count=1"])?;
        for process in [&listening, &ports] {
            process.wait_for_line("listening", DEADLINE)?;
        }
        wait_for_endpoint(client, service, STREAM_PORT)?;
        wait_for_endpoint(client, service, STORM_PORT)?;
        let destination = format!("{}:{STREAM_PORT}", service.ipv4());
        let connected = client.probe(["connect", &destination].iter().chain(&STEPS))?;
        connected.wait_for_line("open", DEADLINE)?;
        let storm = client.probe(STORM.iter().chain(&[format!("fcs00={}", service.ipv4()).as_str()]))?;
        Ok(Self { stream: [listening, connected], _service: ports, storm })
    }

    /// Ends it, and makes sure that all of it went well.
    fn ensure_unharmed(mut self) -> Result<u64> {
        for process in self.stream.iter_mut().chain([&mut self.storm]) {
            process.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
        }
        for end in self.stream {
            end.succeed(DEADLINE)?;
        }
        let said = self.storm.succeed(DEADLINE)?;
        let outcome: Outcome = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(outcome.failed.is_empty() && outcome.wrong.is_empty(), "{outcome:?}");
        Ok(outcome.right)
    }
}

#[test]
fn the_root_is_replaced_under_load_and_no_connection_is_refused() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_with(&lab, &["--certificate-lifetime", "60s"])?;
    daemons.start_agent(client)?;
    daemons.start_agent(service)?;
    let load = Load::start(client, service)?;
    let before = json_of(server, &["ca", "status"])?["roots"].clone();
    for step in ["prepare", "activate", "retire"] {
        wait_until(&format!("{step} is done"), || {
            let answer = murmesh(server, &["ca", "rotate", step])?;
            let refusal = text(&answer.stderr);
            ensure!(answer.status.success() || refusal.contains("not ready"), "{step}: {refusal}");
            Ok(answer.status.success())
        })?;
    }
    let after = json_of(server, &["ca", "status"])?;
    ensure!(after["phase"] == "steady" && after["roots"] != before, "{after}");
    for agent in [daemons.agent(client)?, daemons.agent(service)?] {
        agent.wait_for_line("the roots of the mesh have changed roots=1", DEADLINE)?;
    }
    ensure!(load.ensure_unharmed()? > 0, "no connection was made");
    Ok(())
}

#[test]
fn short_certificates_are_renewed_under_a_stream_and_a_hundred_connections_a_second() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let rotations = std::env::var(ROTATIONS).ok().and_then(|text| text.parse().ok()).unwrap_or(FEW_ROTATIONS);
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_with(&lab, &["--certificate-lifetime", SHORT])?;
    daemons.start_agent(client)?;
    daemons.start_agent(service)?;
    let load = Load::start(client, service)?;
    let renewed = |log: &[u8]| text(log).matches("enrolment: certificate renewed").count() >= rotations;
    let patience = LONGEST_ROTATION * u32::try_from(rotations)?;
    daemons.agent(client)?.wait_for_stdout(patience, renewed)?;
    let right = load.ensure_unharmed()?;
    eprintln!("{rotations} rotations, {right} connections, none failed");
    ensure!(right > 0, "no connection was made");
    Ok(())
}

#[test]
fn hosts_whose_clocks_differ_by_eight_minutes_talk() -> Result<()> {
    const PORT: u16 = 8181;
    const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    if skipped() {
        return Ok(());
    }
    if !Path::new(LIBRARY).exists() {
        eprintln!("skipped: {LIBRARY} is missing (Debian package libfaketime)");
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    for (host, offset) in [(client, "-240s"), (service, "+240s")] {
        let mut command = host.agent_command(&daemons.token(host)?)?;
        command.env("LD_PRELOAD", LIBRARY).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        daemons.start_agent_by(host, &mut command)?;
    }
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    for _ in 0..3 {
        ensure!(ask(client, &service.ipv4().to_string(), PORT)? == greeting(service));
    }
    daemons.ask_through_mesh(client, service, PORT)?;
    // Log lines begin with the time, by the minute in 16 characters.
    let minute = |host| {
        Ok::<_, anyhow::Error>(text(&daemons.agent(host)?.stdout()).chars().take(16).collect::<String>())
    };
    ensure!(minute(client)? != minute(service)?, "their clocks do not differ");
    Ok(())
}

fn json_of(host: &Host, arguments: &[&str]) -> Result<serde_json::Value> {
    let output = murmesh(host, &[arguments, &["-o", "json"]].concat())?;
    serde_json::from_slice(&output.stdout).with_context(|| text(&output.stderr))
}
