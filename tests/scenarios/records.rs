//! The records by which original destinations and real clients travel in the kernel.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use anyhow::{Result, ensure};
use murmesh_lab::{Lab, Mesh, Process, Topology, status};

use crate::support::kernel::records_in_flight;
use crate::support::{DEADLINE, Daemons, ask, greet, greeting, skipped, text, wait_for_endpoint, wait_until};

const PORT: u16 = 8282;

const CONNECTIONS: usize = 20;

/// A listener outside of the cgroup has no hook that takes the record from the agent's dialling socket. What stays
/// behind would later be believed of whoever has the same addresses by then.
#[test]
fn a_record_that_nobody_takes_is_gone_with_its_connection() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let _daemons = Daemons::start(&lab)?;
    let listener = service.in_namespace(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
    wait_for_endpoint(client, service, PORT)?;
    let accepting = thread::spawn(move || -> Result<()> {
        for _ in 0..CONNECTIONS {
            let mut received = Vec::new();
            listener.accept()?.0.read_to_end(&mut received)?;
            ensure!(received == b"hello", "{received:?}");
        }
        Ok(())
    });
    for _ in 0..CONNECTIONS {
        let output = client.run("nc", ["-N", "fcs00", "8282"], b"hello", DEADLINE)?;
        ensure!(output.status.success(), "{output:?}");
    }
    accepting.join().expect("the accepting thread does not panic")?;
    for host in [client, service] {
        wait_until("no record is left", || Ok(records_in_flight(host)? == 0))?;
    }
    Ok(())
}

#[test]
fn a_connection_without_a_record_is_reset_and_counted() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let client = mesh.client()?;
    let before = status(client, "/traffic/missing_records")?;
    for loopback in ["127.0.0.1:15001", "[::1]:15001"] {
        let reset = client.probe(["connect", loopback, "expect-reset"])?.output(DEADLINE)?;
        // On a slow machine it arrives before `connect` has returned.
        let in_connect = text(&reset.stderr).contains("connect: ECONNRESET");
        ensure!(reset.status.success() || in_connect, "{reset:?}");
    }
    ensure!(status(client, "/traffic/missing_records")? == before + 2);
    ensure!(status(client, "/traffic/streams_total")? == 0, "a destination was guessed");
    mesh.agent("fcc00")?.wait_for_line("no original destination", DEADLINE)?;
    Ok(())
}

#[test]
fn what_the_kernel_half_logs_is_in_the_log_of_the_agent() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let mut command = client.agent_command(&daemons.token(client)?)?;
    let agent = Process::spawn(command.env("MURMESH_LOG", "info,murmesh_programs=debug"))?;
    agent.wait_for_line(": ready", DEADLINE)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    agent.wait_for_line("murmesh_programs::connect4: connect to 10.99.0.20:8282 redirected", DEADLINE)?;
    Ok(())
}
