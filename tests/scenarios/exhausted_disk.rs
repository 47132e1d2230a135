//! A disk is full: what was acknowledged stays, what cannot be kept is said, connections and certificates go on, and all is
//! well again by itself when there is room.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology};

use crate::support::{
    Daemons, greet, greeting, hosts, json, murmesh, skipped, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;

/// The shortest that a server signs. They are renewed at half of that.
const SHORT: &str = "10s";

/// A daemon whose data directory is a file system of its own in memory, which goes with it.
fn on_small_disk(host: &Host, daemon: &Command, size: &str) -> Result<Command> {
    let mount = format!("mount -t tmpfs -o size={size} none \"$0\" && exec \"$@\"");
    let mut command = host.command("unshare")?;
    command.args(["--mount", "sh", "-c", &mount]).arg(host.data_directory());
    command.arg(daemon.get_program()).args(daemon.get_args());
    Ok(command)
}

/// The file that fills the disk of a daemon, as others see it.
struct Filler(PathBuf);

impl Filler {
    fn new(daemon: &Process, host: &Host) -> Result<Self> {
        let inside = host.data_directory();
        let inside = inside.strip_prefix("/").unwrap_or(Path::new("."));
        let filler =
            Self(Path::new("/proc").join(daemon.id().to_string()).join("root").join(inside).join("filler"));
        filler.fill()?;
        Ok(filler)
    }

    fn fill(&self) -> Result<()> {
        let mut file = File::create(&self.0).context("making a file on the daemon's disk")?;
        loop {
            match file.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => bail!("filling the disk: {error}"),
            }
        }
    }

    fn remove(&self) -> Result<()> {
        Ok(fs::remove_file(&self.0)?)
    }
}

#[test]
fn an_agent_whose_disk_is_full_carries_on_with_renewed_certificates_and_says_what_is_not_kept() -> Result<()>
{
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_with(&lab, &["--certificate-lifetime", SHORT])?;
    daemons.start_agent(service)?;
    let mut command = on_small_disk(client, &client.agent_command(&daemons.token(client)?)?, "400k")?;
    daemons.start_agent_by(client, &mut command)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;

    let agent = daemons.agent(client)?;
    let filler = Filler::new(agent, client)?;
    let renewed = |log: &[u8]| text(log).matches("enrolment: certificate renewed").count();
    let before = renewed(&agent.stdout());
    agent.wait_for_stdout(DEADLINE, |log| renewed(log) >= before + 2)?;
    agent.wait_for_line("a certificate is in use, and not kept on disk", DEADLINE)?;
    agent.wait_for_line("what this host knows is not kept on disk", DEADLINE)?;
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));

    filler.remove()?;
    let membership = filler.0.with_file_name("membership.json");
    let kept = || Ok::<_, anyhow::Error>(fs::metadata(&membership)?.modified()?);
    let last = kept()?;
    wait_until("the certificate is kept", || Ok(kept()? > last))?;
    wait_until("status is green", || Ok(murmesh(client, &["status"])?.status.success()))?;
    daemons.ask_through_mesh(client, service, PORT).map(drop)
}

#[test]
fn a_server_whose_disk_is_full_refuses_changes_keeps_its_hosts_and_takes_changes_again_by_itself()
-> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_by(&lab, |command| on_small_disk(server, command, "8m"))?;
    for host in [client, service] {
        daemons.start_agent(host)?;
    }
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    let filler = Filler::new(daemons.server()?, server)?;
    let mut acknowledged = Vec::new();
    let refusal = loop {
        let source = format!("host/fcc00/write-{}", acknowledged.len());
        let answer = murmesh(server, &["allow", &source, "host/fcs00"])?;
        if !answer.status.success() {
            break text(&answer.stderr);
        }
        acknowledged.push(source);
        ensure!(acknowledged.len() < 1000, "a full disk takes everything");
    };
    ensure!(refusal.contains("No space left"), "{refusal}");
    daemons.ask_through_mesh(client, service, PORT)?;

    filler.remove()?;
    wait_until("changes are taken again", || {
        Ok(murmesh(server, &["allow", "host/fcc00/after", "host/fcs00"])?.status.success())
    })?;
    let rules = server.murmesh(["policy", "list", "-o", "json"])?;
    ensure!(acknowledged.iter().all(|source| rules.contains(&format!("\"{source}\""))), "lost: {rules}");
    wait_until("both hosts are connected", || {
        let members = json(server, "members")?;
        Ok(hosts(&members).iter().filter(|host| host["connected"] == true).count() == 2)
    })?;
    // What is new reaches them.
    let _other = greet(service, PORT + 1)?;
    wait_for_endpoint(client, service, PORT + 1)?;
    wait_until("the client has the rules", || {
        Ok(client.murmesh(["policy", "list", "-o", "json"])?.contains("\"host/fcc00/after\""))
    })?;
    daemons.ask_through_mesh(client, service, PORT + 1).map(drop)
}
