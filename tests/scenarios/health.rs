//! What takes an instance of a named service out: its check, the loss of its host, an administrator.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, Process, Steady};
use nix::sys::signal::Signal;

use crate::support::instances::{Instances, PORT};
use crate::support::{ask, greet, greeting, wait_for_endpoint, wait_until};

const HOSTS: [&str; 2] = ["fcs00", "fcs01"];

/// A check that fails while there is a file called `ill` beside it.
fn make_check(host: &Host) -> Result<()> {
    let directory = host.checks_directory();
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
    let check = directory.join("is-well");
    fs::write(&check, format!("#!/bin/sh\ntest ! -e {}/ill\n", directory.display()))?;
    Ok(fs::set_permissions(check, Permissions::from_mode(0o755))?)
}

#[test]
fn an_instance_whose_check_fails_gets_no_connections_until_it_succeeds_again() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    for host in HOSTS {
        make_check(mesh.host(host)?)?;
    }
    let check = ["--check", "command:is-well", "--check-interval", "1s", "--check-timeout", "1s"];
    let once = ["--check-failures", "1", "--check-successes", "1"];
    let instances = Instances::start(&mesh, &HOSTS, &[&check[..], &once[..]].concat())?;
    ensure!(instances.who("fcs00")? == "fcs00");
    let ill = mesh.host("fcs00")?.checks_directory().join("ill");
    fs::write(&ill, "")?;
    let reason = instances.wait_state("fcs00", "failing")?;
    ensure!(reason == "command:is-well: exit status: 1", "{reason}");
    ensure!(instances.who("fcs00")? == "fcs01");
    fs::remove_file(&ill)?;
    instances.wait_healthy(&["fcs00"])?;
    ensure!(instances.who("fcs00")? == "fcs00");
    fs::write(&ill, "")?;
    instances.wait_state("fcs00", "failing")?;
    mesh.host("murmesh00")?.murmesh(["service", "set", "fortune", "--check", "none"])?;
    instances.wait_healthy(&["fcs00"])
}

/// A service on the client's port that answers everybody with the file, whatever it is asked.
fn serve_file(host: &Host, path: &Path) -> Result<Process> {
    let listen = format!("tcp-l:{PORT},fork,reuseaddr");
    let service = host.spawn("socat", [listen, format!("system:read request; cat {}", path.display())])?;
    host.wait_listening(PORT, DEADLINE)?;
    Ok(service)
}

#[test]
fn a_web_service_that_answers_with_an_error_gets_no_connections_until_it_is_well() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let check = ["--check", "http:/health", "--check-interval", "300ms", "--check-timeout", "300ms"];
    let instances = Instances::start(&mesh, &HOSTS[1..], &[])?;
    let host = mesh.host("fcs00")?;
    let answer = host.data_directory().join("answer");
    fs::write(&answer, "HTTP/1.0 204 Fine\r\n\r\n")?;
    let _web = serve_file(host, &answer)?;
    let set = ["service", "set", "fortune", "--host", "fcs00"];
    mesh.host("murmesh00")?.murmesh(set.iter().chain(&check))?;
    instances.wait_healthy(&["fcs00"])?;
    fs::write(&answer, "HTTP/1.0 503 Busy\r\n\r\n")?;
    let reason = instances.wait_state("fcs00", "failing")?;
    ensure!(reason == "http:/health: status 503", "{reason}");
    let dial = ["connect", &instances.address("fcs00")?.to_string(), "--fails", "ECONNREFUSED"];
    instances.wait_available("fcs00", false)?;
    mesh.client()?.probe(dial)?.succeed(DEADLINE)?;
    fs::write(&answer, "HTTP/1.0 204 Fine\r\n\r\n")?;
    instances.wait_healthy(&["fcs00"])?;
    let asked = mesh.client()?.run("nc", ["fcs00", "8181"], b"GET / HTTP/1.0\r\n\r\n", DEADLINE)?;
    ensure!(asked.stdout.starts_with(b"HTTP/1.0 204"), "{asked:?}");
    Ok(())
}

/// It listens still, and the kernel takes connections for it until its queue is full: with those of the check.
#[test]
fn a_process_that_hangs_gets_no_connections_until_it_goes_on() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let mut instances = Instances::start(&mesh, &HOSTS, &[])?;
    instances.kill("fcs00")?;
    let host = mesh.host("fcs00")?;
    let listen = format!("tcp-l:{PORT},fork,reuseaddr,backlog=1");
    let hanging = host.spawn("socat", [listen.as_str(), "exec:echo it goes on"])?;
    host.wait_listening(PORT, DEADLINE)?;
    let check = ["--check", "tcp", "--check-interval", "300ms", "--check-timeout", "300ms"];
    mesh.host("murmesh00")?.murmesh(["service", "set", "fortune"].iter().chain(&check))?;
    instances.wait_healthy(&["fcs00"])?;
    hanging.signal(Signal::SIGSTOP)?;
    let reason = instances.wait_state("fcs00", "failing")?;
    ensure!(reason == "tcp: no answer within 300ms", "{reason}");
    ensure!(instances.who("fcs00")? == "fcs01");
    hanging.signal(Signal::SIGCONT)?;
    instances.wait_healthy(&["fcs00"])?;
    ensure!(instances.who("fcs00")? == "it goes on\n");
    Ok(())
}

#[test]
fn connections_to_a_host_that_is_unplugged_go_to_another_and_none_fails() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let instances = Instances::start(&mesh, &HOSTS, &[])?;
    let load = Steady::begin(mesh.client()?, instances.address("fcs00")?)?;
    mesh.host("fcs00")?.unplug()?;
    let reason = instances.wait_state("fcs00", "lost")?;
    ensure!(reason == "no server hears of the host", "{reason}");
    ensure!(instances.who("fcs00")? == "fcs01");
    load.end()?.ensure_all_answered()
}

#[test]
fn a_lone_instance_on_a_host_without_an_agent_is_refused_until_that_is_back() -> Result<()> {
    let Some(mut mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let port = PORT.to_string();
    mesh.host("murmesh00")?.murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", &port])?;
    let _service = mesh.serve(mesh.host("fcs00")?, PORT, "murmesh-probe", ["name", "fcs00", &port])?;
    mesh.kill_agent("fcs00")?;
    let destination = (mesh.host("fcs00")?.ipv4(), PORT).into();
    murmesh_lab::wait_for_availability(mesh.client()?, destination, false)?;
    let dial = ["connect", &destination.to_string(), "--fails", "ECONNREFUSED"];
    mesh.client()?.probe(dial)?.succeed(DEADLINE)?;
    let again = mesh.host("fcs00")?.start_agent(&mesh.host("murmesh00")?.create_token()?)?;
    murmesh_lab::wait_for_availability(mesh.client()?, destination, true)?;
    ensure!(ask(mesh.client()?, "fcs00", PORT)? == "fcs00");
    drop(again);
    Ok(())
}

#[test]
fn a_drained_instance_gets_no_new_connections_and_its_old_ones_end_by_themselves() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let instances = Instances::start(&mesh, &["fcs01"], &[])?;
    let server = mesh.host("murmesh00")?;
    let steps = ["send=one", "wait", "send=two", "shutdown"];
    let mut service = mesh.listen(PORT, &steps)?;
    server.murmesh(["service", "set", "fortune", "--host", "fcs00,fcs01"])?;
    instances.wait_healthy(&HOSTS)?;
    let client = mesh.connect(PORT, &["expect=one", "say=told", "expect=two", "end"])?;
    client.wait_for_line("told", DEADLINE)?;
    server.murmesh(["service", "drain", "fortune", "fcs00"])?;
    ensure!(instances.wait_state("fcs00", "drained")? == "drained");
    instances.wait_available("fcs00", true)?;
    wait_until("new connections go elsewhere", || Ok(instances.who("fcs00")? == "fcs01"))?;
    writeln!(service.take_stdin().context("stdin is open")?)?;
    client.succeed(DEADLINE)?;
    server.murmesh(["service", "undrain", "fortune", "fcs00"])?;
    service.succeed(DEADLINE)?;
    ensure!(instances.wait_state("fcs00", "down")? == "nothing listens on the port");
    Ok(())
}

#[test]
fn a_drained_host_gets_no_new_connections_at_all() -> Result<()> {
    let Some(mesh) = Mesh::start(2, 1)? else { return Ok(()) };
    let instances = Instances::start(&mesh, &HOSTS, &[])?;
    let (server, client, host) = (mesh.host("murmesh00")?, mesh.client()?, mesh.host("fcs00")?);
    let _unnamed = greet(host, 8282)?;
    wait_for_endpoint(client, host, 8282)?;
    let unnamed = (host.ipv4(), 8282).into();
    let said = server.murmesh(["host", "drain", "fcs00"])?;
    ensure!(said == "drained hosts: fcs00\n", "{said}");
    murmesh_lab::wait_for_availability(client, unnamed, false)?;
    let dial = ["connect", &unnamed.to_string(), "--fails", "ECONNREFUSED"];
    client.probe(dial)?.succeed(DEADLINE)?;
    ensure!(instances.wait_state("fcs00", "drained")? == "the host is drained");
    ensure!(instances.who("fcs00")? == "fcs01");
    server.murmesh(["host", "undrain", "fcs00"])?;
    murmesh_lab::wait_for_availability(client, unnamed, true)?;
    ensure!(ask(client, "fcs00", 8282)? == greeting(host));
    instances.wait_healthy(&["fcs00"])?;
    ensure!(instances.who("fcs00")? == "fcs00");
    Ok(())
}
