//! `cargo xtask test terraform`: `deploy/terraform` on hosts with systemd and sshd, made on this machine.

mod site;

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Lab, Machine, Process, TUNNEL_PORT, Topology, deadline};
use serde_json::Value;

use crate::shell::{find_program, progress};
use site::Site;

/// Where the example listens.
const PORT: u16 = 8181;

/// How often it is looked whether a service has become known.
const INTERVAL: Duration = Duration::from_millis(50);

/// What it takes, beside what tests need. Nothing of it is installed: a new sshd would let people log in here, too.
const PROGRAMS: [&str; 3] = ["terraform", "ssh", "sshd"];

/// Why it cannot be done here.
pub fn unavailable() -> Option<String> {
    let missing = PROGRAMS.into_iter().find(|program| find_program(program).is_none());
    missing.map(|program| format!("{program} is not installed"))
}

/// Deploys `package` to three servers, two hosts for services and a consumer; again, which changes nothing; grows,
/// shrinks, and takes all of it away.
pub fn run(package: &Path) -> Result<()> {
    progress("hosts with systemd and sshd, to deploy to");
    // The second client is where terraform runs.
    let lab = Lab::new(Topology { servers: 3, services: 3, clients: 2 })?;
    let workstation = lab.host("fcc01")?;
    let site = Site::new(workstation, package, lab.hosts())?;
    let start = |host| Machine::start(host, site.shared());
    let hosts = lab.hosts().iter().filter(|host| host.name() != workstation.name());
    let machines = hosts.map(start).collect::<Result<Vec<_>>>()?;
    machines.iter().try_for_each(Machine::wait)?;
    machines.iter().try_for_each(|machine| site.admit(machine))?;
    let mesh = Mesh(&machines);
    let before = mesh.each(files)?;

    progress("three servers, two hosts for services, a consumer");
    site.terraform(&["init", "-input=false"])?;
    site.apply(2)?;
    mesh.is_encrypted(&["fcs00", "fcs01"])?;
    ensure!(mesh.members()?.len() == 6, "members: {:?}", mesh.members()?);
    let line = site.output("join_line")?;
    ensure!(line.contains("murmesh up --join") && line.contains("10.99.0.10"), "join_line is {line}");

    progress("once more: nothing is to be done");
    site.is_settled(2)?;

    progress("a third host for services");
    site.apply(3)?;
    mesh.is_encrypted(&["fcs00", "fcs01", "fcs02"])?;

    progress("two again: the third is drained, removed and clean");
    site.apply(2)?;
    ensure!(!mesh.members()?.contains(&"fcs02".to_owned()), "fcs02 is still a member");
    mesh.is_encrypted(&["fcs00", "fcs01"])?;
    let after = mesh.each(files)?;
    let removed = position(&machines, "fcs02")?;
    ensure!(before[removed] == after[removed], "fcs02: {:?}", difference(&before[removed], &after[removed]));

    progress("it joins by the line for hosts that are not deployed to, and leaves again");
    site.join_by_hand(&machines[removed], &line)?;
    ensure!(mesh.members()?.contains(&"fcs02".to_owned()), "fcs02 is no member: {:?}", mesh.members()?);
    site.leave(&machines[removed])?;
    ask(mesh.machine("murmesh00")?, "murmesh", &["host", "remove", "fcs02"])?;
    site.is_refused_a_volume(&machines[removed])?;

    progress("nothing any more");
    site.destroy()?;
    for ((machine, before), after) in machines.iter().zip(before).zip(mesh.each(files)?) {
        let name = machine.host().name();
        ensure!(before == after, "{name} is not as it was: {:?}", difference(&before, &after));
    }
    progress("deploy/terraform: deployed, grown, shrunk and destroyed");
    Ok(())
}

/// The hosts that are deployed to.
struct Mesh<'a>(&'a [Machine<'a>]);

impl Mesh<'_> {
    /// Fortunes come from each of these hosts, and nothing of that is on the wire in clear.
    fn is_encrypted(&self, hosts: &[&str]) -> Result<()> {
        let consumer = self.machine("fcc00")?;
        let capture = consumer.host().capture("tcp")?;
        for name in hosts {
            wait_for_service(consumer, name)?;
            let said = ask(consumer, "nc", &[name, &PORT.to_string()])?;
            ensure!(!said.trim().is_empty(), "no fortune from {name}");
        }
        let trace = capture.stop()?;
        ensure!(trace.packets().iter().any(|packet| packet.uses_port(TUNNEL_PORT)), "nothing in tunnels");
        ensure!(!trace.packets().iter().any(|packet| packet.uses_port(PORT)), "something went in clear");
        Ok(())
    }

    /// Names of the hosts that are members.
    fn members(&self) -> Result<Vec<String>> {
        let listed = ask(self.machine("murmesh01")?, "murmesh", &["members", "-o", "json"])?;
        let members: Value = serde_json::from_str(&listed)?;
        let members = members.as_array().with_context(|| format!("no list: {listed}"))?;
        let hosts = members.iter().filter(|member| member["role"] == "host");
        Ok(hosts.filter_map(|host| host["node"].as_str()).map(str::to_owned).collect())
    }

    fn each<T>(&self, what: impl Fn(&Machine) -> Result<T>) -> Result<Vec<T>> {
        self.0.iter().map(what).collect()
    }

    fn machine(&self, name: &str) -> Result<&Machine<'_>> {
        Ok(&self.0[position(self.0, name)?])
    }
}

/// Waits until `machine` reaches the example on `host` through the mesh.
fn wait_for_service(machine: &Machine, host: &str) -> Result<()> {
    let deadline = deadline(DEADLINE);
    loop {
        let listed = ask(machine, "murmesh", &["services", "-o", "json"])?;
        let services: Value = serde_json::from_str(&listed)?;
        let is_reached = |service: &Value| {
            service["host"] == host && service["port"] == PORT && service["reachable"] == true
        };
        if services.as_array().is_some_and(|services| services.iter().any(is_reached)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} does not reach {host}: {listed}", machine.host().name());
        // The command line offers no watch.
        thread::sleep(INTERVAL);
    }
}

/// What may be left of a deployment: files, units, accounts.
fn files(machine: &Machine) -> Result<BTreeSet<String>> {
    // systemd and dpkg write down what they did, whatever that was.
    let script = "find /etc /usr/bin /usr/local /lib/systemd/system /var/lib /opt /home /srv /root/.* \
            -maxdepth 4 -xdev \\( -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /root/.. \\) -prune -o -print
        find /sys/fs/bpf /run/murmesh
        cat /etc/passwd /etc/group /etc/fstab
        ps -e -o comm= | grep -e murmesh -e etcd -e socat";
    let found = Process::spawn(machine.command("sh")?.args(["-c", script]))?.output(DEADLINE)?;
    Ok(String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect())
}

fn difference<'a>(before: &'a BTreeSet<String>, after: &'a BTreeSet<String>) -> Vec<&'a String> {
    before.symmetric_difference(after).collect()
}

fn ask(machine: &Machine, program: &str, arguments: &[&str]) -> Result<String> {
    let name = machine.host().name();
    let asked = Process::spawn(machine.command(program)?.args(arguments))?.succeed(DEADLINE);
    asked.with_context(|| format!("on {name}"))
}

fn position(machines: &[Machine], name: &str) -> Result<usize> {
    let found = machines.iter().position(|machine| machine.host().name() == name);
    found.with_context(|| format!("there is no machine {name}"))
}
