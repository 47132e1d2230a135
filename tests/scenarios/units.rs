//! What the units of the package promise to systemd, and what they leave to the daemons.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Process, Topology};
use nix::sys::signal::Signal;

use crate::support::{DEADLINE, Daemons, greet, greeting, json, skipped, text, wait_for_endpoint};

const PORT: u16 = 8231;
const AGENT: &str = include_str!("../../deploy/systemd/murmesh-agent.service");
const SERVER: &str = include_str!("../../deploy/systemd/murmesh-server.service");

/// `command` with the capabilities that `unit` leaves, and no more.
fn confined(host: &Host, command: &Command, unit: &str) -> Result<Command> {
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let left = line.context("the unit says which capabilities it leaves")?.split_whitespace();
    let left = left.map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    let set = format!("--bounding-set=-all{}", left.collect::<String>());
    let mut confined = host.command("setpriv")?;
    confined.args([set.as_str(), "--inh-caps=-all", "--no-new-privs"]);
    confined.arg(command.get_program()).args(command.get_args());
    Ok(confined)
}

#[test]
fn the_capabilities_that_the_units_leave_are_enough() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (first, service, client) = (lab.host("murmesh00")?, lab.host("fcs00")?, lab.host("fcc00")?);
    let server = Process::spawn(&mut confined(first, &first.server_command()?, SERVER)?)?;
    server.wait_for_line(": ready", DEADLINE)?;
    let mut agents = Vec::new();
    for host in [service, client] {
        let agent =
            Process::spawn(&mut confined(host, &host.agent_command(&first.create_token()?)?, AGENT)?)?;
        agent.wait_for_line(": ready", DEADLINE)?;
        agents.push(agent);
    }
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    // Somebody else's process, whose name the agent has to find out.
    let somebody = ["--reuid", "nobody", "--clear-groups", "nc", "-N", "fcs00", &PORT.to_string()];
    let answer = client.run("setpriv", somebody, b"", DEADLINE)?;
    ensure!(text(&answer.stdout) == greeting(service), "{}", text(&answer.stderr));
    agents[0].wait_for_line("user-nobody", DEADLINE)?;
    for host in [service, client] {
        let status = json(host, "status")?;
        ensure!(status["healthy"] == true, "{status}");
    }
    for agent in agents {
        ensure!(agent.stop(DEADLINE)?.success(), "an agent could not clean up");
    }
    Ok(())
}

#[test]
fn daemons_say_that_they_are_ready_that_they_live_and_that_they_stop() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (first, client) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    watch(first, first.server_command()?)?;
    let mut daemons = Daemons::server_only(&lab)?;
    watch(client, client.agent_command(&daemons.token(client)?)?)
}

/// Starts a daemon as systemd does, with a watchdog that is to hear of it several times, and stops it.
fn watch(host: &Host, mut command: Command) -> Result<()> {
    let path = host.log_directory().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(DEADLINE))?;
    let daemon = Process::spawn(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000"))?;
    let received = || -> Result<String> {
        let mut message = [0; 64];
        let length = manager.recv(&mut message).with_context(|| daemon.said())?;
        Ok(text(&message[..length]))
    };
    let (mut ready, mut alive) = (0, 0);
    while ready == 0 || alive < 5 {
        let message = received()?;
        ready += usize::from(message == "READY=1");
        alive += usize::from(message == "WATCHDOG=1");
    }
    ensure!(ready == 1, "it said {ready} times that it is ready");
    daemon.signal(Signal::SIGTERM)?;
    while received()? != "STOPPING=1" {}
    ensure!(daemon.stop(DEADLINE)?.success(), "a clean stop is no failure");
    Ok(())
}
