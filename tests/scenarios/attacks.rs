//! What users of a host try who are not root there.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, TUNNEL_PORT};

use crate::support::{text, wait_until};

const PORT: u16 = 8184;

/// The mark of an agent's own sockets.
const MARK: &str = "--mark=28013";

/// A user without any rights.
const NOBODY: [&str; 4] = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];

const NOBODYS_UID: u32 = 65534;

/// A user, or root in a container, who has kept the one right that most containers have.
const RAW: [&str; 2] = ["--inh-caps=-all,+net_raw", "--bounding-set=-all,+net_raw"];

/// Runs the probe on `host`, with these rights, in a cgroup; says whether it succeeded, and its stderr.
fn probe(host: &Host, rights: &[&str], cgroup: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let directory = host.cgroup().join(cgroup);
    fs::create_dir_all(&directory)?;
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", directory.display());
    let command = ["-c", &enter, "sh", "setpriv"].into_iter().chain(rights.iter().copied());
    let command = command.chain(["murmesh-probe", "connect"]).chain(arguments.iter().copied());
    let output = host.run("sh", command, b"", DEADLINE)?;
    Ok((output.status.success(), text(&output.stderr)))
}

/// A mesh with an echo at `PORT` of `fcs00`.
fn mesh() -> Result<Option<(Mesh, murmesh_lab::Process, String)>> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(None) };
    let listen = format!("tcp4-l:{PORT},fork,reuseaddr");
    let service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:/bin/cat"])?;
    let destination = format!("{}:{PORT}", mesh.service()?.ipv4());
    Ok(Some((mesh, service, destination)))
}

#[test]
fn the_mark_of_the_agent_helps_nobody_who_can_set_it() -> Result<()> {
    let Some((mesh, _service, destination)) = mesh()? else { return Ok(()) };
    let client = mesh.client()?;
    let (refused, said) = probe(client, &NOBODY, "job.service", &[&destination, MARK, "--fails=EPERM"])?;
    ensure!(refused, "a user without rights set the mark: {said}");

    // Whoever has CAP_NET_RAW may set any mark since Linux 5.17, and is in the mesh all the same.
    let echo = ["send=a secret 3b", "expect=a secret 3b", "shutdown", "end"];
    let marked: Vec<_> = [destination.as_str(), MARK].into_iter().chain(echo).collect();
    let capture = client.capture("ip")?;
    let (carried, said) = probe(client, &RAW, "job.service", &marked)?;
    let trace = capture.stop()?;
    ensure!(carried, "{said}");
    ensure!(!trace.contains(b"a secret 3b"), "it went in clear");
    mesh.ensure_carried(1)?;

    mesh.host("murmesh00")?.murmesh(["deny", "host/fcc00/job.service", "fcs00:8184"])?;
    let denied = [destination.as_str(), MARK, "--fails=EPERM"];
    wait_until("the rule holds for whoever has the mark", || {
        Ok(probe(client, &RAW, "job.service", &denied)?.0)
    })
}

#[test]
fn nobody_gets_the_name_of_a_unit_by_a_cgroup_of_their_own() -> Result<()> {
    let Some((mesh, _service, destination)) = mesh()? else { return Ok(()) };
    let client = mesh.client()?;
    let session = "user.slice/user-65534.slice/user@65534.service";
    let own = client.cgroup().join(session);
    fs::create_dir_all(&own)?;
    // As systemd delegates it.
    for path in [own.clone(), own.join("cgroup.procs"), own.join("cgroup.subtree_control")] {
        chown(&path, Some(NOBODYS_UID), Some(NOBODYS_UID)).with_context(|| format!("{}", path.display()))?;
    }
    let outside = client.cgroup().join("nginx.service");
    fs::create_dir_all(&outside)?;
    ensure!(!move_as_nobody(client, session, &outside)?, "a user moved to the cgroup of a unit");
    let disguise = own.join("nginx.service");
    ensure!(move_as_nobody(client, session, &disguise)?, "a user may make cgroups in their own");

    let server = mesh.host("murmesh00")?;
    server.murmesh(["policy", "default", "deny"])?;
    server.murmesh(["allow", "host/*/nginx.service", "*"])?;
    let dial = |rights: &[&str], cgroup: &str| -> Result<bool> {
        // Where the kernel does not know a caller yet it is the agent that refuses.
        Ok(probe(client, rights, cgroup, &[&destination, "send=x", "expect=x"])?.0)
    };
    wait_until("the unit itself may connect, and others not", || {
        Ok(dial(&NOBODY, "nginx.service")? && !dial(&NOBODY, "")?)
    })?;
    let disguised = format!("{session}/nginx.service");
    let in_container = "docker/0123/nginx.service";
    for cgroup in [disguised.as_str(), session, in_container, "mine/system.slice/nginx.service"] {
        ensure!(!dial(&NOBODY, cgroup)?, "{cgroup} goes by the name of the unit");
    }
    Ok(())
}

/// Whether a process of the user, started in a cgroup of theirs, can make another and move there.
fn move_as_nobody(host: &Host, from: &str, to: &Path) -> Result<bool> {
    let from = host.cgroup().join(from);
    let script = format!("mkdir -p {0} && echo $$ > {0}/cgroup.procs", to.display());
    let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", from.display());
    let command = ["-c", &enter, "sh", "setpriv"].into_iter().chain(NOBODY).chain(["sh", "-c", &script]);
    Ok(host.run("sh", command, b"", DEADLINE)?.status.success())
}

#[test]
fn whatever_user_ids_a_session_has_it_is_its_user() -> Result<()> {
    let Some((mesh, _service, destination)) = mesh()? else { return Ok(()) };
    let client = mesh.client()?;
    mesh.host("murmesh00")?.murmesh(["deny", "host/*/user-nobody", "*"])?;
    let (session, denied) = ("user.slice/user-65534.slice/session-1.scope", [&destination, "--fails=EPERM"]);
    wait_until("the user is refused", || Ok(probe(client, &NOBODY, session, &denied)?.0))?;
    // As in /etc/subuid, and by sudo.
    for rights in [["--reuid=165534", "--clear-groups"].as_slice(), &[]] {
        let (refused, said) = probe(client, rights, session, &denied)?;
        ensure!(refused, "{rights:?}: {said}");
    }
    let (made, said) = probe(client, &["--reuid=165534", "--clear-groups"], "", &[&destination])?;
    ensure!(made, "{said}");
    Ok(())
}

#[test]
fn whoever_listens_at_the_ports_of_the_agent_hears_nothing() -> Result<()> {
    let Some((mut mesh, _service, destination)) = mesh()? else { return Ok(()) };
    let as_nobody = |host: &Host, address: &str| {
        let command = NOBODY.into_iter().chain(["murmesh-probe", "listen", address, "expect=a secret 77"]);
        host.spawn("setpriv", command)
    };
    let ports = ["127.0.0.1:15001", "[::1]:15001", "0.0.0.0:9191"];
    for address in ports {
        let said = as_nobody(mesh.client()?, address)?.output(DEADLINE)?;
        ensure!(text(&said.stderr).contains("in use"), "beside the agent: {}", text(&said.stderr));
    }
    mesh.kill_agent("fcc00")?;
    let impostors = [as_nobody(mesh.client()?, ports[0])?, as_nobody(mesh.client()?, ports[1])?];
    for impostor in &impostors {
        impostor.wait_for_line("listening", DEADLINE)?;
    }
    let mut dial = mesh.client()?.probe(["connect", &destination, "--fails=ECONNREFUSED"])?;
    ensure!(dial.wait(DEADLINE)?.success(), "{}", dial.said());
    for mut impostor in impostors {
        ensure!(impostor.wait(std::time::Duration::ZERO).is_err(), "somebody connected: {}", impostor.said());
    }
    Ok(())
}

#[test]
fn whoever_listens_at_the_tunnel_port_of_a_dead_agent_gets_no_byte_of_a_client() -> Result<()> {
    let Some((mut mesh, _service, destination)) = mesh()? else { return Ok(()) };
    mesh.kill_agent("fcs00")?;
    let address = format!("0.0.0.0:{TUNNEL_PORT}");
    // Greets like a service that speaks first.
    let listen = NOBODY.into_iter().chain([
        "murmesh-probe",
        "listen",
        &address,
        "send=welcome",
        "expect-broken=ECONNRESET",
    ]);
    let impostor = mesh.service()?.spawn("setpriv", listen)?;
    impostor.wait_for_line("listening", DEADLINE)?;
    let capture = mesh.client()?.capture("ip")?;
    let (address, port) = destination.split_once(':').context("an address and a port")?;
    let output = mesh.client()?.run("nc", ["-N", address, port], b"a secret 77", DEADLINE)?;
    ensure!(output.stdout.is_empty(), "answered: {}", text(&output.stdout));
    let trace = capture.stop()?;
    ensure!(!trace.contains(b"a secret 77"), "it went in clear");
    ensure!(trace.packets().iter().any(|packet| packet.uses_port(TUNNEL_PORT)), "nothing was tried");
    Ok(())
}
