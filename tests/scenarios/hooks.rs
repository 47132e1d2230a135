//! The kernel half is accepted by the kernel's verifier and in effect.

use anyhow::{Result, ensure};
use murmesh_lab::{Lab, Topology};

use crate::support::{Daemons, json, kernel, skipped, strings};

#[test]
fn every_hook_is_loaded_and_attached_and_a_connection_passes_through_them() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let host = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(host)?;

    let on_cgroup = kernel::hooks(host)?;
    ensure!(on_cgroup.len() == kernel::HOOKS, "{on_cgroup:?}");
    let status = json(host, "status")?;
    let interception = &status["interception"];
    let attached = strings(&interception["attached"]);
    ensure!(
        attached.iter().any(|hook| hook == "sk_lookup") && attached.len() == kernel::HOOKS + 1,
        "{status}"
    );
    // Healthy is only an agent whose own connection has gone through the hooks and come back.
    ensure!(status["healthy"] == true && strings(&interception["missing"]).is_empty(), "{status}");
    Ok(())
}
