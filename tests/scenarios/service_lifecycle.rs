//! Services come and go, before and after the agent of their host.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, Process, Topology, patience};
use nix::sys::signal::Signal;

use crate::support::{
    DEADLINE, Daemons, ask, endpoints, greet, greet_with, greeting, skipped, wait_for_endpoint,
    wait_for_no_endpoint, wait_until,
};

/// Until every host knows that a service is gone. The kernel tells at once; the rest is the busy machine.
const QUICKLY: Duration = Duration::from_secs(3);

#[test]
fn a_service_that_listened_before_the_agent_is_reachable_until_it_stops() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let listener = greet(service, 8181)?;
    let daemons = Daemons::start(&lab)?;
    wait_for_endpoint(client, service, 8181)?;
    ensure!(daemons.ask_through_mesh(client, service, 8181)? == greeting(service));
    listener.stop(DEADLINE)?;
    wait_for_no_endpoint(client, service, 8181)
}

#[test]
fn a_service_that_starts_after_the_agent_is_reachable_and_again_after_each_restart() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    for _ in 0..3 {
        let listener = greet(service, 8181)?;
        wait_for_endpoint(client, service, 8181)?;
        ensure!(daemons.ask_through_mesh(client, service, 8181)? == greeting(service));
        listener.stop(DEADLINE)?;
        wait_for_no_endpoint(client, service, 8181)?;
    }
    Ok(())
}

#[test]
fn a_listener_that_is_killed_leaves_the_catalog_of_other_hosts_quickly() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let _daemons = Daemons::start(&lab)?;
    let mut listener = greet(service, 8181)?;
    wait_for_endpoint(client, service, 8181)?;
    let started = Instant::now();
    listener.signal(Signal::SIGKILL)?;
    wait_for_no_endpoint(client, service, 8181)?;
    let taken = started.elapsed();
    ensure!(taken < patience(QUICKLY), "it took {taken:?}");
    listener.wait(DEADLINE)?;
    Ok(())
}

#[test]
fn a_group_of_listeners_on_one_port_is_served_until_the_last_is_gone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let [first, second] = [greet_with(service, 8181, "reuseport")?, greet_with(service, 8181, "reuseport")?];
    wait_for_endpoint(client, service, 8181)?;
    first.stop(DEADLINE)?;
    // What is reported later is known to be known by everybody only after what was reported before.
    let _later = greet(service, 8182)?;
    wait_for_endpoint(client, service, 8182)?;
    ensure!(endpoints(client)?.contains(&format!("{}:8181", service.ipv4())));
    for _ in 0..5 {
        ensure!(daemons.ask_through_mesh(client, service, 8181)? == greeting(service));
    }
    second.stop(DEADLINE)?;
    wait_for_no_endpoint(client, service, 8181)
}

/// A service that is started for each connection by who listens in its place, as systemd does.
fn greet_when_activated(host: &Host, port: u16) -> Result<Process> {
    let (address, says) = (format!("0.0.0.0:{port}"), format!("hello from {}", host.name()));
    let activated = ["-l", &address, "--accept", "--inetd", "echo", &says];
    let service = host.spawn("systemd-socket-activate", activated)?;
    host.wait_listening(port, DEADLINE)?;
    Ok(service)
}

#[test]
fn listeners_from_before_and_after_the_agent_in_groups_and_activated_are_reached_and_refuse_outsiders_when_strict()
-> Result<()> {
    let [before, after, group, activated] = [8181, 8182, 8183, 8184];
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let _before = [greet(service, before)?, greet_with(service, group, "reuseport")?];
    let daemons = Daemons::start(&lab)?;
    let _after = [greet(service, after)?, greet_with(service, group, "reuseport")?];
    let _activated = greet_when_activated(service, activated)?;
    let address = service.ipv4().to_string();
    for port in [before, after, group, activated] {
        wait_for_endpoint(client, service, port)?;
        ensure!(daemons.ask_through_mesh(client, service, port)? == greeting(service), "port {port}");
        let set =
            ["service", "set", &format!("service-{port}"), "--host", "fcs00", "--port", &port.to_string()];
        server.murmesh(set.iter().chain(&["--mode", "strict", "--force"]))?;
        wait_until("outsiders are refused", || Ok(ask(server, &address, port).is_err()))?;
        wait_until("the mesh is let in", || {
            Ok(ask(client, &address, port).is_ok_and(|answer| answer == greeting(service)))
        })?;
    }
    Ok(())
}
