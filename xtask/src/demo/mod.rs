//! `cargo xtask demo`: the same two programs, first in clear, then through Murmesh, then with rules.

mod instances;
mod policy;
mod servers;
mod wire;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{Capture, Host, Lab, Process, TUNNEL_PORT, Topology, on_interrupt, remove};

use crate::{build, setup};
use servers::Servers;

/// What the service's host runs, once for all acts.
const SERVICE: [&str; 4] = ["socat", "-v", "tcp-l:8181,bind=0,fork,reuseaddr", "exec:/usr/games/fortune"];

/// What the client's host runs in all acts.
const CLIENT: [&str; 3] = ["nc", "fcs00", "8181"];

/// `socat -v` logs what it relays but not for whom, so a second one that also logs its peers starts later.
/// That Murmesh carries it at once shows that services need no registration.
const LOGGING_SERVICE: [&str; 5] =
    ["socat", "-d", "-d", "tcp-l:8182,bind=0,fork,reuseaddr", "exec:/usr/games/fortune"];

/// Any one step.
const DEADLINE: Duration = Duration::from_secs(20);

/// Prepares the machine, builds, and plays all acts in a lab of its own, which is removed at the end.
pub fn run() -> Result<()> {
    if !murmesh_lab::is_root() {
        bail!("the demo makes network namespaces, which needs root: sudo -E cargo xtask demo");
    }
    build::run()?;
    setup::for_running()?;

    let lab = Lab::new(Topology { servers: 3, services: 3, clients: 1 }).context("making the hosts")?;
    let name = lab.name().to_owned();
    on_interrupt(move || {
        let _ = remove(&name);
    })?;
    title("Seven hosts on this machine");
    for host in lab.hosts() {
        println!("  {:<10} {}", host.name(), host.ipv4());
    }
    let (service_host, client) = (lab.host("fcs00")?, lab.host("fcc00")?);
    let service = start_service(service_host, &SERVICE, 8181)?;

    in_clear(client).context("without Murmesh")?;
    let (mut servers, _agents, wire) = start_murmesh(&lab).context("starting Murmesh")?;
    through_murmesh(client, &service, wire).context("with Murmesh")?;
    real_client_address(service_host, client).context("showing the client's address")?;
    let server = lab.host("murmesh00")?;
    policy::rules(server, client).context("denying and allowing")?;
    policy::strict(server, client).context("with a strict service")?;
    let _more = instances::failover(&lab, service).context("killing an instance")?;
    servers.failover(client).context("killing a server")?;

    title("Summary");
    println!(
        "  The same nc reached the same socat, on the same address and port, without a change to either."
    );
    println!(
        "  In clear, the wire showed the fortune. Through Murmesh, it shows TLS 1.3 between two hosts that"
    );
    println!(
        "  proved who they are, and the service still sees who is calling. A rule decides who may call, and the"
    );
    println!(
        "  kernel enforces it; a strict service is out of reach for everybody outside of the mesh. When the"
    );
    println!(
        "  instance that nc dials is killed, another one answers it; when the server that leads is killed, another"
    );
    println!("  one leads, and connections go on.");
    println!("  Removing the hosts and everything that runs in them.");
    Ok(())
}

/// Without Murmesh.
fn in_clear(client: &Host) -> Result<()> {
    title("Without Murmesh");
    let wire = client.capture("tcp")?;
    let fortune = fetch(client, &CLIENT)?;
    let trace = wire.stop()?;
    let overheard = wire::sent_from(&trace, 8181);
    ensure!(overheard == fortune, "the wire shows {overheard:?}, and nc received {fortune:?}");
    println!("  An eavesdropper on the wire reads, sent from port 8181:");
    quote(&overheard);
    Ok(())
}

/// Starts the servers and joins the agents. Returns them, and the recording of the client's wire.
fn start_murmesh(lab: &Lab) -> Result<(Servers<'_>, Vec<Process>, Capture<'_>)> {
    title("Murmesh starts");
    let (server, client) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let servers = Servers::start(lab)?;
    let mut agents = Vec::new();
    // From before the first tunnel, so that TLS connections are seen whole.
    let wire = client.capture("tcp")?;
    for host in [lab.host("fcs00")?, client] {
        let token = server.create_token()?;
        announce(host, &format!("murmesh agent --join {}…", token.chars().take(16).collect::<String>()));
        agents.push(host.start_agent(&token)?);
    }
    client.wait_for_service("fcs00", 8181, DEADLINE)?;
    println!("  fcc00 has learned of fcs00:8181. Nobody registered it.");
    Ok((servers, agents, wire))
}

/// With Murmesh.
fn through_murmesh(client: &Host, service: &Process, wire: Capture<'_>) -> Result<()> {
    title("With Murmesh");
    let fortune = fetch(client, &CLIENT)?;
    println!("  nc received:");
    quote(&fortune);
    // A line of what it sent is the start of a line of the log, and both begin when the service has spoken.
    let last = fortune.lines().last().unwrap_or_default();
    service.wait_for_line(last, DEADLINE).context("the service did not log what nc received")?;

    let trace = wire.stop()?;
    let seen = wire::examine(&trace, &fortune)?;
    println!("  The same eavesdropper reads, sent from port {TUNNEL_PORT}:");
    quote(&seen.sample);
    println!("  On the whole wire since Murmesh started, in {} packets:", trace.packets().len());
    println!("    {} TLS records on {TUNNEL_PORT}: {}", seen.records(), seen.kinds());
    println!("    0 bytes on {TUNNEL_PORT} that are no TLS record");
    println!("    0 bytes of the fortune in clear");
    println!("    0 packets from or to port 8181");
    Ok(())
}

/// A service that logs its peers names the client's host and not an agent.
fn real_client_address(service_host: &Host, client: &Host) -> Result<()> {
    title("Who is calling?");
    let service = start_service(service_host, &LOGGING_SERVICE, 8182)?;
    client.wait_for_service(service_host.name(), 8182, DEADLINE)?;
    let wire = client.capture("tcp port 8182")?;
    fetch(client, &["nc", "fcs00", "8182"])?;
    let line = service.wait_for_line("accepting connection from", DEADLINE)?;
    println!("  socat logged: {line}");
    let address = format!("{}:", client.ipv4());
    ensure!(line.contains(&address), "socat's peer is not {} at {}", client.name(), client.ipv4());
    ensure!(wire.stop()?.packets().is_empty(), "the connection to port 8182 was on the wire in clear");
    println!("  {} is the address of {}.", client.ipv4(), client.name());
    Ok(())
}

fn start_service(host: &Host, command: &[&str], port: u16) -> Result<Process> {
    announce(host, &command.join(" "));
    let service = host.spawn(command[0], &command[1..])?;
    host.wait_listening(port, DEADLINE)?;
    Ok(service)
}

/// Runs the client and returns what it received.
fn fetch(client: &Host, command: &[&str]) -> Result<String> {
    announce(client, &command.join(" "));
    let output = client.run(command[0], &command[1..], b"", DEADLINE)?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            command.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let fortune = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!fortune.trim().is_empty(), "{} received nothing", command.join(" "));
    Ok(fortune)
}

fn title(text: &str) {
    println!("\n== {text}");
}

fn announce(host: &Host, command: &str) {
    println!("  {:<10} # {command}", host.name());
}

fn quote(text: &str) {
    for line in text.lines() {
        println!("      | {line}");
    }
}
