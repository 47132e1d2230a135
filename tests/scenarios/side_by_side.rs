//! Two meshes on one machine, with the same names and addresses.

use anyhow::{Result, ensure};
use murmesh_lab::{Lab, Process, Topology};

use crate::support::{DEADLINE, Daemons, greet, greeting, skipped, text, wait_for_endpoint};

#[test]
fn two_meshes_with_the_same_names_both_work_and_do_not_meet() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let labs = [Lab::new(Topology { clients: 2, ..Topology::default() })?, Lab::new(Topology::default())?];
    let mut one = Daemons::server_only(&labs[0])?;
    for name in ["fcs00", "fcc00"] {
        one.start_agent(labs[0].host(name)?)?;
    }
    let other = Daemons::start(&labs[1])?;
    for (lab, daemons, port) in [(&labs[0], &one, 8181), (&labs[1], &other, 8282)] {
        let _listener = greet(lab.host("fcs00")?, port)?;
        wait_for_endpoint(lab.host("fcc00")?, lab.host("fcs00")?, port)?;
        let answer = daemons.ask_through_mesh(lab.host("fcc00")?, lab.host("fcs00")?, port)?;
        ensure!(answer == greeting(lab.host("fcs00")?));
    }
    let known = crate::support::endpoints(labs[1].host("fcc00")?)?;
    ensure!(!known.iter().any(|endpoint| endpoint.ends_with(":8181")), "{known:?}");

    // The server of the other mesh answers at the address that its token names, and is not trusted there.
    let foreign = labs[1].host("murmesh00")?.create_token()?;
    let output = Process::spawn(&mut labs[0].host("fcc01")?.agent_command(&foreign)?)?.output(DEADLINE)?;
    ensure!(
        output.status.code() == Some(1) && text(&output.stderr).contains("is not trusted"),
        "{}",
        text(&output.stderr)
    );
    Ok(())
}
