//! The cgroup whose processes are intercepted is removed, and made again, while the agent runs.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, Process, Topology, contains};
use nix::sys::signal::Signal;

use crate::support::kernel::move_to;
use crate::support::{
    DEADLINE, Daemons, go_strict, json, murmesh, opened, skipped, strings, text, wait_for_endpoint,
    wait_until,
};

const PORT: u16 = 8181;
/// Of a service in the cgroup that is made anew.
const OWN_PORT: u16 = 8282;

/// What the strict service of the other host says.
const NAME: &str = "the name of a strict service 7c1d";
/// What the one in the cgroup says.
const OWN_NAME: &str = "the name of a service in a slice 90be";

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

    /// What a program in it gets from the strict service: its name, or nothing.
    fn ask(&self, service: &Host) -> Result<String> {
        let mut client = self.command("nc")?;
        client.args([service.ipv4().to_string(), PORT.to_string()]);
        let said = text(&Process::spawn(&mut client)?.output(DEADLINE)?.stdout);
        ensure!(said.is_empty() || said == NAME, "{said:?}");
        Ok(said)
    }

    /// Starts a service in it.
    fn serve(&self) -> Result<Process> {
        let mut service = self.command("murmesh-probe")?;
        service.args(["name", OWN_NAME, &OWN_PORT.to_string()]).stdin(Stdio::piped());
        let service = Process::spawn(&mut service)?;
        service.wait_for_line("listening", DEADLINE)?;
        Ok(service)
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
fn a_cgroup_that_is_made_anew_is_closed_again_at_once_and_carries_when_its_agent_is_back_in_it() -> Result<()>
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
    go_strict(lab.host("murmesh00")?, service, "web", PORT)?;
    slice.wait_carried(&daemons, service)?;
    wait_until("status is green", || slice.is_green())?;
    let capture = client.capture("tcp")?;

    let agent = daemons.agent(client)?;
    move_to(client.cgroup(), agent.id())?;
    // What ran in it goes a moment after it has ended.
    wait_until("nothing is in the slice", || Ok(fs::remove_dir(&slice.path).is_ok()))?;
    slice.wait_fault("was removed")?;
    agent.wait_for_line("hooks are attached when it is there again", DEADLINE)?;

    let begun = Instant::now();
    fs::create_dir(&slice.path)?;
    move_to(&slice.path, agent.id())?;
    wait_until("a connection is carried", || Ok(slice.ask(service)? == NAME))?;
    println!("connections from the new cgroup are carried after {:?}", begun.elapsed());
    wait_until("status is green", || slice.is_green())?;
    println!("noticed, repaired, looked at again and green after {:?}", begun.elapsed());
    agent.wait_for_line("the kernel half is repaired", DEADLINE)?;
    slice.wait_carried(&daemons, service)?;

    let _own = slice.serve()?;
    wait_for_endpoint(service, client, OWN_PORT)?;
    let said = daemons.ask_through_mesh(service, client, OWN_PORT)?;
    ensure!(said == OWN_NAME, "{said:?}");
    let clear = |bytes: &[u8]| [NAME, OWN_NAME].iter().any(|name| contains(bytes, name.as_bytes()));
    ensure!(!capture.stop()?.packets().iter().any(|packet| clear(&packet.payload)), "a name went in clear");

    // What it listens on is there for the next agent, too.
    agent.signal(Signal::SIGUSR2)?;
    agent.wait_for_line("handed over", DEADLINE)?;
    wait_until("a connection is carried", || Ok(slice.ask(service)? == NAME))?;
    wait_until("status is green", || slice.is_green())
}
