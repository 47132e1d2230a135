//! Others on the same host: their BPF programs, their network namespaces, and what is not TCP.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Process, Topology, contains};

use crate::support::kernel::{HOOKS, attach_twice, detach, hooks};
use crate::support::programs::{Mode, choose_sockets, deny_addresses, forbid_port};
use crate::support::{
    DEADLINE, Daemons, go_strict, greet, greeting, json, opened, skipped, strings, text, wait_for_endpoint,
    wait_until,
};

const PORT: u16 = 8181;

#[test]
fn programs_of_others_on_the_cgroup_stay_in_effect() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let forbidden = 8282;
    forbid_port(client, forbidden, Mode::Shared).context("attaching a program as others do")?;
    ensure_forbidden(client, forbidden)?;

    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    ensure!(hooks(client)?.len() == HOOKS + 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)?;
    // It also rules over what the mesh would carry.
    let _forbidden = greet(service, forbidden)?;
    wait_for_endpoint(client, service, forbidden)?;
    ensure_forbidden(client, forbidden)?;

    daemons.kill_agent(client)?;
    daemons.start_agent(client)?;
    ensure_forbidden(client, forbidden)?;
    daemons.stop_agent(client)?;
    ensure!(hooks(client)?.len() == 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)
}

#[test]
fn a_program_that_is_attached_after_ours_is_in_effect_too() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let forbidden = 8282;
    forbid_port(client, forbidden, Mode::Shared)?;
    ensure_forbidden(client, forbidden)?;
    // It runs after ours, and sees where ours sends what is carried: the agent's port.
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    detach(client, "connect4")?;
    wait_until("our program is put back", || Ok(client.murmesh(["status"]).is_ok()))?;
    ensure_forbidden(client, forbidden)?;
    ensure!(hooks(client)?.len() == HOOKS + 1, "{:?}", hooks(client)?);
    daemons.stop_agent(client)?;
    ensure!(hooks(client)?.len() == 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)
}

#[test]
fn a_program_that_can_let_others_in_to_a_strict_service_makes_the_host_red() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (outsider, service) = (lab.host("murmesh00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let told = || -> Result<bool> {
        let status = json(service, "status")?;
        let named =
            strings(&status["interception"]["faults"]).iter().any(|fault| fault.contains("sk_lookup"));
        ensure!(named != (status["healthy"] == true), "{status}");
        Ok(named)
    };
    let program = choose_sockets(service)?;
    ensure!(!told()?, "nothing is strict");
    go_strict(outsider, service, "fortune", PORT)?;
    wait_until("it is told", told)?;
    daemons.agent(service)?.wait_for_line("programs of somebody else choose the sockets", DEADLINE)?;
    drop(program);
    wait_until("it is gone", || Ok(!told()?))
}

#[test]
fn connections_are_carried_where_our_program_is_attached_twice() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    attach_twice(client, "connect4")?;
    ensure!(hooks(client)?.len() == HOOKS + 1, "{:?}", hooks(client)?);
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    Ok(())
}

#[test]
fn a_program_that_is_alone_at_a_hook_is_named_and_left_in_effect() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let forbidden = 8282;
    forbid_port(client, forbidden, Mode::Exclusive)?;
    let agent = Process::spawn(&mut client.agent_command(&daemons.token(client)?)?)?.output(DEADLINE)?;
    let said = text(&agent.stderr);
    ensure!(agent.status.code() == Some(1) && said.contains("connect4"), "{said}");
    ensure!(said.contains("ALLOW_MULTI") && said.contains(&client.cgroup().display().to_string()), "{said}");
    ensure!(hooks(client)?.len() == 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)
}

#[test]
fn what_a_program_like_systemds_forbids_stays_forbidden_and_nothing_goes_around_the_mesh() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (_daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    // The agent is in the cgroup, too: nothing leaves.
    deny_addresses(client, Ipv4Addr::LOCALHOST)?;
    let output = client.run("nc", ["-vz", "-w1", "10.99.0.10", "9190"], b"", DEADLINE)?;
    ensure!(!output.status.success(), "the program of packets is not in effect: {output:?}");
    ensure!(hooks(client)?.len() == HOOKS + 1, "{:?}", hooks(client)?);
    let capture = client.capture("tcp port 8181")?;
    let output = client.run("nc", ["-w1", &service.ipv4().to_string(), "8181"], b"a secret", DEADLINE)?;
    ensure!(output.stdout.is_empty() || output.stdout == greeting(service).as_bytes(), "{output:?}");
    ensure!(capture.stop()?.packets().is_empty(), "a packet to the service's own port");
    Ok(())
}

#[test]
fn a_container_is_refused_what_a_rule_forbids_and_its_own_loopback_works() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let (_daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    server.murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", "8181"])?;
    server.murmesh(["deny", "*", "fortune"])?;
    wait_until("the rule holds", || {
        let output = client.run("nc", ["-vz", "10.99.0.20", "8181"], b"", DEADLINE)?;
        Ok(text(&output.stderr).contains("not permitted"))
    })?;
    // Its namespace has no way out, and the hooks of the host refuse before that matters.
    let dial = "ip link set lo up && nc -vz 10.99.0.20 8181";
    let output = client.run("unshare", ["--net", "sh", "-c", dial], b"", DEADLINE)?;
    ensure!(text(&output.stderr).contains("not permitted"), "{output:?}");
    let local = "ip link set lo up && { nc -l 127.0.0.1 8181 & } && until nc -N 127.0.0.1 8181 </dev/null; do :; done";
    let output = client.run("unshare", ["--net", "sh", "-c", local], b"", DEADLINE)?;
    ensure!(output.status.success(), "its own loopback is broken: {output:?}");
    Ok(())
}

#[test]
fn another_network_namespace_in_the_cgroup_is_left_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;

    // A container with a service of its own at the same address. Its loopback interface is not ours.
    let container = "ip link set lo up && ip addr add 10.99.0.20/32 dev lo && \
                     { socat tcp4-listen:8181,reuseaddr exec:'echo hello from inside' & } && \
                     until nc -z 127.0.0.1 1 || grep -q :1FF5 /proc/net/tcp; do :; done && nc 10.99.0.20 8181";
    let carried = opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181");
    let output = client.run("unshare", ["--net", "sh", "-c", container], b"", DEADLINE)?;
    ensure!(
        text(&output.stdout) == "hello from inside\n",
        "{} {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    ensure_carried_once_more(&daemons, client, service, carried)
}

#[test]
fn udp_to_the_address_of_a_meshed_service_is_untouched() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    let _echo = service.spawn("socat", ["udp4-listen:8181,fork", "exec:cat"])?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    let carried = opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181");
    let capture = client.capture("udp")?;
    let output = client.run("nc", ["-u", "-W", "1", "10.99.0.20", "8181"], b"a datagram\n", DEADLINE)?;
    let trace = capture.stop()?;
    ensure!(text(&output.stdout) == "a datagram\n", "{:?} {}", text(&output.stdout), text(&output.stderr));
    let datagrams = trace.packets().iter().filter(|packet| contains(&packet.payload, b"a datagram"));
    ensure!(datagrams.filter(|packet| packet.uses_port(PORT)).count() == 2, "one there, one back");
    ensure_carried_once_more(&daemons, client, service, carried)
}

/// Only the connection that this makes is carried since there were `carried` of them: its line in the log shows that
/// an earlier one's would be there.
fn ensure_carried_once_more(
    daemons: &Daemons<'_>,
    client: &Host,
    service: &Host,
    carried: usize,
) -> Result<()> {
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    ensure!(opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181") == carried + 1, "it was intercepted");
    Ok(())
}

fn ensure_forbidden(client: &Host, port: u16) -> Result<()> {
    let output = client.run("nc", ["-v", "10.99.0.20", &port.to_string()], b"", DEADLINE)?;
    ensure!(
        text(&output.stderr).contains("not permitted"),
        "the other program is not in effect: {}",
        text(&output.stderr)
    );
    Ok(())
}
