//! The service's host enforces the rules by itself.

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};

use crate::support::wait_until;

const PORT: u16 = 8560;

#[test]
fn a_client_whose_agent_has_not_heard_of_a_rule_is_refused_by_the_other_host() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client) = (mesh.host("murmesh00")?, mesh.client()?);
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    let _service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:echo hello"])?;
    // A workload gets its certificate with its first connection.
    mesh.connect(PORT, &["expect=hello\n", "end"])?.succeed(DEADLINE)?;
    server.cut_off_from(client)?;
    server.murmesh(["deny", "fcc00", &format!("fcs00:{PORT}")])?;
    let destination = format!("{}:{PORT}", mesh.service()?.ipv4());
    wait_until("the connection is reset", || {
        let client = client.probe(["connect", &destination, "expect-reset"])?;
        Ok(client.output(DEADLINE)?.status.success())
    })?;
    let refused = mesh.agent("fcs00")?.wait_for_line("refused, denied: rule 1 forbids it", DEADLINE)?;
    ensure!(refused.contains(" rule=1 ") && refused.contains("/host/fcc00"), "{refused}");
    mesh.agent("fcc00")?.wait_for_line("refused by the other host: Denied", DEADLINE)?;
    Ok(())
}
