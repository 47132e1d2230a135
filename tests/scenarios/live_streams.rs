//! A change of the rules ends the connections that it forbids, on both hosts, and no others.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Mesh, Process, patience};
use nix::sys::signal::Signal;

const PORT: u16 = 8570;
const OTHER_PORT: u16 = 8571;

/// From the administrator's command to the end of the connection.
const QUICKLY: Duration = Duration::from_secs(2);

/// What the ends of a connection do that is cut while nothing is sent.
const CUT: [&str; 4] = ["send=x", "expect=x", "say=open", "expect-reset"];
/// What the ends of a connection do that goes on for as long as they like.
const GOES_ON: [&str; 5] = ["send=x", "expect=x", "say=open", "wait", "exchange=100000"];

/// Both ends of an open connection from `fcc00`.
struct Connection {
    service: Process,
    client: Process,
}

impl Connection {
    fn open(mesh: &Mesh, port: u16, steps: &[&str]) -> Result<Self> {
        let service = mesh.listen(port, steps)?;
        let client = mesh.connect(port, steps)?;
        let connection = Self { service, client };
        for end in [&connection.service, &connection.client] {
            end.wait_for_line("open", DEADLINE)?;
        }
        Ok(connection)
    }

    /// Both ends come to the end of their steps: they are reset.
    fn expect_cut(self) -> Result<()> {
        self.client.succeed(DEADLINE)?;
        self.service.succeed(DEADLINE)?;
        Ok(())
    }

    /// Both ends go on, and end cleanly.
    fn expect_alive(mut self) -> Result<()> {
        for end in [&mut self.client, &mut self.service] {
            end.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
        }
        self.expect_cut()
    }
}

impl Connection {
    /// The client goes on, and what it says comes back.
    fn expect_echo(mut self) -> Result<()> {
        self.client.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
        self.client.succeed(DEADLINE)?;
        Ok(())
    }
}

fn deny(mesh: &Mesh) -> Result<Instant> {
    mesh.host("murmesh00")?.murmesh(["deny", "fcc00", &format!("fcs00:{PORT}")])?;
    Ok(Instant::now())
}

#[test]
fn a_rule_cuts_the_connections_that_it_forbids_on_both_hosts_and_no_others() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let forbidden = Connection::open(&mesh, PORT, &CUT)?;
    let other = Connection::open(&mesh, OTHER_PORT, &GOES_ON)?;
    let denied = deny(&mesh)?;
    forbidden.expect_cut()?;
    ensure!(denied.elapsed() < patience(QUICKLY), "it took {:?}", denied.elapsed());
    for host in ["fcc00", "fcs00"] {
        let line = mesh.agent(host)?.wait_for_line("reason=\"cut: rule 1 forbids it\"", DEADLINE)?;
        ensure!(line.contains(" close ") && line.contains(" rule=1 "), "{line}");
        ensure!(line.contains(&format!(":{PORT} ")), "{line}");
    }
    other.expect_alive()
}

#[test]
fn a_client_whose_agent_hears_of_no_rule_is_cut_off_by_the_other_host() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let forbidden = Connection::open(&mesh, PORT, &CUT)?;
    let other = Connection::open(&mesh, OTHER_PORT, &GOES_ON)?;
    mesh.host("murmesh00")?.cut_off_from(mesh.client()?)?;
    let denied = deny(&mesh)?;
    forbidden.expect_cut()?;
    ensure!(denied.elapsed() < patience(QUICKLY), "it took {:?}", denied.elapsed());
    mesh.agent("fcs00")?.wait_for_line("reason=\"cut: rule 1 forbids it\"", DEADLINE)?;
    mesh.agent("fcc00")?.wait_for_line("reason=\"reset by the other host: Policy\"", DEADLINE)?;
    other.expect_alive()
}

/// The service does not read, so that RESET does not get through the tunnel.
#[test]
fn a_connection_that_is_stuck_is_cut_too() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, &["expect=x", "say=open", "wait", "expect-reset"])?;
    let client = mesh.connect(PORT, &["send=x", "fill", "say=open", "expect-write-error"])?;
    client.wait_for_line("open", DEADLINE)?;
    let mut stuck = Connection { service, client };
    let denied = deny(&mesh)?;
    for host in ["fcc00", "fcs00"] {
        mesh.agent(host)?.wait_for_line("reason=\"cut: rule 1 forbids it\"", DEADLINE)?;
    }
    ensure!(denied.elapsed() < patience(QUICKLY), "it took {:?}", denied.elapsed());
    stuck.service.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
    stuck.expect_cut()
}

#[test]
fn a_default_that_denies_cuts_what_no_rule_allows() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let forbidden = Connection::open(&mesh, PORT, &CUT)?;
    let other = Connection::open(&mesh, OTHER_PORT, &GOES_ON)?;
    let server = mesh.host("murmesh00")?;
    server.murmesh(["allow", "fcc00", &format!("fcs00:{OTHER_PORT}")])?;
    server.murmesh(["policy", "default", "deny"])?;
    forbidden.expect_cut()?;
    mesh.agent("fcs00")?.wait_for_line("reason=\"cut: no rule allows it\"", DEADLINE)?;
    other.expect_alive()
}

/// What a client does at a service that gives everything back: the second half on command.
const ECHOED: [&str; 7] = ["send=x", "expect=x", "say=open", "wait", "send=y", "shutdown", "expect=y"];

/// A service for one client, which stops listening as soon as that has come, and an open connection to it. A rule
/// allows it by who listens, and nothing else is allowed.
fn last_client(mesh: &Mesh) -> Result<Connection> {
    let server = mesh.host("murmesh00")?;
    server.murmesh(["allow", "fcc00", "host/fcs00/user-root"])?;
    server.murmesh(["policy", "default", "deny"])?;
    let listen = format!("tcp6-l:{PORT},ipv6only=0");
    let service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:cat"])?;
    let client = mesh.connect(PORT, &ECHOED)?;
    client.wait_for_line("open", DEADLINE)?;
    Ok(Connection { service, client })
}

#[test]
fn a_connection_outlives_the_listener_that_its_rule_names() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let connection = last_client(&mesh)?;
    mesh.wait_not_carried(SocketAddr::new(mesh.service()?.ipv4().into(), PORT))?;
    // New rules, which arrive before another one that can be seen to be in force.
    let server = mesh.host("murmesh00")?;
    server.murmesh(["allow", "fcc00", "host/fcs00/other.service"])?;
    let other = Connection::open(&mesh, OTHER_PORT, &CUT)?;
    server.murmesh(["deny", "fcc00", &format!("host/fcs00/user-root:{OTHER_PORT}")])?;
    other.expect_cut()?;
    connection.expect_echo()
}

#[test]
fn a_connection_to_a_host_whose_agent_stops_ends_when_its_programs_end_it() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let connection = last_client(&mesh)?;
    mesh.agent("fcs00")?.signal(Signal::SIGTERM)?;
    mesh.agent("fcs00")?.wait_for_line("draining", DEADLINE)?;
    connection.expect_echo()?;
    mesh.agent("fcs00")?.wait_for_line("stopped", DEADLINE)?;
    Ok(())
}
