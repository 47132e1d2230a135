//! Joining: who is let in, and what the others are told.

use std::fs;
use std::process::Output;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use murmesh::identity::JoinToken;
use murmesh_lab::{Host, Lab, Process, Topology};

use crate::support::kernel::hooks;
use crate::support::{DEADLINE, Daemons, hosts, json, skipped, text};

fn start(host: &Host, token: &str) -> Result<Output> {
    Process::spawn(&mut host.agent_command(token)?)?.output(DEADLINE)
}

/// The agent ended with this exit status, said why, and touched nothing.
fn ensure_refused(host: &Host, output: &Output, status: i32, words: &[&str]) -> Result<()> {
    let said = text(&output.stderr);
    ensure!(output.status.code() == Some(status), "{}: {said}", output.status);
    ensure!(words.iter().all(|word| said.contains(word)), "{said}");
    ensure!(hooks(host)?.is_empty() && !host.bpf_directory().exists(), "it left something behind");
    Ok(())
}

#[test]
fn a_used_token_lets_no_second_host_in() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (service, client) = (lab.host("fcs00")?, lab.host("fcc00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let output = start(client, &daemons.token(service)?)?;
    ensure_refused(client, &output, 1, &["already used by host fcs00", "murmesh token create"])?;
    let members = json(service, "members")?;
    ensure!(hosts(&members).len() == 1, "{members}");
    Ok(())
}

#[test]
fn an_expired_token_lets_nobody_in() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let _daemons = Daemons::server_only(&lab)?;
    let text = lab.host("murmesh00")?.murmesh(["token", "create", "--valid-for", "1s"])?;
    let token: JoinToken = text.trim().parse()?;
    // Not a guess: this is the time until which it is valid.
    thread::sleep(
        token.expires_at.duration_since(SystemTime::now()).unwrap_or_default() + Duration::from_millis(10),
    );
    let output = start(client, text.trim())?;
    ensure_refused(client, &output, 1, &["expired", "murmesh token create"])
}

#[test]
fn a_host_may_repeat_its_join() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    daemons.stop_agent(client)?;
    // As if the answer to its join had been lost.
    fs::remove_file(client.data_directory().join("membership.json"))?;
    daemons.start_agent(client)?;
    let members = json(client, "members")?;
    ensure!(hosts(&members).len() == 1, "{members}");
    Ok(())
}

#[test]
fn a_name_that_is_taken_is_not_given_to_another_key() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (service, client) = (lab.host("fcs00")?, lab.host("fcc00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let mut impostor = client.command("murmesh")?;
    impostor.args(["agent", "--join", &daemons.token(client)?, "--node", "fcs00", "--data-dir"]);
    impostor.arg(client.data_directory()).arg("--run-dir").arg(client.run_directory());
    impostor.arg("--bpf-dir").arg(client.bpf_directory()).arg("--cgroup").arg(client.cgroup());
    let output = Process::spawn(&mut impostor)?.output(DEADLINE)?;
    ensure_refused(client, &output, 1, &["fcs00 is already a member", "--node"])
}

#[test]
fn a_server_that_the_token_does_not_vouch_for_never_sees_the_secret() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let mut token: JoinToken = daemons.token(client)?.parse()?;
    token.ca_fingerprint[0] ^= 1;
    let output = start(client, &token.to_string())?;
    ensure_refused(client, &output, 1, &["is not trusted", "make a new token"])?;
    let log = daemons.server()?.said();
    ensure!(!log.contains("host joined") && !log.contains("join refused"), "{log}");
    Ok(())
}

#[test]
fn a_garbled_token_is_an_error_of_usage_that_says_so() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let token = daemons.token(client)?;
    let cut = &token[..token.len() - 5];
    ensure_refused(client, &start(client, cut)?, 2, &["damaged", "murmesh token create"])?;
    ensure_refused(client, &start(client, "hello")?, 2, &["not a join token", "murmesh token create"])
}
