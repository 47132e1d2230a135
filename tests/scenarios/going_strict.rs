//! Going strict: who is seen in clear, the way back, and what becomes of connections that are there.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Mesh, Process, Topology, patience};
use serde_json::Value;

use crate::support::kernel::entries;
use crate::support::{Daemons, greet, murmesh, skipped, text, wait_for_endpoint, wait_until};

const PORT: u16 = 8181;

/// Whether a connection in clear to `port` of `service` is made; if not, it must be refused.
fn admitted(outsider: &Host, service: &Host, port: u16) -> Result<bool> {
    let address = service.ipv4().to_string();
    let output = outsider.run("nc", ["-vz", &address, &port.to_string()], b"", DEADLINE)?;
    ensure!(output.status.success() || text(&output.stderr).contains("refused"), "{}", text(&output.stderr));
    Ok(output.status.success())
}

fn wait_admitted(outsider: &Host, service: &Host, wanted: bool) -> Result<()> {
    let what = format!("{} lets plaintext in: {wanted}", service.name());
    wait_until(&what, || Ok(admitted(outsider, service, PORT)? == wanted))
}

/// `murmesh service set fortune` with the rest of the arguments; what it said if it was refused.
fn set(server: &Host, arguments: &[&str]) -> Result<Option<String>> {
    let all = [&["service", "set", "fortune", "--host", "fcs00", "--port", "8181"], arguments].concat();
    let output = murmesh(server, &all)?;
    Ok((!output.status.success()).then(|| text(&output.stderr)))
}

fn ensure_set(server: &Host, arguments: &[&str]) -> Result<()> {
    let refused = set(server, arguments)?;
    ensure!(refused.is_none(), "{arguments:?}: {refused:?}");
    Ok(())
}

/// A mesh with an echo service at `PORT` of `fcs00`. The server's host has no agent: it is the outsider.
fn mesh() -> Result<Option<(Mesh, Process)>> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(None) };
    let listen = format!("tcp-l:{PORT},fork,reuseaddr");
    let service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "pipe"])?;
    Ok(Some((mesh, service)))
}

#[test]
fn a_service_that_somebody_reaches_in_clear_becomes_strict_only_by_force() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (outsider, service) = (mesh.host("murmesh00")?, mesh.service()?);
    ensure!(admitted(outsider, service, PORT)?, "permissive by default");
    let address = outsider.ipv4().to_string();
    let begun = Instant::now();
    // What the kernel counted takes a moment to the server.
    let refused = loop {
        if let Some(refused) = set(outsider, &["--mode", "strict"])? {
            break refused;
        }
        ensure_set(outsider, &["--mode", "default"])?;
        ensure!(begun.elapsed() < patience(DEADLINE), "going strict is not refused");
    };
    for part in ["fcs00:8181", &address, "ago", "--force"] {
        ensure!(refused.contains(part), "no {part} in: {refused}");
    }
    let by_default = murmesh(outsider, &["policy", "default", "--mode", "strict"])?;
    ensure!(!by_default.status.success() && text(&by_default.stderr).contains(&address), "{by_default:?}");

    ensure_set(outsider, &["--mode", "strict", "--except", &address])?;
    ensure!(admitted(outsider, service, PORT)?, "it is excepted");
    ensure!(set(outsider, &["--except", "none"])?.is_some(), "the exception is not taken away by accident");
    ensure_set(outsider, &["--mode", "strict", "--except", "none", "--force"])?;
    wait_admitted(outsider, service, false)
}

#[test]
fn a_host_that_cannot_tell_who_comes_in_clear_is_named() -> Result<()> {
    let Some((mut mesh, _service)) = mesh()? else { return Ok(()) };
    mesh.kill_agent("fcs00")?;
    let server = mesh.host("murmesh00")?;
    let begun = Instant::now();
    let refused = loop {
        if let Some(refused) = set(server, &["--mode", "strict"])? {
            break refused;
        }
        ensure_set(server, &["--mode", "permissive"])?;
        ensure!(begun.elapsed() < patience(DEADLINE), "going strict is not refused");
    };
    ensure!(refused.contains("fcs00 cannot tell") && refused.contains("not connected"), "{refused}");
    ensure_set(server, &["--mode", "strict", "--force"])
}

#[test]
fn a_mode_that_nobody_confirms_goes_back_even_if_the_server_was_down() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { clients: 2, ..Topology::default() })?;
    let (server, service, client) = (lab.host("murmesh00")?, lab.host("fcs00")?, lab.host("fcc00")?);
    let outsider = lab.host("fcc01")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    daemons.start_agent(client)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;

    ensure_set(server, &["--mode", "strict", "--force", "--confirm", "6s"])?;
    wait_admitted(outsider, service, false)?;
    let listed = text(&murmesh(client, &["service", "list"])?.stdout);
    ensure!(listed.contains("strict (back to default in") && listed.contains("unless confirmed"), "{listed}");
    daemons.kill_server()?;
    daemons.start_server()?;
    wait_admitted(outsider, service, true)?;
    let line = daemons.server()?.wait_for_line("not confirmed in time", DEADLINE)?;
    ensure!(line.contains("fortune"), "{line}");

    ensure_set(server, &["--mode", "strict", "--force", "--confirm", "1h"])?;
    server.murmesh(["service", "confirm", "fortune"])?;
    let listed: Value = serde_json::from_slice(&murmesh(server, &["service", "list", "-o", "json"])?.stdout)?;
    ensure!(listed[0]["mode"] == "strict" && listed[0]["unconfirmed"].is_null(), "{listed}");
    let again = murmesh(server, &["service", "confirm", "fortune"])?;
    ensure!(text(&again.stderr).contains("nothing to confirm"), "{again:?}");

    ensure_set(server, &["--mode", "permissive"])?;
    server.murmesh(["policy", "default", "--mode", "strict", "--force", "--confirm", "3s"])?;
    server.murmesh(["service", "remove", "fortune", "--force"])?;
    wait_admitted(outsider, service, false)?;
    wait_admitted(outsider, service, true)
}

/// A connection from `host` to the echo service that is open.
fn open(host: &Host, address: &str, last: &[&str]) -> Result<Process> {
    let destination = format!("{address}:{PORT}");
    let steps = ["connect", &destination, "send=x", "expect=x", "say=open"];
    let connection = host.probe(steps.iter().chain(last))?;
    connection.wait_for_line("open", DEADLINE)?;
    Ok(connection)
}

/// Has a connection that was opened with [`GOES_ON`] go on.
fn ensure_alive(mut connection: Process) -> Result<()> {
    connection.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
    connection.succeed(DEADLINE)?;
    Ok(())
}

const GOES_ON: [&str; 5] = ["wait", "send=y", "expect=y", "shutdown", "end"];

#[test]
fn connections_in_clear_that_are_there_are_kept_or_reset_as_asked_and_no_others() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (outsider, service, client) = (mesh.host("murmesh00")?, mesh.service()?, mesh.client()?);
    let address = service.ipv4().to_string();
    let kept = open(outsider, &address, &GOES_ON)?;
    ensure_set(outsider, &["--mode", "strict", "--force"])?;
    wait_admitted(outsider, service, false)?;
    ensure_alive(kept)?;
    ensure_set(outsider, &["--mode", "permissive"])?;
    wait_admitted(outsider, service, true)?;

    let reset = open(outsider, &address, &["expect-reset"])?;
    let others = [
        open(client, &address, &GOES_ON)?,
        open(service, "127.0.0.1", &GOES_ON)?,
        open(service, &address, &GOES_ON)?,
    ];
    ensure_set(outsider, &["--mode", "strict", "--force", "--existing", "reset"])?;
    reset.succeed(DEADLINE)?;
    let line =
        mesh.agent("fcs00")?.wait_for_line("connections in clear to strict services reset", DEADLINE)?;
    ensure!(line.contains("reset=1") && line.contains("8181"), "{line}");
    others.into_iter().try_for_each(ensure_alive)?;

    // What is excepted stays.
    ensure_set(outsider, &["--mode", "permissive"])?;
    wait_admitted(outsider, service, true)?;
    let excepted = open(outsider, &address, &GOES_ON)?;
    let network = format!("{}/32", outsider.ipv4());
    ensure_set(outsider, &["--mode", "strict", "--except", &network, "--force"])?;
    mesh.agent("fcs00")?.wait_for_line("reset=0", DEADLINE)?;
    ensure_alive(excepted)
}

#[test]
fn a_strict_default_locks_nobody_out_of_ssh_and_of_murmesh() -> Result<()> {
    const SERVER_PORT: u16 = 7777;
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { clients: 2, ..Topology::default() })?;
    let (server, client, outsider) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcc01")?);
    let advertised = format!("{}:{SERVER_PORT}", server.ipv4());
    let mut command = server.server_command()?;
    command.args(["--listen", &advertised, "--advertise", &advertised]);
    let process = Process::spawn(&mut command)?;
    process.wait_for_line("ready", DEADLINE)?;
    let mut agents = Vec::new();
    for host in [server, client] {
        agents.push(host.start_agent(&server.create_token()?)?);
    }
    let _ssh = greet(server, 22)?;
    let _service = greet(server, PORT)?;
    let _other = greet(server, PORT + 1)?;
    wait_for_endpoint(client, server, PORT)?;
    wait_for_endpoint(client, server, PORT + 1)?;

    server.murmesh(["policy", "default", "--mode", "strict", "--force"])?;
    // Also where somebody says so by name.
    let named = ["service", "set", "login", "--host", "murmesh00", "--port", "22"];
    server.murmesh(named)?;
    server.murmesh(["service", "set", "login", "--mode", "strict", "--force"])?;
    wait_admitted(outsider, server, false)?;
    ensure!(!admitted(outsider, server, PORT + 1)?, "every other port is strict");
    for port in [22, 9191, SERVER_PORT] {
        ensure!(admitted(outsider, server, port)?, "locked out of port {port}");
    }
    // A host can still join.
    agents.push(outsider.start_agent(&server.create_token()?)?);
    wait_for_endpoint(outsider, server, PORT)
}

/// Long enough for the kernel's counters to get to the command line.
const QUICKLY: Duration = Duration::from_secs(10);

#[test]
fn status_tells_the_share_of_encrypted_connections_and_counts_each_one_in_clear() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (outsider, service, client) = (mesh.host("murmesh00")?, mesh.service()?, mesh.client()?);
    let _ssh = greet(service, 22)?;
    ensure_set(outsider, &["--mode", "permissive"])?;
    let dial = |from: &Host, port: u16| -> Result<()> {
        ensure!(admitted(from, service, port)?, "port {port}");
        Ok(())
    };
    (0..3).try_for_each(|_| dial(client, PORT))?;
    dial(client, 22)?;
    (0..2).try_for_each(|_| dial(outsider, PORT))?;
    dial(service, PORT)?;
    let encryption =
        |host: &Host| -> Result<Value> { Ok(crate::support::json(host, "status")?["encryption"].clone()) };
    let counts = |encryption: &Value| -> Vec<u64> {
        let names = ["encrypted_to_mesh", "encrypted_from_mesh", "plaintext_to_mesh", "plaintext_from_mesh"];
        names
            .iter()
            .chain(&["plaintext_from_outside", "plaintext_refused"])
            .map(|name| encryption[name].as_u64().unwrap_or(u64::MAX))
            .collect()
    };
    let begun = Instant::now();
    let (of_client, of_service) = loop {
        let found = (encryption(client)?, encryption(service)?);
        if counts(&found.0) == [3, 0, 1, 0, 0, 0] && counts(&found.1) == [0, 3, 0, 0, 2, 0] {
            break found;
        }
        ensure!(begun.elapsed() < patience(QUICKLY), "{found:?}");
    };
    ensure!(of_client["share"] == 0.75 && of_service["share"] == 1.0, "{of_client} {of_service}");
    let listed = &of_service["services"][0];
    ensure!(
        listed["port"] == PORT && listed["name"] == "fortune" && listed["mode"] == "permissive",
        "{listed}"
    );
    ensure!(listed["from_outside"] == 2 && listed["from_mesh"] == 0, "{listed}");
    let page = text(&murmesh(client, &["status"])?.stdout);
    ensure!(page.contains("75.0%: 3 of 4 connections") && page.contains("NOT encrypted"), "{page}");

    // What the mesh does not carry yet, or not any more, is counted where it arrives, too.
    ensure_set(outsider, &["--mode", "observe"])?;
    wait_until("a connection is counted as one in clear", || {
        dial(client, PORT)?;
        Ok(encryption(service)?["plaintext_from_mesh"].as_u64() >= Some(1)
            && encryption(client)?["plaintext_to_mesh"].as_u64() >= Some(2))
    })?;
    // Also those to a host that rules could refuse something.
    outsider.murmesh(["deny", "host/fcs00/*", "fcc00:9999"])?;
    wait_until("the rule is in force", || Ok(entries(client, "DENIALS")? > 0))?;
    let counted = || -> Result<Option<u64>> { Ok(encryption(client)?["plaintext_to_mesh"].as_u64()) };
    let before = counted()?;
    dial(client, 22)?;
    wait_until("it is counted as before", || Ok(counted()? > before))?;
    ensure_set(outsider, &["--mode", "strict", "--force"])?;
    wait_admitted(outsider, service, false)?;
    ensure!(encryption(service)?["plaintext_refused"].as_u64() >= Some(1), "{}", encryption(service)?);
    Ok(())
}
