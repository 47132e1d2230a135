//! What the access log says.

use std::io::{self, BufRead as _, BufReader};
use std::process::Child;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Lab, Mesh, Topology};

use crate::support::{Daemons, skipped, wait_for_endpoint};

const PORT: u16 = 8540;

#[test]
fn the_access_log_names_the_calling_process_and_its_workload_and_the_rule() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let _listener = mesh.listen(PORT, &["expect=x"])?;
    let destination = format!("{}:{PORT}", mesh.service()?.ipv4());
    let arguments = ["--reuid=4321", "--clear-groups", "murmesh-probe", "connect", &destination, "send=x"];
    let caller = mesh.client()?.spawn("setpriv", arguments)?;
    let expected = format!(
        "local=spiffe://murmesh.internal/host/fcc00/user-4321 pid={} uid=4321 rule=default",
        caller.id()
    );
    caller.succeed(DEADLINE)?;
    for what in ["open", "close"] {
        let line = mesh.agent("fcc00")?.wait_for_line(&format!("access: {what} "), DEADLINE)?;
        ensure!(line.contains(&expected), "{line}");
    }
    let line = mesh.agent("fcs00")?.wait_for_line("access", DEADLINE)?;
    ensure!(!line.contains("pid="), "the other host cannot know: {line}");
    Ok(())
}

/// Ended when this is dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first port of `murmesh-probe serve-ports`.
const FIRST_PORT: u16 = 20000;

#[test]
fn connections_go_on_while_nobody_reads_the_log() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let (log, output) = io::pipe()?;
    let mut log = BufReader::new(log);
    let _agent = Agent(client.agent_command(&daemons.token(client)?)?.stdout(output).spawn()?);
    let mut line = String::new();
    while !line.contains(": ready") {
        line.clear();
        ensure!(log.read_line(&mut line)? > 0, "the agent ended");
    }
    let ports = service.probe(["serve-ports", "fcs00", "--count=1"])?;
    ports.wait_for_line("listening", DEADLINE)?;
    wait_for_endpoint(client, service, FIRST_PORT)?;
    // Its lines are several times what a pipe has room for.
    let target = format!("fcs00={}", service.ipv4());
    let storm = ["storm", &target, "--count=1", "--connections=1000", "--parallel=10"];
    let said = client.probe(storm)?.succeed(DEADLINE).context("connections wait for the log")?;
    ensure!(said.contains("\"right\":1000"), "{said}");
    Ok(())
}
