//! The package on two hosts that systemd runs: a mesh by two commands.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Lab, Machine, Process, Topology};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::shell::progress;

/// What each of them does.
const SCRIPT: &str = include_str!("hosts.sh");

/// For both hosts to do everything, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(240);

/// Installs `package` on both, begins a mesh, joins, connects, kills an agent, upgrades to `later`, leaves, purges.
pub fn run(package: &Path, later: &Path) -> Result<()> {
    if let Some(reason) = Machine::unavailable() {
        progress(&format!("it is not tried with systemd: {reason}"));
        return Ok(());
    }
    progress("a mesh of two hosts with systemd, from the package, by two commands");
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 1 })?;
    let shared = lab.host("murmesh00")?.log_directory();
    fs::copy(package, shared.join("first.deb"))?;
    fs::copy(later, shared.join("second.deb"))?;
    for pipe in ["join", "begin", "end"] {
        mkfifo(&shared.join(pipe), Mode::S_IRWXU)?;
    }
    let start = |host| Machine::start(host, &shared);
    let machines = lab.hosts().iter().map(start).collect::<Result<Vec<_>>>()?;
    machines.iter().try_for_each(Machine::wait)?;
    let play = |machine: &Machine| Process::spawn(machine.command("sh")?.args(["-c", SCRIPT]));
    let playing = machines.iter().map(play).collect::<Result<Vec<_>>>()?;
    // The client ends last, whether it goes well or not.
    for (machine, process) in machines.iter().zip(playing).rev() {
        let name = machine.host().name();
        let ended = process.output(DEADLINE).with_context(|| format!("on {name}"))?;
        let said = [ended.stdout, ended.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(ended.status.success(), "{name} said:\n{said}");
        said.lines().filter(|line| line.starts_with("from the package")).for_each(progress);
    }
    Ok(())
}
