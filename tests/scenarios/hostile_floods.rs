//! Connections to ports 9191 and 9190 that take what others need: permits for handshakes, tunnels, time.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh::identity::tls;
use murmesh_lab::{Host, Lab, Process, Topology};

use crate::support::key_updates::flood_key_updates;
use crate::support::peer::{Target, drip, hello, hold, hold_tunnels, stolen};
use crate::support::{DEADLINE, Daemons, greet, greeting, json, skipped, wait_for_endpoint, wait_until};

const PORT: u16 = 8181;

/// How many connections to its port the agent of `host` has refused for that reason.
fn refused(host: &Host, reason: &str) -> Result<u64> {
    Ok(json(host, "status")?["refused"][reason].as_u64().unwrap_or_default())
}

#[test]
fn handshakes_that_stall_keep_no_host_from_its_first_tunnel() -> Result<()> {
    /// More than handshakes are done at a time, for strangers and for hosts.
    const STALLED: usize = 600;
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 1, clients: 3 })?;
    let (service, attacker) = (lab.host("fcs00")?, lab.host("fcc02")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let _listener = greet(service, PORT)?;
    for (client, attacker_is_host) in [("fcc00", false), ("fcc01", true)] {
        let client = lab.host(client)?;
        daemons.start_agent(client)?;
        wait_for_endpoint(client, service, PORT)?;
        if attacker_is_host {
            daemons.start_agent(attacker)?;
            // Its address is known where it goes to.
            wait_until("the attacker is a host of the mesh", || {
                let members = json(service, "members")?;
                Ok(members.as_array().is_some_and(|all| all.iter().any(|member| member["node"] == "fcc02")))
            })?;
        }
        let identity = stolen(client)?;
        let target = Target::agent_of(service, &identity)?;
        let hello = hello(&identity, &target)?;
        let timed_out = refused(service, "timed_out")?;
        let (ready, stalled) = mpsc::channel();
        thread::scope(|scope| -> Result<()> {
            let hold = || hold(attacker, target.address, &hello, STALLED, move || _ = ready.send(()));
            let (stalling, slow) = (
                scope.spawn(hold),
                scope.spawn(|| drip(attacker, target.address, &hello, Duration::from_millis(50))),
            );
            stalled.recv_timeout(DEADLINE)?;
            ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
            // Each ends when the agent has had enough.
            for attack in [stalling, slow] {
                attack.join().ok().context("the attacker panicked")??;
            }
            Ok(())
        })?;
        wait_until("they are counted", || Ok(refused(service, "timed_out")? > timed_out))?;
    }
    Ok(())
}

#[test]
fn a_host_that_takes_all_the_tunnels_it_may_leaves_some_to_others() -> Result<()> {
    const DESCRIPTORS: u32 = 1024;
    /// More than the half of three quarters of them.
    const TUNNELS: usize = 500;
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 1, clients: 2 })?;
    let (client, traitor, service) = (lab.host("fcc00")?, lab.host("fcc01")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    let agent = service.agent_command(&daemons.token(service)?)?;
    let mut limited = service.command("prlimit")?;
    limited
        .arg(format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}"))
        .arg(agent.get_program())
        .args(agent.get_args());
    daemons.start_agent_by(service, &mut limited)?;
    daemons.start_agent(client)?;
    daemons.start_agent(traitor)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    let identity = &stolen(traitor)?;
    let target = &Target::agent_of(service, identity)?;
    let (ready, opened) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let hold =
            move || hold_tunnels(traitor, identity, target, TUNNELS, move || _ = ready.send(()), released);
        let holding = scope.spawn(hold);
        let served = opened.recv_timeout(DEADLINE).map_err(anyhow::Error::from).and_then(|()| {
            wait_until("it is refused more", || Ok(refused(service, "too_many_of_host")? > 0))?;
            daemons.ask_through_mesh(client, service, PORT)
        });
        drop(release);
        holding.join().ok().context("the traitor panicked")??;
        ensure!(served? == greeting(service));
        Ok(())
    })
}

/// Resident memory of a process in KiB.
fn memory(process: &Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a line with VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_host_that_updates_keys_without_end_takes_neither_memory_nor_turns_from_others() -> Result<()> {
    /// What begins an HTTP/2 connection (RFC 9113, section 3.4), and a frame of it that nobody answers (6.9).
    const HTTP: [&[u8]; 2] =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01"];
    const CUT_OFF: u64 = 20;
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 1, clients: 2 })?;
    let (client, traitor, service) = (lab.host("fcc00")?, lab.host("fcc01")?, lab.host("fcs00")?);
    let server = lab.host("murmesh00")?;
    let daemons = Daemons::start(&lab)?;
    let identity = stolen(traitor)?;
    let agent = Target::agent_of(service, &identity)?;
    let to_agent = (agent.address, tls::tunnel_client(&identity, &agent.id)?);
    let to_server = (SocketAddr::from((server.ipv4(), 9190)), tls::api_client(&identity)?);
    for (host, daemon, (address, config), said, is_cut_off) in [
        (service, daemons.agent(service)?, &to_agent, [b"".as_slice(); 2], true),
        (server, daemons.server()?, &to_server, [b"".as_slice(); 2], true),
        // With something in between rustls goes on, and so may who has a certificate.
        (server, daemons.server()?, &to_server, HTTP, false),
    ] {
        let (cut_off, before) = (refused(host, "broke_protocol")?, memory(daemon)?);
        let enough = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let flood = scope.spawn(|| flood_key_updates(traitor, *address, config, said, &enough));
            let served = [8301, 8302, 8303].into_iter().try_for_each(|port| {
                let _listener = greet(service, port)?;
                wait_for_endpoint(client, service, port)?;
                let answer = daemons.ask_through_mesh(client, service, port)?;
                ensure!(answer == greeting(service), "{answer:?}");
                Ok(())
            });
            let counted = served.and_then(|()| {
                wait_until("it is cut off", || {
                    Ok(!is_cut_off || refused(host, "broke_protocol")? >= cut_off + CUT_OFF)
                })
            });
            enough.store(true, Ordering::Relaxed);
            flood.join().ok().context("the traitor panicked")??;
            counted
        })?;
        let grown = memory(daemon)?.saturating_sub(before);
        ensure!(grown < 16 * 1024, "{} grew by {grown} KiB", host.name());
    }
    Ok(())
}
