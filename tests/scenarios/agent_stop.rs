//! What an agent leaves behind when it stops, and when it is killed.

use std::fs;

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, Process, TUNNEL_PORT, Topology, Trace};

use crate::support::kernel::{HOOKS, hooks, objects, pin_empty_map, wait_until_freed};
use crate::support::{
    DEADLINE, Daemons, ask, go_strict, greet, greeting, skipped, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;

#[test]
fn a_clean_stop_leaves_no_hook_map_or_pin_and_connections_are_plain_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let ours = objects(client)?;
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);

    daemons.stop_agent(client)?;
    ensure!(hooks(client)?.is_empty(), "still attached: {:?}", hooks(client)?);
    ensure!(!client.bpf_directory().exists(), "{} is still there", client.bpf_directory().display());
    wait_until_freed(&ours)?;
    let capture = client.capture("tcp")?;
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    let trace = capture.stop()?;
    ensure!(dialled(&trace, PORT) && !dialled(&trace, TUNNEL_PORT), "the connection was not plain");
    Ok(())
}

#[test]
fn a_service_host_whose_agent_stopped_is_reached_in_clear_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    daemons.stop_agent(service)?;
    crate::support::wait_for_no_endpoint(client, service, PORT)?;
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    Ok(())
}

#[test]
fn a_strict_service_stays_closed_while_the_agents_of_both_hosts_are_stopped() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (outsider, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    go_strict(outsider, service, "web", PORT)?;
    let address = service.ipv4().to_string();
    let is_closed_to = |host: &Host| -> Result<bool> { Ok(ask(host, &address, PORT).is_err()) };

    let capture = service.capture("tcp port 8181")?;
    // What one that was about to take over has left says nothing of what is in force.
    ["POLICY", "PORTS"].into_iter().try_for_each(|map| pin_empty_map(service, map))?;
    for stopped in [client, service] {
        daemons.stop_agent(stopped)?;
        ensure!(hooks(stopped)?.is_empty(), "still attached: {:?}", hooks(stopped)?);
        ensure!(is_closed_to(outsider)? && is_closed_to(client)?, "the strict service is open");
    }
    ensure!(!client.bpf_directory().exists(), "pins are left where nothing is strict");
    ensure!(ask(service, &address, PORT)? == greeting(service), "closed on its own host, too");
    for started in [service, client] {
        daemons.start_agent(started)?;
        ensure!(is_closed_to(outsider)?, "the strict service is open");
    }
    wait_for_endpoint(client, service, PORT)?;
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    let data = capture.stop()?.packets().iter().any(|packet| !packet.payload.is_empty());
    ensure!(!data, "the service has said something in clear");

    daemons.stop_agent(service)?;
    let bpf = service.bpf_directory().display().to_string();
    service.murmesh(["agent", "--cleanup", "--bpf-dir", &bpf])?;
    ensure!(!service.bpf_directory().exists(), "pins are left");
    // The kernel takes off what has no pin a moment later.
    wait_until("the service is open", || Ok(!is_closed_to(outsider)?))
}

#[test]
fn after_kill_9_connections_are_refused_and_a_restarted_agent_carries_them_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    for _ in 0..2 {
        daemons.ask_through_mesh(client, service, PORT)?;
        let before = objects(client)?;
        daemons.kill_agent(client)?;
        let capture = client.capture("tcp")?;
        let output = client.run("nc", ["-v", "fcs00", "8181"], b"", DEADLINE)?;
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{}", text(&output.stdout));
        ensure!(text(&output.stderr).contains("refused"), "{}", text(&output.stderr));
        let trace = capture.stop()?;
        ensure!(!dialled(&trace, PORT) && !dialled(&trace, TUNNEL_PORT), "something left the host");

        daemons.start_agent(client)?;
        wait_for_endpoint(client, service, PORT)?;
        ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
        ensure!(hooks(client)?.len() == HOOKS, "a second set of programs: {:?}", hooks(client)?);
        wait_until_freed(&before)?;
    }
    Ok(())
}

#[test]
fn who_listens_at_the_port_of_a_killed_agent_gets_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    daemons.kill_agent(client)?;
    let stranger = client.spawn("socat", ["-u", "tcp4-listen:15001,bind=127.0.0.1,reuseaddr,fork", "-"])?;
    client.wait_listening(15001, DEADLINE)?;
    let output = client.run("nc", ["-v", "fcs00", "8181"], b"a secret", DEADLINE)?;
    ensure!(output.status.code() == Some(1), "{}", text(&output.stderr));
    ensure!(text(&output.stderr).contains("refused"), "{}", text(&output.stderr));
    ensure!(stranger.stdout().is_empty(), "the stranger read {:?}", text(&stranger.stdout()));
    Ok(())
}

#[test]
fn no_connection_goes_in_clear_while_a_killed_agent_restarts_and_no_server_answers() -> Result<()> {
    restart_without_server(|_| Ok(()))
}

#[test]
fn a_restart_that_was_itself_cut_short_lets_nothing_go_in_clear() -> Result<()> {
    restart_without_server(|client| {
        // What is there when an agent is killed right after it put the earlier one's pins aside.
        let pins = client.bpf_directory();
        let aside = format!("{}-earlier", pins.display());
        fs::rename(pins, aside)?;
        Ok(fs::create_dir_all(pins.join("links"))?)
    })
}

/// The agent of the client and the server are killed, and the agent starts again after `meddle`.
fn restart_without_server(meddle: impl FnOnce(&Host) -> Result<()>) -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    daemons.kill_agent(client)?;
    daemons.kill_server()?;
    // Without what it keeps on disk it knows nothing but what is in the kernel.
    let _ = fs::remove_file(client.data_directory().join("cache.sealed"));
    meddle(client)?;

    let capture = client.capture("tcp port 8181")?;
    let agent = Process::spawn(&mut client.agent_command(&daemons.token(client)?)?)?;
    agent.wait_for_line("hooks attached", DEADLINE)?;
    agent.wait_for_line("no connection to the server", DEADLINE)?;
    for _ in 0..20 {
        must_fail(client)?;
    }
    agent.wait_for_line("reset: the catalog is not here yet", DEADLINE)?;
    ensure!(hooks(client)?.len() == HOOKS, "a second set of programs: {:?}", hooks(client)?);
    daemons.start_server()?;
    agent.wait_for_line("ready", DEADLINE)?;
    wait_for_endpoint(client, service, PORT)?;
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}

fn must_fail(client: &Host) -> Result<()> {
    let output = client.run("nc", ["fcs00", "8181"], b"", DEADLINE)?;
    ensure!(output.stdout.is_empty(), "there was an answer: {:?}", text(&output.stdout));
    Ok(())
}

/// Whether a connection to `port` was tried. Of tunnels that were there before, the ends may still pass.
fn dialled(trace: &Trace, port: u16) -> bool {
    trace.packets().iter().any(|packet| packet.opens && packet.destination.port() == port)
}
