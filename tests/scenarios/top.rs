//! Who connects to whom, as `murmesh top` shows it while it happens.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, Process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{ask, greet, murmesh, text, wait_for_endpoint, wait_until};

const PORT: u16 = 8181;

/// A service that the rules keep from the client.
const DENIED: u16 = 8300;

/// The flow of this direction and verdict, if there is one.
fn flow(host: &Host, direction: &str, verdict: &str) -> Result<Option<Value>> {
    let output = murmesh(host, &["top", "-o", "json", "--interval", "100ms"])?;
    let live: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output.stderr))?;
    ensure!(live["host"] == host.name(), "{live}");
    let flows = live["flows"].as_array().cloned().unwrap_or_default();
    Ok(flows.into_iter().find(|flow| flow["direction"] == direction && flow["verdict"] == verdict))
}

#[test]
fn a_connection_is_shown_on_both_hosts_with_its_bytes_while_it_is_open() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (client, service) = (mesh.client()?, mesh.service()?);
    let listener = mesh.listen(PORT, &["expect=hello", "send=twelve-bytes", "wait"])?;
    let connection = mesh.connect(PORT, &["send=hello", "expect=twelve-bytes", "wait"])?;
    let destination = format!("{}:{PORT}", service.ipv4());
    for (host, direction, sent, received) in [(client, "out", 5, 12), (service, "in", 12, 5)] {
        wait_until("the connection is shown with its bytes", || {
            let Some(flow) = flow(host, direction, "allowed")? else { return Ok(false) };
            ensure!(flow["caller"] == "host/fcc00/user-root" && flow["host"] == "fcs00", "{flow}");
            ensure!(flow["destination"] == *destination && flow["connections"] == 1, "{flow}");
            let has_bytes = flow["sent"] == sent && flow["received"] == received;
            Ok(has_bytes && flow["open"] == 1 && flow["round_trip_us"].as_u64() > Some(0))
        })?;
    }
    drop((connection, listener));
    for (host, direction, sent, received) in [(client, "out", 5, 12), (service, "in", 12, 5)] {
        wait_until("it is counted once when it has ended", || {
            let flow = flow(host, direction, "allowed")?.context("a flow is remembered")?;
            Ok(flow["open"] == 0 && flow["sent"] == sent && flow["received"] == received)
        })?;
    }
    Ok(())
}

#[test]
fn the_rate_of_a_connection_is_told_while_it_goes_on() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    // More than can be carried meanwhile.
    let endless = format!("exchange={}", 1_u64 << 40);
    let _service = mesh.listen(PORT, &[&endless])?;
    let _connection = mesh.connect(PORT, &[&endless])?;
    for (host, direction) in [(mesh.client()?, "out"), (mesh.service()?, "in")] {
        wait_until("bytes are moving", || {
            let Some(flow) = flow(host, direction, "allowed")? else { return Ok(false) };
            let rate = |name: &str| flow[name].as_f64() > Some(0.0);
            Ok(flow["open"] == 1 && rate("sent_per_second") && rate("received_per_second"))
        })?;
    }
    Ok(())
}

#[test]
fn what_is_refused_and_what_goes_in_clear_is_shown() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client, service) = (mesh.host("murmesh00")?, mesh.client()?, mesh.service()?);
    let _denied = greet(service, DENIED)?;
    wait_for_endpoint(client, service, DENIED)?;
    server.murmesh(["deny", "fcc00", &format!("fcs00:{DENIED}")])?;
    let address = service.ipv4().to_string();
    wait_until("the refusal is shown with its rule", || {
        client.run("nc", [&*address, &DENIED.to_string()], b"", DEADLINE)?;
        Ok(flow(client, "out", "denied")?.is_some_and(|flow| flow["rule"] == 1))
    })?;
    wait_until("whoever is no member is shown by the address", || {
        ask(server, &address, DENIED)?;
        Ok(flow(service, "in", "in clear")?.is_some_and(|flow| flow["caller"] == server.ipv4().to_string()))
    })
}

/// What a terminal of 80 columns and 24 lines shows after these bytes.
fn screen(written: &[u8]) -> vt100::Parser {
    let mut terminal = vt100::Parser::new(24, 80, 0);
    terminal.process(written);
    terminal
}

fn has_line(written: &[u8], words: &[&str]) -> bool {
    let terminal = screen(written);
    terminal.screen().rows(0, 80).any(|line| words.iter().all(|word| line.contains(word)))
}

/// `murmesh top` on a terminal of its own, whose settings are told before it and after it.
fn on_terminal(host: &Host) -> Result<Process> {
    let command =
        "stty rows 24 cols 80; stty -g | cksum; murmesh top; ended=$?; stty -g | cksum; exit $ended";
    Process::spawn(host.command("script")?.args(["-qec", command, "/dev/null"]).stdin(Stdio::piped()))
}

/// Waits until it ends, and looks whether the terminal is as it was: its screen, its cursor and its settings. It was cleared
/// once at most.
fn ensure_left_as_it_was(top: Process) -> Result<()> {
    let output = top.output(DEADLINE)?;
    let left = screen(&output.stdout);
    let shown = left.screen().contents();
    let settings: Vec<_> = shown.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_restored = !left.screen().alternate_screen() && !left.screen().hide_cursor();
    let is_as_before = matches!(settings[..], [before, after] if before == after);
    ensure!(output.status.success() && is_restored && is_as_before, "{shown}\n{}", text(&output.stdout));
    // It would flicker.
    let cleared = text(&output.stdout).matches("\x1b[2J").count();
    ensure!(cleared <= 1, "the screen was cleared {cleared} times");
    Ok(())
}

/// The `murmesh` that a terminal runs.
fn inner(terminal: &Process) -> Result<Pid> {
    let mut processes = vec![terminal.id()];
    while let Some(process) = processes.pop() {
        if fs::read_to_string(format!("/proc/{process}/comm"))?.trim() == "murmesh" {
            return Ok(Pid::from_raw(process.try_into()?));
        }
        let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
        for child in children.split_whitespace() {
            processes.push(child.parse()?);
        }
    }
    bail!("the terminal runs no murmesh: {}", terminal.said())
}

#[test]
fn top_shows_a_line_on_a_terminal_obeys_keys_and_leaves_it_as_it_was() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let client = mesh.client()?;
    let _service = mesh.listen(PORT, &["expect=hello", "wait"])?;
    let _connection = mesh.connect(PORT, &["send=hello", "wait"])?;
    for end in ["q", "\u{3}"] {
        let mut top = on_terminal(client)?;
        let mut keys = top.take_stdin().context("keys can be pressed")?;
        let line = ["→", "fcs00:8181", "fcc00/user-root", "allowed"];
        top.wait_for_stdout(DEADLINE, |written| has_line(written, &line))?;
        top.wait_for_stdout(DEADLINE, |written| {
            has_line(written, &["murmesh top on fcc00", "1 connections"])
        })?;
        keys.write_all(b"g")?;
        top.wait_for_stdout(DEADLINE, |written| has_line(written, &["a line for each service (1)"]))?;
        keys.write_all(b"/nobody\r")?;
        top.wait_for_stdout(DEADLINE, |written| has_line(written, &["service (0)", "filter: nobody"]))?;
        keys.write_all(end.as_bytes())?;
        ensure_left_as_it_was(top)?;
    }
    for end in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut top = on_terminal(client)?;
        let _keys = top.take_stdin().context("the terminal stays")?;
        top.wait_for_stdout(DEADLINE, |written| has_line(written, &["murmesh top on fcc00"]))?;
        kill(inner(&top)?, end)?;
        ensure_left_as_it_was(top)?;
    }
    let refused = murmesh(client, &["top"])?;
    ensure!(refused.status.code() == Some(1) && text(&refused.stderr).contains("--once"), "{refused:?}");
    let once = client.murmesh(["top", "--once", "--interval", "100ms"])?;
    ensure!(has_line(once.replace('\n', "\r\n").as_bytes(), &["fcs00:8181", "allowed"]), "{once}");
    Ok(())
}
