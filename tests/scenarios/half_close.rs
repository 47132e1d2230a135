//! A direction that has ended leaves the other one open.

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh};

use crate::support::{text, wait_until};

const PORT: u16 = 8500;

/// How many connections have one direction end before the other, each way; without it a few hundred.
const HALF_CLOSES: &str = "MURMESH_HALF_CLOSES";

fn play(service: &[&str], client: &[&str]) -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let service = mesh.listen(PORT, service)?;
    mesh.connect(PORT, client)?.succeed(DEADLINE)?;
    service.succeed(DEADLINE)?;
    mesh.ensure_carried(1)
}

#[test]
fn the_answer_arrives_a_second_after_the_client_has_ended() -> Result<()> {
    play(
        &["expect=question", "end", "pause=1000", "send=answer"],
        &["send=question", "shutdown", "expect=answer", "end"],
    )
}

#[test]
fn the_client_sends_on_a_second_after_the_service_has_ended() -> Result<()> {
    play(
        &["send=greeting", "shutdown", "expect=late", "end"],
        &["expect=greeting", "end", "pause=1000", "send=late"],
    )
}

#[test]
fn an_end_before_the_first_byte_is_an_end() -> Result<()> {
    play(&["end", "send=answer"], &["shutdown", "expect=answer", "end"])
}

#[test]
fn nc_and_socat_wait_for_an_answer_a_second_after_end_of_input() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let listen = format!("tcp-l:{PORT},fork,reuseaddr");
    let service = [&listen, "system:wc -c; sleep 1; echo done", "-t5"];
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [service[2], service[0], service[1]])?;
    let target = format!("tcp:fcs00:{PORT}");
    let port = PORT.to_string();
    let clients: [&[&str]; 2] = [&["nc", "-N", "fcs00", &port], &["socat", "-t5", "-", &target]];
    for client in clients {
        let output = mesh.client()?.run(client[0], &client[1..], b"four", DEADLINE)?;
        let answer = String::from_utf8(output.stdout)?;
        ensure!(answer == "4\ndone\n", "{client:?}: {answer:?}");
    }
    mesh.ensure_carried(2)
}

/// TCP sockets of `host` of which one direction has ended.
fn half_closed(host: &Host) -> Result<String> {
    let states = ["fin-wait-1", "fin-wait-2", "close-wait", "last-ack", "closing"];
    let arguments = ["-Htan"].into_iter().chain(states.iter().flat_map(|state| ["state", state]));
    Ok(text(&host.run("ss", arguments, b"", DEADLINE)?.stdout))
}

/// Every answer is whole, and no socket stays half closed on either host.
fn many(service: &[&str], client: &[&str]) -> Result<()> {
    const FIRST_PORT: u16 = 20000;
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let connections: u64 =
        env::var(HALF_CLOSES).map_or(Ok(300), |number| number.parse()).context(HALF_CLOSES)?;
    let host = mesh.service()?;
    let serving = host.probe(["serve-ports", "fcs00", "--count=1"].iter().chain(service))?;
    serving.wait_for_line("listening", DEADLINE)?;
    mesh.wait_carried(&[SocketAddr::from((host.ipv4(), FIRST_PORT))])?;
    let (number, target) = (format!("--connections={connections}"), format!("fcs00={}", host.ipv4()));
    let storm = ["storm", "--parallel=8", "--count=1", &number, &target];
    let said = mesh.client()?.probe(storm.iter().chain(client))?.succeed(Duration::from_secs(600))?;
    let outcome: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(outcome["right"] == connections, "{outcome}");
    mesh.ensure_carried(connections)?;
    for host in [host, mesh.client()?] {
        wait_until("no socket is half closed", || Ok(half_closed(host)?.is_empty()))?;
    }
    Ok(())
}

#[test]
fn many_clients_that_end_first_have_whole_answers_and_leave_no_socket_half_closed() -> Result<()> {
    many(&["--after-end"], &["--ends-first"])
}

#[test]
fn many_services_that_end_first_are_heard_to_the_end_and_leave_no_socket_half_closed() -> Result<()> {
    many(&[], &[])
}
