//! Each workload has its own identity, and connections are between workloads.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use murmesh::identity::Subject;
use murmesh::tunnel::frame::{Open, RefusalReason};
use murmesh_lab::{DEADLINE, Lab, Mesh, Process, Topology};

use crate::support::peer::{Target, refusal, stolen};
use crate::support::{ask, greet, greeting, skipped, wait_for_endpoint, wait_until};

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
