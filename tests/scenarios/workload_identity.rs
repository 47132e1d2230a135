//! Each workload has its own identity, and connections are between workloads.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh::identity::Subject;
use murmesh::tunnel::frame::{Open, RefusalReason};
use murmesh_lab::{DEADLINE, Lab, Mesh, Process, Topology, wait_for_availability};

use crate::support::peer::{Target, refusal, stolen};
use crate::support::{Daemons, ask, greet, greeting, murmesh, skipped, text, wait_for_endpoint, wait_until};

const PORT: u16 = 8580;
const OTHER_PORT: u16 = 8581;

/// As short as a server makes them.
const LIFETIME: Duration = Duration::from_secs(10);

/// A service in a unit of its own on `fcs00`.
fn serve_in_unit(mesh: &Mesh, unit: &str, port: u16) -> Result<Process> {
    let host = mesh.service()?;
    let cgroup = host.cgroup().join(unit);
    fs::create_dir_all(&cgroup)?;
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec socat tcp-l:{port},bind=0,fork,reuseaddr 'exec:echo hello'",
        cgroup.display()
    );
    mesh.serve(host, port, "sh", ["-c", &script])
}

#[test]
fn both_ends_know_the_other_by_the_name_of_its_workload() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _service = serve_in_unit(&mesh, "web.service", PORT)?;
    let destination = format!("{}:{PORT}", mesh.service()?.ipv4());
    let dial = ["--reuid=4321", "--clear-groups", "murmesh-probe", "connect", &destination, "expect=hello\n"];
    mesh.client()?.spawn("setpriv", dial)?.succeed(DEADLINE)?;
    let mesh_id = "spiffe://murmesh.internal";
    let (caller, service) =
        (format!("{mesh_id}/host/fcc00/user-4321"), format!("{mesh_id}/host/fcs00/web.service"));
    for (host, local, peer) in [("fcc00", &caller, &service), ("fcs00", &service, &caller)] {
        mesh.agent(host)?.wait_for_line(&format!("peer={peer} local={local} "), DEADLINE)?;
    }
    Ok(())
}

#[test]
fn a_service_goes_by_the_name_that_an_administrator_gave_it() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _service = serve_in_unit(&mesh, "web.service", PORT)?;
    let port = PORT.to_string();
    mesh.host("murmesh00")?.murmesh(["service", "set", "web", "--host", "fcs00", "--port", &port])?;
    let (client, named) = (mesh.agent("fcc00")?, "peer=spiffe://murmesh.internal/service/web ");
    // The two agents hear of it one after the other.
    wait_until("a connection is made to the service by its name", || {
        let answer = ask(mesh.client()?, "fcs00", PORT);
        Ok(answer.is_ok_and(|answer| answer == "hello\n") && client.said().contains(named))
    })
}

#[test]
fn another_user_who_listens_at_the_port_of_a_service_does_not_go_by_its_name() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, service) = (mesh.host("murmesh00")?, mesh.service()?);
    let web = serve_in_unit(&mesh, "web.service", PORT)?;
    let port = PORT.to_string();
    let set = server.murmesh(["service", "set", "web", "--host", "fcs00", "--port", &port])?;
    ensure!(set.contains("served by web.service"), "{set}");
    server.murmesh(["policy", "default", "deny"])?;
    server.murmesh(["allow", "*", "web"])?;
    let answered = || Ok(ask(mesh.client()?, "fcs00", PORT).is_ok_and(|answer| answer == "hello\n"));
    wait_until("the service is reached by its name", answered)?;

    drop(web);
    wait_for_availability(mesh.client()?, (service.ipv4(), PORT).into(), false)?;
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let command = ["--reuid=65534", "--clear-groups", "socat", &listen, "exec:echo mine"];
    let _mallory = service.spawn("setpriv", command)?;
    let complaint = "web: user-nobody listens on 0.0.0.0:8580 of fcs00";
    wait_until("the other is listed", || Ok(server.murmesh(["service", "list"])?.contains(complaint)))?;
    let refused = ["connect", &format!("{}:{PORT}", service.ipv4()), "--fails=ECONNREFUSED"];
    mesh.client()?.probe(refused)?.succeed(DEADLINE)?;
    let listed = server.murmesh(["service", "list", "-o", "json"])?;
    ensure!(listed.contains(r#""workload": "user-nobody""#), "{listed}");

    server.murmesh(["service", "set", "web", "--workload", "user-nobody"])?;
    wait_until("it is the service once an administrator says so", || {
        Ok(ask(mesh.client()?, "fcs00", PORT).is_ok_and(|answer| answer == "mine\n"))
    })
}

#[test]
fn a_workload_goes_by_the_name_that_the_operator_of_its_host_gave_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let config = client.run_directory().with_extension("toml");
    fs::write(
        &config,
        "[agent]\nworkload = ['shop=unit:web.service,uid:4321', 'batch=cgroup:jobs/night', 'backup=gid:34']\n",
    )?;
    let mut agent = client.agent_command(&daemons.token(client)?)?;
    let agent = Process::spawn(agent.arg("--config").arg(&config))?;
    agent.wait_for_line(": ready", DEADLINE)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    server.murmesh(["deny", "host/fcc00/shop", "fcs00"])?;
    server.murmesh(["deny", "host/*/batch", "fcs00"])?;
    server.murmesh(["deny", "host/fcc00/backup", "fcs00"])?;
    let destination = format!("{}:{PORT}", service.ipv4());
    let dial = |cgroup: &str, uid: u32, gid: u32, forbidden: bool| {
        let directory = client.cgroup().join(cgroup);
        fs::create_dir_all(&directory)?;
        let expected = if forbidden { "--fails=EPERM" } else { "expect=hello" };
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec setpriv --reuid={uid} --regid={gid} --clear-groups murmesh-probe connect {destination} {expected}",
            directory.display()
        );
        Ok(client.run("sh", ["-c", &script], b"", DEADLINE)?.status.success())
    };
    for (cgroup, uid, gid, forbidden) in [
        ("web.service", 4321, 0, true),
        ("web.service/worker", 4321, 0, true),
        ("web.service", 0, 0, false),
        ("web.service", 0, 34, true),
        ("other.service", 4321, 0, false),
        ("", 4321, 0, false),
        ("", 4321, 34, true),
        ("jobs/night/1", 0, 0, true),
        ("jobs/day", 4321, 0, false),
    ] {
        let what = format!("user {uid} of group {gid} in {cgroup:?} is forbidden: {forbidden}");
        wait_until(&what, || dial(cgroup, uid, gid, forbidden))?;
    }
    for id in ["host/fcc00/web.service", "host/fcc00/cgroup-jobs", "host/fcc00/user-4321"] {
        agent.wait_for_line(&format!("local=spiffe://murmesh.internal/{id} "), DEADLINE)?;
    }
    Ok(())
}

#[test]
fn a_tunnel_for_one_service_does_not_lead_to_another() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _web = serve_in_unit(&mesh, "web.service", PORT)?;
    let _database = serve_in_unit(&mesh, "db.service", OTHER_PORT)?;
    let (client, service) = (mesh.client()?, mesh.service()?);
    let identity = stolen(client)?;
    let web = Subject::Workload(service.name().parse()?, "web.service".parse()?);
    let target = Target::service_of(service, &identity, web, PORT);
    let ask = |port| {
        let open =
            Open { destination: (service.ipv4(), port).into(), client: (client.ipv4(), 40_000).into() };
        refusal(client, &identity, &target, open)
    };
    ensure!(ask(PORT)?.is_none(), "what is allowed is refused");
    let answer = ask(OTHER_PORT)?;
    ensure!(answer == Some(RefusalReason::AnotherService), "{answer:?}");
    Ok(())
}

#[test]
fn a_caller_goes_by_the_program_that_it_runs_where_the_operator_says_so() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let mut agent = client.agent_command(&daemons.token(client)?)?;
    let agent = Process::spawn(agent.args(["--workload", "netcat=exe:/bin/nc"]))?;
    agent.wait_for_line(": ready", DEADLINE)?;
    let listen = format!("tcp4-listen:{PORT},fork,reuseaddr");
    let _echo = service.spawn("socat", [&listen, "exec:cat"])?;
    wait_for_endpoint(client, service, PORT)?;

    let port = PORT.to_string();
    let talking = Process::spawn(client.command("nc")?.args(["fcs00", &port]).stdin(Stdio::piped()))?;
    let line = agent.wait_for_line("local=spiffe://murmesh.internal/host/fcc00/netcat ", DEADLINE)?;
    ensure!(line.contains(&format!("pid={} ", talking.id())), "{line}");
    let known = text(&murmesh(client, &["whois", &talking.id().to_string()])?.stdout);
    ensure!(known.contains("host/fcc00/netcat"), "{known}");
    talking.stop(DEADLINE)?;
    server.murmesh(["deny", "host/fcc00/netcat", "fcs00"])?;
    let destination = format!("{}:{PORT}", service.ipv4());
    wait_until("it is reset, and others are served", || {
        let dial = client.run("nc", ["-N", "fcs00", &port], b"x", DEADLINE)?;
        let mut other = client.probe(["connect", &destination, "send=x", "expect=x"])?;
        Ok(dial.stdout.is_empty() && other.wait(DEADLINE)?.success())
    })
}

#[test]
fn certificates_are_renewed_and_no_connection_notices() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let lifetime = format!("{}s", LIFETIME.as_secs());
    let process = Process::spawn(server.server_command()?.args(["--certificate-lifetime", &lifetime]))?;
    process.wait_for_line(": ready", DEADLINE)?;
    let _agents =
        [service.start_agent(&server.create_token()?)?, client.start_agent(&server.create_token()?)?];
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    let begun = Instant::now();
    // Whoever had only the first certificate would be refused at the end.
    while begun.elapsed() < LIFETIME + Duration::from_secs(3) {
        ensure!(ask(client, "fcs00", PORT)? == greeting(service), "after {:?}", begun.elapsed());
    }
    Ok(())
}
