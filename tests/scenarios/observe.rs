//! What `murmesh observe` and `murmesh whois` tell of connections of real programs.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, Process, patience};
use nix::sys::signal::Signal;
use serde_json::Value;

const PORT: u16 = 8181;

fn fortune(mesh: &Mesh) -> Result<Process> {
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:/usr/games/fortune"])
}

/// What the agent of `host` remembers.
fn observed(host: &Host, filter: &[&str]) -> Result<Vec<Value>> {
    let arguments = ["observe", "-o", "json"].iter().chain(filter);
    let output = host.run("murmesh", arguments, b"", DEADLINE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = std::str::from_utf8(&output.stdout)?.lines();
    lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Asks until something is remembered that passes the filter: the agent hears of the kernel's verdicts a moment later.
fn wait_for(host: &Host, filter: &[&str]) -> Result<Value> {
    let begun = Instant::now();
    loop {
        if let Some(event) = observed(host, filter)?.pop() {
            return Ok(event);
        }
        if begun.elapsed() > patience(DEADLINE) {
            bail!("{filter:?}: nothing on {}; there is {:?}", host.name(), observed(host, &[])?);
        }
    }
}

/// Denies all of `fcc00` to connect to the service, and dials until its own kernel refuses; the other host may do so
/// before.
fn deny(mesh: &Mesh) -> Result<()> {
    mesh.host("murmesh00")?.murmesh(["deny", "fcc00", "fcs00:8181"])?;
    let begun = Instant::now();
    loop {
        let dialled = mesh.client()?.run("nc", ["-vz", "fcs00", "8181"], b"", DEADLINE)?;
        if String::from_utf8_lossy(&dialled.stderr).contains("Operation not permitted") {
            return Ok(());
        }
        ensure!(begun.elapsed() < patience(DEADLINE), "the rule is not enforced");
    }
}

#[test]
fn a_refused_connection_is_told_with_its_process_its_workload_and_the_rule() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _service = fortune(&mesh)?;
    deny(&mesh)?;
    let client = mesh.client()?;
    let event = wait_for(client, &["--verdict", "denied", "--from", "nc", "--to", "fcs00:8181"])?;
    let destination = format!("{}:{PORT}", mesh.service()?.ipv4());
    for (field, expected) in [
        ("process", "nc".into()),
        ("uid", 0.into()),
        ("caller", "host/fcc00/user-root".into()),
        ("host", "fcs00".into()),
        ("destination", Value::from(destination)),
        ("protocol", "tcp".into()),
        ("rule", 1.into()),
        ("sent", Value::Null),
    ] {
        ensure!(event[field] == expected, "{field} is not {expected} in {event}");
    }
    for others in [["--verdict", "plaintext"], ["--from", "fcs00"], ["--to", ":8182"]] {
        ensure!(observed(client, &others)?.is_empty(), "{others:?}");
    }
    let page = client.murmesh(["observe", "--verdict", "denied"])?;
    ensure!(page.contains("VERDICT") && page.contains("rule 1") && page.contains("nc["), "{page}");
    Ok(())
}

#[test]
fn a_dry_run_rule_refuses_nothing_and_is_named_where_it_would() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _service = fortune(&mesh)?;
    let (server, client) = (mesh.host("murmesh00")?, mesh.client()?);
    server.murmesh(["deny", "--dry-run", "host/fcc00/user-root", "fcs00:8181"])?;
    let outside = format!("{}:7000", server.ipv4());
    server.murmesh(["deny", "--dry-run", "fcc00", &format!("{}/32:7000", server.ipv4())])?;
    let _listener = server.spawn("socat", ["tcp-l:7000,fork,reuseaddr", "exec:/bin/true"])?;
    server.wait_listening(7000, DEADLINE)?;
    for (rule, host, port, to) in
        [(1, "fcs00", "8181", "fcs00:8181"), (2, "murmesh00", "7000", outside.as_str())]
    {
        let begun = Instant::now();
        let event = loop {
            let dialled = client.run("nc", ["-vz", host, port], b"", DEADLINE)?;
            let said = String::from_utf8_lossy(&dialled.stderr);
            ensure!(dialled.status.success(), "refused: {said}");
            if let Some(event) = observed(client, &["--verdict", "allowed", "--to", to])?.pop() {
                break event;
            }
            ensure!(begun.elapsed() < patience(DEADLINE), "rule {rule} is not reported");
        };
        let what = event["what"].as_str().unwrap_or_default();
        ensure!(event["rule"] == rule && event["process"] == "nc" && what.contains("dry-run"), "{event}");
        ensure!(observed(client, &["--verdict", "denied"])?.is_empty(), "nothing is refused");
    }
    Ok(())
}

#[test]
fn a_follower_sees_connections_begin_and_end_with_their_bytes() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:echo twelve-bytes"])?;
    let (client, service) = (mesh.client()?, mesh.service()?);
    let follow = |host: &Host| -> Result<Process> {
        let follower = host.spawn("murmesh", ["observe", "-f", "--to", "fcs00:8181"])?;
        follower.wait_for_line("VERDICT", DEADLINE)?;
        Ok(follower)
    };
    let (here, there) = (follow(client)?, follow(service)?);
    client.run("nc", ["fcs00", "8181"], b"", DEADLINE)?;
    let opened = here.wait_for_line("opened", DEADLINE)?;
    ensure!(opened.contains("allowed") && opened.contains("nc["), "{opened}");
    for (follower, bytes) in [(&here, "0 bytes sent, 13 received"), (&there, "13 bytes sent, 0 received")] {
        let ended = follower.wait_for_line("ended", DEADLINE)?;
        ensure!(ended.contains(bytes) && ended.contains("host/fcc00"), "{ended}");
    }
    let ended = here.wait_for_line("ended", DEADLINE)?;
    ensure!(ended.contains("nc[") && ended.contains("host/fcc00/user-root"), "{ended}");
    ensure!(observed(client, &[])?.is_empty(), "what goes well is not remembered");

    // Followers do not keep the agent from stopping.
    let agent = mesh.agent("fcc00")?;
    agent.signal(Signal::SIGTERM)?;
    agent.wait_for_line("stopped", DEADLINE)?;
    let ended = here.output(DEADLINE)?;
    ensure!(ended.status.code() == Some(1), "the follower ended with {}", ended.status);
    Ok(())
}

#[test]
fn a_connection_in_clear_from_outside_and_one_that_fails_are_remembered() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (outsider, service) = (mesh.host("murmesh00")?, mesh.service()?);
    let _service = fortune(&mesh)?;
    outsider.run("nc", ["fcs00", "8181"], b"", DEADLINE)?;
    let event = wait_for(service, &["--verdict", "plaintext", "--from", &outsider.ipv4().to_string()])?;
    ensure!(event["host"] == "fcs00" && event["process"] == Value::Null, "{event}");

    let _resets = mesh.listen(PORT + 1, &["expect=x", "reset"])?;
    mesh.connect(PORT + 1, &["send=x", "expect-reset"])?.succeed(DEADLINE)?;
    let event = wait_for(mesh.client()?, &["--verdict", "error", "--to", ":8182"])?;
    ensure!(event["sent"] == 1 && event["duration_us"].as_u64() > Some(0), "{event}");
    Ok(())
}

#[test]
fn a_connection_to_a_service_that_nobody_serves_is_told_with_its_process() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let port = PORT.to_string();
    mesh.host("murmesh00")?.murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", &port])?;
    let client = mesh.client()?;
    murmesh_lab::wait_for_availability(client, (mesh.service()?.ipv4(), PORT).into(), false)?;
    client.run("nc", ["-z", "fcs00", &port], b"", DEADLINE)?;
    let event = wait_for(client, &["--verdict", "error", "--from", "nc", "--to", ":8181"])?;
    let what = event["what"].as_str().unwrap_or_default();
    ensure!(what == "refused: no instance of the service takes connections", "{event}");
    ensure!(event["caller"] == "host/fcc00/user-root" && event["protocol"] == "tcp", "{event}");
    Ok(())
}

#[test]
fn events_that_had_to_be_dropped_are_counted() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _service = fortune(&mesh)?;
    deny(&mesh)?;
    let (client, agent) = (mesh.client()?, mesh.agent("fcc00")?);
    // The kernel's ring buffer has room for about 2 500.
    agent.signal(Signal::SIGSTOP)?;
    let dials =
        format!("for i in {{1..4000}}; do : </dev/tcp/{}/{PORT}; done 2>/dev/null", mesh.service()?.ipv4());
    let dialled = client.run("bash", ["-c", &dials], b"", DEADLINE);
    agent.signal(Signal::SIGCONT)?;
    dialled?;
    let begun = Instant::now();
    loop {
        let events = observed(client, &[])?;
        if events.first().is_some_and(|first| first["lost"].as_u64() > Some(1000)) {
            ensure!(events.len() <= 1001, "{} events are remembered", events.len() - 1);
            return Ok(());
        }
        ensure!(
            begun.elapsed() < patience(DEADLINE),
            "nothing says that events were lost: {:?}",
            events.first()
        );
    }
}

#[test]
fn whois_names_a_process_a_service_and_the_rules_about_them() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _service = fortune(&mesh)?;
    deny(&mesh)?;
    let (client, service) = (mesh.client()?, mesh.service()?);
    let whois = |host: &Host, subject: &str| -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&host.murmesh(["whois", "-o", "json", subject])?)?)
    };
    let identity = |known: &Value, path: &str| -> Result<()> {
        let id = known["identity"].as_str().with_context(|| known.to_string())?;
        ensure!(id.starts_with("spiffe://") && id.ends_with(path), "{id} is not {path}");
        Ok(())
    };

    let sleeper = client.spawn("setpriv", ["--reuid=4321", "--clear-groups", "sleep", "600"])?;
    let pid = sleeper.id().to_string();
    let begun = Instant::now();
    let process = loop {
        let process = whois(client, &pid)?.remove(0);
        if process["process"] == "sleep" {
            break process;
        }
        ensure!(begun.elapsed() < patience(DEADLINE), "{process}");
    };
    identity(&process, "/host/fcc00/user-4321")?;
    ensure!(process["uid"] == 4321 && process["rules"][0]["id"] == 1, "{process}");
    ensure!(process["cgroup"].as_str().is_some_and(|cgroup| cgroup.ends_with("/fcc00")), "{process}");

    let address = format!("{}:{PORT}", service.ipv4());
    let seen_from_client = whois(client, &address)?.remove(0);
    identity(&seen_from_client, "/host/fcs00/user-root")?;
    ensure!(seen_from_client["mode"] == "permissive", "{seen_from_client}");
    ensure!(seen_from_client["rules"][0]["id"] == 1, "{seen_from_client}");
    let at_home = whois(service, &address)?;
    ensure!(at_home.iter().any(|known| known["process"] == "socat"), "{at_home:?}");

    let nobody = client.run("murmesh", ["whois", "192.0.2.1:80"], b"", DEADLINE)?;
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    ensure!(nobody.status.code() == Some(1) && said.contains("no host of the mesh"), "{said}");
    Ok(())
}
