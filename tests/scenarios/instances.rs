//! Several instances of one named service: who gets a connection, and what becomes of it when an instance dies.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Mesh, Steady};
use nix::sys::signal::Signal;

use crate::support::instances::{Instances, PORT};
use crate::support::{murmesh, text};

const HOSTS: [&str; 3] = ["fcs00", "fcs01", "fcs02"];

#[test]
fn a_client_gets_the_instance_that_it_dials_and_another_while_that_one_is_dead() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let mut instances = Instances::start(&mesh, &HOSTS[..2], &[])?;
    ensure!(instances.who("fcs00")? == "fcs00" && instances.who("fcs01")? == "fcs01");
    instances.kill("fcs00")?;
    ensure!(instances.who("fcs00")? == "fcs01", "at once");
    let reason = instances.wait_state("fcs00", "down")?;
    ensure!(reason == "nothing listens on the port", "{reason}");
    ensure!(instances.who("fcs00")? == "fcs01", "and for as long as it is known to be dead");
    mesh.agent("fcc00")?.wait_for_line(" instance=10.99.0.21:8181 ", DEADLINE)?;
    instances.run("fcs00")?;
    instances.wait_healthy(&["fcs00"])?;
    ensure!(instances.who("fcs00")? == "fcs00");
    Ok(())
}

#[test]
fn connections_are_spread_over_all_instances_where_that_is_wanted() -> Result<()> {
    let Some(mesh) = Mesh::start(3, 1)? else { return Ok(()) };
    for balance in ["round-robin", "least-connections"] {
        let instances = Instances::start(&mesh, &HOSTS, &["--balance", balance])?;
        let load = Steady::begin(mesh.client()?, instances.address("fcs00")?)?;
        let mut seen = BTreeSet::new();
        let begun = Instant::now();
        while seen.len() < HOSTS.len() && begun.elapsed() < DEADLINE {
            seen.insert(instances.who("fcs00")?);
        }
        load.end()?.ensure_all_answered()?;
        ensure!(seen.len() == HOSTS.len(), "{balance}: {seen:?}");
    }
    Ok(())
}

#[test]
fn without_a_healthy_instance_connect_itself_is_refused_and_nothing_goes_in_clear() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let mut instances = Instances::start(&mesh, &HOSTS[..2], &[])?;
    let wire = mesh.client()?.capture(&format!("tcp port {PORT}"))?;
    for host in &HOSTS[..2] {
        instances.kill(host)?;
    }
    for host in &HOSTS[..2] {
        instances.wait_available(host, false)?;
        for address in mesh.host(host)?.addresses() {
            let destination = std::net::SocketAddr::new(address, PORT).to_string();
            for options in [&[][..], &["--nonblocking"]] {
                let dial = ["connect", &destination, "--fails", "ECONNREFUSED"];
                mesh.client()?.probe(dial.iter().chain(options))?.succeed(DEADLINE)?;
            }
        }
    }
    instances.run("fcs01")?;
    instances.wait_available("fcs00", true)?;
    ensure!(instances.who("fcs00")? == "fcs01", "one is enough");
    ensure!(wire.stop()?.packets().is_empty(), "something was sent in clear");
    Ok(())
}

/// No server tells the client's agent of the death, so each connection finds out for itself.
#[test]
fn what_a_client_has_sent_already_gets_to_the_instance_that_takes_it() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let (port, first) = (PORT.to_string(), format!("--first={PORT}"));
    let set =
        ["service", "set", "fortune", "--host", "fcs00,fcs01", "--port", &port, "--balance", "round-robin"];
    mesh.host("murmesh00")?.murmesh(set)?;
    let serve = ["serve-ports", "it", &first, "--count=1"];
    let mut services = Vec::new();
    for host in &HOSTS[..2] {
        let service = mesh.host(host)?.probe(serve)?;
        service.wait_for_line("listening", DEADLINE)?;
        services.push(service);
        mesh.wait_carried(&[(mesh.host(host)?.ipv4(), PORT).into()])?;
    }
    let storm = ["storm", "--connections=60", "--parallel=4", &first, "--count=1", "it=10.99.0.20"];
    let all_are_answered = || -> Result<()> {
        let said = mesh.client()?.probe(storm)?.succeed(Duration::from_secs(60))?;
        ensure!(said.contains("\"right\":60"), "{said}");
        Ok(())
    };
    all_are_answered()?;
    mesh.server().signal(Signal::SIGKILL)?;
    services.remove(0).stop(DEADLINE)?;
    all_are_answered()?;
    let refused =
        |log: &[u8]| ["connection_refused", "not_a_service"].iter().any(|word| text(log).contains(word));
    mesh.agent("fcs00")?.wait_for_stdout(DEADLINE, refused).context("none was refused")
}

#[test]
fn no_connection_fails_while_instances_are_killed_one_after_the_other() -> Result<()> {
    const ROUNDS: usize = 6;
    let Some(mesh) = Mesh::start(3, 1)? else { return Ok(()) };
    let mut instances = Instances::start(&mesh, &HOSTS, &[])?;
    let load = Steady::begin(mesh.client()?, instances.address("fcs00")?)?;
    for round in 0..ROUNDS {
        // That which clients dial, most of the time.
        let victim = HOSTS[if round % 3 == 2 { 1 } else { 0 }];
        instances.kill(victim)?;
        instances.wait_state(victim, "down")?;
        instances.run(victim)?;
        instances.wait_healthy(&[victim])?;
    }
    load.end()?.ensure_all_answered()
}

#[test]
fn a_rule_about_the_host_of_an_instance_holds_for_what_is_sent_there_in_its_stead() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let mut instances = Instances::start(&mesh, &HOSTS[..2], &[])?;
    let server = mesh.host("murmesh00")?;
    server.murmesh(["deny", "fcc00", "fcs01"])?;
    instances.kill("fcs00")?;
    instances.wait_state("fcs00", "down")?;
    let refused = murmesh(mesh.client()?, &["policy", "test", "fcc00", "fcs01:8181"])?;
    ensure!(refused.status.code() == Some(1), "{}", text(&refused.stdout));
    // A reset is an error to some versions of nc, and an end to others.
    ensure!(instances.who("fcs00").unwrap_or_default().is_empty(), "a denied instance answered");
    let log = text(&mesh.agent("fcs01")?.stdout());
    ensure!(!log.contains("direction=\"inbound\""), "the denied instance was tried: {log}");
    Ok(())
}
