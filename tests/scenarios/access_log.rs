//! What the access log says.

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Mesh};

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
