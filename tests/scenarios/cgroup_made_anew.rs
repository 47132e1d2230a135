//! The cgroup whose processes are intercepted is removed, and made again, while the agent runs.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, Process, Topology};

use crate::support::kernel::move_to;
use crate::support::{
    DEADLINE, Daemons, json, murmesh, opened, skipped, strings, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;

/// What the service says.
const NAME: &str = "the name of a service 7c1d";

/// A cgroup of a host that may go while the host's own stays.
struct Slice<'a> {
    host: &'a Host,
    path: PathBuf,
}

impl<'a> Slice<'a> {
    fn of(host: &'a Host) -> Result<Self> {
        let path = host.cgroup().join("slice");
        fs::create_dir(&path)?;
        Ok(Self { host, path })
    }

    /// What runs in it as `program`, with the arguments that are given to the command.
    fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.host.command("sh")?;
        let script = format!("echo $$ > {}/cgroup.procs && exec {program} \"$@\"", self.path.display());
        command.args(["-c", &script, "sh"]);
        Ok(command)
    }

    /// Starts the agent of the host in it, with it as the cgroup that is intercepted.
    fn start_agent(&self, daemons: &mut Daemons<'_>) -> Result<()> {
        let usual = self.host.agent_command(&daemons.token(self.host)?)?;
        let arguments = usual
            .get_args()
            .map(|argument| if argument == self.host.cgroup() { self.path.as_os_str() } else { argument });
        let mut start = self.command("murmesh")?;
        daemons.start_agent_by(self.host, start.args(arguments))
    }

    /// What a program in it gets from the service.
    fn ask(&self, service: &Host) -> Result<String> {
        let mut client = self.command("nc")?;
        client.args([service.ipv4().to_string(), PORT.to_string()]);
        Ok(text(&Process::spawn(&mut client)?.output(DEADLINE)?.stdout))
    }

    /// Waits until a connection from it to the service is carried.
    fn wait_carried(&self, daemons: &Daemons<'_>, service: &Host) -> Result<()> {
        let (agent, destination) = (daemons.agent(self.host)?, format!("{}:{PORT}", service.ipv4()));
        let begun = opened(&agent.stdout(), &destination);
        wait_until("connections from the slice are carried", || {
            Ok(self.ask(service)? == NAME && opened(&agent.stdout(), &destination) > begun)
        })
    }

    /// Waits until `status` is red and names a fault with `what` in it.
    fn wait_fault(&self, what: &str) -> Result<()> {
        let last = RefCell::default();
        let found = wait_until(&format!("status names {what:?}"), || {
            let status = json(self.host, "status")?;
            let faults = strings(&status["interception"]["faults"]);
            let is_named = faults.iter().any(|fault| fault.contains(what)) && status["healthy"] == false;
            last.replace(faults);
            Ok(is_named)
        });
        found.map_err(|error| error.context(format!("it names {:?}", last.take())))
    }

    fn is_green(&self) -> Result<bool> {
        Ok(murmesh(self.host, &["status"])?.status.success())
    }
}

#[test]
fn a_cgroup_that_is_made_anew_is_closed_again_at_once_and_carries_when_its_agent_is_restarted() -> Result<()>
{
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let slice = Slice::of(client)?;
    slice.start_agent(&mut daemons)?;
    let named = service.probe(["name", NAME, &PORT.to_string()])?;
    named.wait_for_line("listening", DEADLINE)?;
    wait_for_endpoint(client, service, PORT)?;
    slice.wait_carried(&daemons, service)?;
    wait_until("status is green", || slice.is_green())?;

    let agent = daemons.agent(client)?;
    move_to(client.cgroup(), agent.id())?;
    // What ran in it goes a moment after it has ended.
    wait_until("nothing is in the slice", || Ok(fs::remove_dir(&slice.path).is_ok()))?;
    slice.wait_fault("was removed")?;
    agent.wait_for_line("hooks are attached when it is there again", DEADLINE)?;

    let begun = Instant::now();
    fs::create_dir(&slice.path)?;
    move_to(&slice.path, agent.id())?;
    agent.wait_for_line("the kernel half is repaired", DEADLINE)?;
    println!("hooks of the new cgroup are attached after {:?}", begun.elapsed());
    // The agent's sockets are still in the old one, where no hook sees them: nothing is carried, or goes in clear.
    for _ in 0..3 {
        let answer = slice.ask(service)?;
        ensure!(answer.is_empty(), "{answer:?} went around the mesh");
    }
    slice.wait_fault("was made anew")?;

    daemons.stop_agent(client)?;
    slice.start_agent(&mut daemons)?;
    wait_until("status is green", || slice.is_green())?;
    slice.wait_carried(&daemons, service)
}
