//! A host whose operator chose that what is not strict goes on without the agent.

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Lab, Topology};

use crate::support::{Daemons, ask, greet, greeting, skipped, text, wait_for_endpoint, wait_until};

const PERMISSIVE: u16 = 8181;
const STRICT: u16 = 8282;
const FORBIDDEN: u16 = 8383;

#[test]
fn without_its_agent_a_host_that_fails_open_reaches_in_clear_what_is_not_strict_or_forbidden() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let mut command = client.agent_command(&daemons.token(client)?)?;
    daemons.start_agent_by(client, command.arg("--fail-open"))?;
    let _services = [PERMISSIVE, STRICT, FORBIDDEN].map(|port| greet(service, port));
    for port in [PERMISSIVE, STRICT, FORBIDDEN] {
        wait_for_endpoint(client, service, port)?;
    }
    let name = |name: &str, port: &str, mode: &str| {
        server.murmesh(["service", "set", name, "--host", "fcs00", "--port", port, "--mode", mode])
    };
    name("vault", "8282", "strict")?;
    name("closed", "8383", "permissive")?;
    server.murmesh(["deny", "*", "closed"])?;
    let address = service.ipv4().to_string();
    let dial = |port: u16| client.run("nc", ["-v", "-w2", &address, &port.to_string()], b"", DEADLINE);
    wait_until("the rule holds", || Ok(text(&dial(FORBIDDEN)?.stderr).contains("not permitted")))?;
    wait_until("the service is strict", || {
        let outsider = server.run("nc", ["-z", &address, "8282"], b"", DEADLINE)?;
        Ok(!outsider.status.success())
    })?;
    for port in [PERMISSIVE, STRICT] {
        daemons.ask_through_mesh(client, service, port)?;
    }

    daemons.kill_agent(client)?;
    let capture = client.capture("tcp")?;
    ensure!(ask(client, &address, PERMISSIVE)? == greeting(service), "it does not go on");
    ensure!(text(&dial(STRICT)?.stderr).contains("refused"), "a strict service is not refused");
    ensure!(text(&dial(FORBIDDEN)?.stderr).contains("not permitted"), "the rule does not hold");
    let trace = capture.stop()?;
    let opens = |port| trace.packets().iter().any(|packet| packet.opens && packet.destination.port() == port);
    ensure!(opens(PERMISSIVE) && !opens(STRICT) && !opens(FORBIDDEN), "refused on the wire, and not here");

    let mut command = client.agent_command(&daemons.token(client)?)?;
    daemons.start_agent_by(client, command.arg("--fail-open"))?;
    wait_for_endpoint(client, service, PERMISSIVE)?;
    ensure!(daemons.ask_through_mesh(client, service, PERMISSIVE)? == greeting(service));
    Ok(())
}
