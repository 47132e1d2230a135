//! `cargo xtask bench scale`: a server, and many agents without a data plane, on one host of a lab: what each takes of
//! the server, how long a change takes to all of them, and what it costs when the server is restarted.

use std::fs;
use std::io::Write as _;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use murmesh_lab::{Host, Lab, Process, Topology, murmesh_binary, on_interrupt, remove, share_seal_key};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};

use super::{limits, prepare};
use crate::shell::{self, cargo, progress};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a mesh is watched in which nothing changes.
const REST: Duration = Duration::from_secs(10);

/// Options of `cargo xtask bench scale`.
#[derive(Args)]
pub struct Arguments {
    /// Build as the tests do. The figures are higher.
    #[arg(long)]
    quick: bool,
    /// How many agents; each number is measured by itself.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 300, 1000])]
    agents: Vec<u16>,
    /// How many servers, of which three have a member of etcd each.
    #[arg(long, default_value = "1", value_parser = ["1", "3"])]
    servers: String,
    /// How long certificates live, which decides when they are renewed.
    #[arg(long, default_value = "120s")]
    certificate_lifetime: String,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    prepare(arguments.quick)?;
    progress("building the crowd of agents");
    let profile = if arguments.quick { "dev" } else { "release" };
    // For the whole workspace, as everything else is built: nothing is compiled twice.
    let build = ["build", "--workspace", "--example", "murmesh-crowd", "--locked", "--profile"];
    shell::run(cargo().args(build).arg(profile))?;
    limits::raise_open_files()?;
    for agents in &arguments.agents {
        measure(*agents, arguments)?;
    }
    Ok(())
}

fn measure(agents: u16, arguments: &Arguments) -> Result<()> {
    progress(&format!("{agents} agents"));
    let servers = if arguments.servers == "3" { 3 } else { 1 };
    let lab = Lab::new(Topology { servers, services: 0, clients: 0 })?;
    let name = lab.name().to_owned();
    on_interrupt(move || {
        let _ = remove(&name);
    })?;
    let mut mesh = Servers::start(&lab, &arguments.certificate_lifetime)?;
    let alone = mesh.memory()?;
    let mut crowd = Crowd::start(lab.host("murmesh00")?, agents)?;
    let before = mesh.processor_time()?;
    let joined = crowd.answer("joined: ")?;
    let complete = crowd.answer("complete: ")?;
    println!("{agents} agents with 10 services each, {servers} server(s)");
    println!("  all joined after {joined} s; all know all after {complete} s; {}", mesh.used_since(before)?);

    let before = mesh.processor_time()?;
    let changed = crowd.ask("change", "changed: ")?;
    let used = mesh.used_since(before)?;
    let [median, most, last] = words(&changed)?;
    println!(
        "  a change is at half of them after {median} ms, at 99 % after {most} ms, at all after {last} ms; 20 changes, {used}"
    );

    let before = mesh.processor_time()?;
    std::thread::sleep(REST);
    println!("  at rest, {} s: {}", REST.as_secs(), mesh.used_since(before)?);
    let memory = mesh.memory()?;
    let each = (memory.saturating_sub(alone)) as f64 / f64::from(agents);
    println!(
        "  memory of the server(s): {} MiB, {} MiB without agents, {each:.0} KiB for each",
        memory >> 10,
        alone >> 10
    );

    let renewed = crowd.ask("renewals", "renewed: ")?;
    let [spread, busiest] = words(&renewed)?;
    println!("  all renewed their certificates within {spread} s, at most {busiest} in one second");

    crowd.send("outage")?;
    mesh.kill()?;
    crowd.answer("alone")?;
    let begun = Instant::now();
    mesh.start_again(&lab)?;
    crowd.answer("back")?;
    let back = begun.elapsed();
    println!(
        "  all are back {:.1} s after the server(s) started again; {}\n",
        back.as_secs_f64(),
        mesh.used_since(0.0)?
    );
    Ok(())
}

/// The servers of a lab, and what they are beside.
struct Servers {
    lifetime: String,
    running: Vec<Process>,
    _etcd: Vec<Process>,
}

impl Servers {
    fn start(lab: &Lab, lifetime: &str) -> Result<Self> {
        let hosts: Vec<_> = lab.hosts().iter().collect();
        let mut etcd = Vec::new();
        if hosts.len() > 1 {
            share_seal_key(&hosts)?;
            for host in &hosts {
                etcd.push(host.start_etcd(&hosts)?);
            }
        }
        let mut servers = Self { lifetime: lifetime.to_owned(), running: Vec::new(), _etcd: etcd };
        servers.start_again(lab)?;
        Ok(servers)
    }

    fn start_again(&mut self, lab: &Lab) -> Result<()> {
        let hosts: Vec<_> = lab.hosts().iter().collect();
        for host in &hosts {
            let mut command =
                if hosts.len() > 1 { host.cluster_server_command(&hosts)? } else { host.server_command()? };
            let server = Process::spawn(command.args(["--certificate-lifetime", &self.lifetime]))?;
            server.wait_for_line(": ready", PATIENCE)?;
            self.running.push(server);
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        for mut server in self.running.drain(..) {
            server.signal(Signal::SIGKILL)?;
            server.wait(PATIENCE)?;
        }
        Ok(())
    }

    /// Resident, in KiB.
    fn memory(&self) -> Result<u64> {
        let of = |server: &Process| -> Result<u64> {
            let status = fs::read_to_string(format!("/proc/{}/status", server.id()))?;
            let line =
                status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it has memory")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        self.running.iter().map(of).sum()
    }

    /// Of user and system since they were started, in seconds.
    fn processor_time(&self) -> Result<f64> {
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the kernel has a clock")?;
        let of = |server: &Process| -> Result<i64> {
            let stat = fs::read_to_string(format!("/proc/{}/stat", server.id()))?;
            // The name, which may hold anything, is in parentheses (proc_pid_stat(5)).
            let (_, fields) = stat.rsplit_once(") ").context("a name")?;
            let mut ticks = fields.split(' ').skip(11).take(2).map(str::parse::<i64>);
            Ok(ticks.next().context("user time")?? + ticks.next().context("system time")??)
        };
        let ticks: i64 = self.running.iter().map(of).sum::<Result<_>>()?;
        Ok(ticks as f64 / per_second as f64)
    }

    fn used_since(&self, before: f64) -> Result<String> {
        Ok(format!("{:.1} s of a processor", self.processor_time()? - before))
    }
}

/// All agents, in one process.
struct Crowd {
    process: Process,
    orders: ChildStdin,
}

impl Crowd {
    fn start(host: &Host, agents: u16) -> Result<Self> {
        let program = murmesh_binary()?.with_file_name("examples").join("murmesh-crowd");
        let mut command = host.command(program)?;
        command.arg("--agents").arg(agents.to_string()).arg("--run-dir").arg(host.run_directory());
        command.arg("--data-dir").arg(host.data_directory().join("crowd")).stdin(Stdio::piped());
        let mut process = Process::spawn(&mut command)?;
        let orders = process.take_stdin().context("stdin is a pipe")?;
        Ok(Self { process, orders })
    }

    fn send(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}").context("the crowd listens")
    }

    fn ask(&mut self, order: &str, answer: &str) -> Result<String> {
        self.send(order)?;
        self.answer(answer)
    }

    /// What follows `label` on its line.
    fn answer(&self, label: &str) -> Result<String> {
        let line = self.process.wait_for_line(label, PATIENCE)?;
        Ok(line.trim_start_matches(label).to_owned())
    }
}

fn words<const COUNT: usize>(line: &str) -> Result<[&str; COUNT]> {
    line.split(' ').collect::<Vec<_>>().try_into().ok().with_context(|| format!("{line:?} is another answer"))
}
