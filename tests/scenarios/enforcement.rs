//! What the kernel refuses: by workload, over every address family, on this host and outside the mesh, and plaintext
//! on its way to a strict service.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Mesh, Process, Topology, patience};

use crate::in_clear::link_local;
use crate::support::{Daemons, greet, skipped, text, wait_for_endpoint};

const PORT: u16 = 8181;
const FORBIDDEN: &str = "Operation not permitted";

/// Runs a script in a cgroup of `host`, and says whether it succeeded, and what it printed on its stderr.
fn run_in(host: &Host, cgroup: &str, script: &str) -> Result<(bool, String)> {
    let directory = host.cgroup().join(cgroup);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let script = format!("echo $$ > {}/cgroup.procs; {script}", directory.display());
    let output = host.run("sh", ["-c", &script], b"", DEADLINE)?;
    Ok((output.status.success(), text(&output.stderr).clone()))
}

/// Runs it until it succeeds, or is forbidden, as `allowed` says: rules take a moment to arrive.
fn until(host: &Host, cgroup: &str, script: &str, allowed: bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let (succeeded, said) = run_in(host, cgroup, script)?;
        if succeeded == allowed && (allowed || said.contains(FORBIDDEN)) {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < patience(DEADLINE),
            "{script} in {cgroup:?}: wanted {allowed}, it said {said:?}"
        );
    }
}

/// A mesh with a service at `PORT` of `fcs00`.
fn mesh() -> Result<Option<(Mesh, Process)>> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(None) };
    let listen = format!("tcp6-l:{PORT},ipv6only=0,fork,reuseaddr");
    let service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:/bin/true"])?;
    Ok(Some((mesh, service)))
}

#[test]
fn a_workload_is_told_by_its_unit_and_its_user_and_nothing_else() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (server, client) = (mesh.host("murmesh00")?, mesh.client()?);
    let dial = "nc -vz fcs00 8181";
    server.murmesh(["deny", "host/fcc00/blocked.service", "fcs00"])?;
    until(client, "blocked.service", dial, false)?;
    until(client, "blocked.service/worker", dial, false)?;
    // Made a moment ago, and known at once or left to the agent; never taken for another.
    for other in ["", "other.service", "other.service/blocked.service", "user.slice/blocked.service"] {
        until(client, other, dial, true)?;
    }

    server.murmesh(["deny", "host/*/user-nobody", "fcs00:8181"])?;
    let as_nobody = format!("exec setpriv --reuid=65534 --clear-groups {dial}");
    until(client, "", &as_nobody, false)?;
    until(client, "user.slice/session-1.scope", &as_nobody, false)?;
    until(client, "other.service", &as_nobody, true)?;
    until(client, "", dial, true)
}

#[test]
fn every_address_of_a_service_is_forbidden_also_on_its_own_host() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (server, client, service) = (mesh.host("murmesh00")?, mesh.client()?, mesh.service()?);
    server.murmesh(["deny", "*", "fcs00:8181"])?;
    let mapped = format!("[::ffff:{}]", service.ipv4());
    let elsewhere = [service.ipv4().to_string(), format!("[{}]", service.ipv6()), mapped];
    for address in &elsewhere {
        until(client, "", &format!("socat -u /dev/null tcp:{address}:8181"), false)?;
    }
    for address in elsewhere.iter().map(String::as_str).chain(["127.0.0.1", "127.8.8.8", "[::1]", "0.0.0.0"])
    {
        until(service, "", &format!("socat -u /dev/null tcp:{address}:8181"), false)?;
    }
    let own = format!("socat -u /dev/null tcp6:[{}%eth0]:8181", link_local(service)?);
    until(service, "", &own, false)?;
    // A socket that is bound to a mapped address gets to 127.0.0.1 when it dials `::`.
    until(service, "", "socat -u /dev/null tcp6:[::]:8181,bind=[::ffff:127.0.0.1]", false)?;
    server.murmesh(["policy", "delete", "1"])?;
    until(service, "", "nc -z 127.0.0.1 8181", true)?;
    until(service, "", &own, true)
}

#[test]
fn nothing_leaves_the_mesh_by_tcp_or_udp_but_what_a_rule_allows() -> Result<()> {
    let Some(mut mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    // Of the server's host nothing is in the mesh: it has no agent.
    let address = mesh.host("murmesh00")?.ipv4();
    let _tcp = mesh.host("murmesh00")?.spawn("socat", ["tcp-l:7000,fork,reuseaddr", "exec:/bin/true"])?;
    mesh.host("murmesh00")?.wait_listening(7000, DEADLINE)?;
    let tcp = format!("nc -vz {address} 7000");
    let connected = format!("echo x | socat -u - udp-connect:{address}:7000");
    let unconnected = format!("echo x | socat -u - udp-sendto:{address}:7000");
    let mapped = format!("echo x | socat -u - udp6-sendto:[::ffff:{address}]:7000");
    let every = [&tcp, &connected, &unconnected, &mapped];
    {
        let (server, client) = (mesh.host("murmesh00")?, mesh.client()?);
        every.iter().try_for_each(|script| until(client, "", script, true))?;
        server.murmesh(["policy", "default", "--egress", "deny"])?;
        every.iter().try_for_each(|script| until(client, "", script, false))?;
        until(client, "", "nc -u -z 127.0.0.1 7000", true)?;

        server.murmesh(["allow", "host/fcc00/resolver.service", "10.99.0.0/16:7000/udp"])?;
        until(client, "resolver.service", &unconnected, true)?;
        until(client, "resolver.service", &connected, true)?;
        until(client, "resolver.service", &tcp, false)?;
        until(client, "", &unconnected, false)?;
        server.murmesh(["deny", "host/fcc00/resolver.service", &format!("{address}/32")])?;
        until(client, "resolver.service", &unconnected, false)?;
    }
    mesh.kill_agent("fcc00")?;
    let client = mesh.client()?;
    every.iter().try_for_each(|script| until(client, "", script, false))
}

#[test]
fn a_strict_service_refuses_plaintext_from_outside_and_nothing_else() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { clients: 2, ..Topology::default() })?;
    let (server, service, client) = (lab.host("murmesh00")?, lab.host("fcs00")?, lab.host("fcc00")?);
    let outsider = lab.host("fcc01")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    daemons.start_agent(client)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    let dial = format!("nc -vz {} {PORT}", service.ipv4());
    let in_clear = || run_in(outsider, "", &dial);
    ensure!(in_clear()?.0, "permissive by default");

    let set = ["service", "set", "fortune", "--host", "fcs00", "--port", "8181", "--mode"];
    let mode = |mode: &str, exception: &str| {
        let more = [mode, "--except", exception, "--force"].map(str::to_owned);
        let arguments = set.iter().map(|word| (*word).to_owned()).chain(more);
        let output = server.run("murmesh", arguments, b"", DEADLINE)?;
        ensure!(output.status.success(), "{}", text(&output.stderr));
        Ok(())
    };
    let wait = |admitted: bool| {
        let begun = Instant::now();
        loop {
            let (is_admitted, said) = in_clear()?;
            if is_admitted == admitted {
                ensure!(admitted || said.contains("refused"), "{said}");
                return Ok(());
            }
            ensure!(begun.elapsed() < patience(DEADLINE), "wanted {admitted}: {said}");
        }
    };
    mode("strict", "none")?;
    wait(false)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    for address in [service.ipv4().to_string(), "127.0.0.1".to_owned()] {
        ensure!(run_in(service, "", &format!("nc -z {address} {PORT}"))?.0, "{address} on the host itself");
    }
    // With the agent killed it stays so, and until the next one knows better.
    daemons.kill_agent(service)?;
    ensure!(!in_clear()?.0, "refused without an agent");
    daemons.start_agent(service)?;
    ensure!(!in_clear()?.0, "and with the next one");

    mode("strict", &format!("{}/32", outsider.ipv4()))?;
    wait(true)?;
    mode("strict", "none")?;
    wait(false)?;
    mode("permissive", "none")?;
    wait(true)
}
