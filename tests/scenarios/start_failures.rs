//! An agent that cannot start says why, exits with status 1, and leaves nothing in the kernel.

use std::process::Command;

use anyhow::{Result, ensure};
use murmesh::identity::JoinToken;
use murmesh_lab::{Host, Lab, Process, Topology};

use crate::support::kernel::hooks;
use crate::support::{DEADLINE, Daemons, skipped, text};

fn ensure_fails(host: &Host, agent: &mut Command, words: &[&str]) -> Result<()> {
    let output = Process::spawn(agent)?.output(DEADLINE)?;
    let said = text(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(words.iter().all(|word| said.contains(word)), "{said}");
    ensure_untouched(host)
}

fn ensure_untouched(host: &Host) -> Result<()> {
    ensure!(hooks(host)?.is_empty(), "hooks are left: {:?}", hooks(host)?);
    ensure!(!host.bpf_directory().exists(), "pins are left in {}", host.bpf_directory().display());
    Ok(())
}

/// As the harness starts it, without the flag `--cgroup`.
fn agent(host: &Host, token: &str) -> Result<Command> {
    let mut agent = host.command("murmesh")?;
    agent.args(["agent", "--join", token, "--node", host.name(), "--data-dir"]).arg(host.data_directory());
    agent.arg("--run-dir").arg(host.run_directory()).arg("--bpf-dir").arg(host.bpf_directory());
    Ok(agent)
}

#[test]
fn while_no_server_can_be_reached_an_agent_says_so_and_can_be_stopped() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let token: JoinToken = daemons.token(client)?.parse()?;
    daemons.kill_server()?;
    let agent = Process::spawn(&mut client.agent_command(&token.to_string())?)?;
    let line = agent.wait_for_line("cannot be reached", DEADLINE)?;
    ensure!(line.contains("10.99.0.10:9190") && line.contains("check that"), "{line}");
    ensure!(agent.stop(DEADLINE)?.code() == Some(1), "it did not join, and must not say that it did");
    ensure_untouched(client)
}

#[test]
fn a_port_that_is_in_use_is_named() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let token = daemons.token(client)?;
    for (port, flag) in [(9191, "--tunnel-port"), (15001, "--outbound-port")] {
        let _squatter = client.spawn("socat", [&format!("tcp4-listen:{port}"), "-"])?;
        client.wait_listening(port, DEADLINE)?;
        ensure_fails(client, &mut client.agent_command(&token)?, &[&port.to_string(), "in use", flag])?;
    }
    Ok(())
}

#[test]
fn a_cgroup_that_is_none_or_not_our_own_is_refused() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    let token = daemons.token(client)?;
    let with_cgroup = |path: &std::path::Path| -> Result<Command> {
        let mut agent = agent(client, &token)?;
        agent.arg("--cgroup").arg(path);
        Ok(agent)
    };
    ensure_fails(client, &mut with_cgroup("/does/not/exist".as_ref())?, &["/does/not/exist", "--cgroup"])?;
    ensure_fails(client, &mut with_cgroup("/tmp".as_ref())?, &["/tmp", "--cgroup"])?;
    ensure_fails(client, &mut with_cgroup(service.cgroup())?, &["outside of", "--cgroup"])?;
    ensure_untouched(service)
}

#[test]
fn without_the_rights_of_root_an_agent_says_what_is_missing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let token = daemons.token(client)?;
    // Without capabilities, and still the owner of the lab's directories.
    let mut powerless = client.command("setpriv")?;
    powerless.args([
        "--bounding-set=-all",
        "--inh-caps=-all",
        "murmesh",
        "agent",
        "--join",
        &token,
        "--node",
        "fcc00",
    ]);
    powerless.arg("--data-dir").arg(client.data_directory()).arg("--run-dir").arg(client.run_directory());
    powerless.arg("--bpf-dir").arg(client.bpf_directory()).arg("--cgroup").arg(client.cgroup());
    ensure_fails(client, &mut powerless, &["as root", "CAP_BPF", "CAP_NET_ADMIN"])
}

#[test]
fn a_second_agent_leaves_the_first_one_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    let before = hooks(client)?;
    let second = Process::spawn(&mut client.agent_command(&daemons.token(client)?)?)?.output(DEADLINE)?;
    ensure!(
        second.status.code() == Some(1) && text(&second.stderr).contains("in use"),
        "{}",
        text(&second.stderr)
    );
    ensure!(hooks(client)? == before && client.murmesh(["status"]).is_ok(), "the first one is broken");
    Ok(())
}
