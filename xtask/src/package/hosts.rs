//! The package on two hosts that systemd runs: a mesh by two commands.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Lab, Process, Topology};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::shell::{self, progress};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// For both hosts to do everything, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(240);

/// Installs `package` on both, begins a mesh, joins, connects, kills an agent, upgrades to `later`, leaves, purges.
pub fn run(package: &Path, later: &Path) -> Result<()> {
    if !Path::new(SYSTEMD).exists() {
        progress("it is not tried with systemd, which this machine does not have");
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
    let scripts = shell::repository().join("xtask/src/package");
    let mut hosts = Vec::new();
    for host in lab.hosts() {
        let mut boot = host.command("unshare")?;
        boot.args(["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup", "sh"]);
        boot.arg(scripts.join("boot.sh")).args([&host.data_directory(), &shared]);
        boot.arg(host.name()).arg(scripts.join("hosts.sh"));
        hosts.push((host.name(), Process::spawn(&mut boot)?));
    }
    // The client ends last, whether it goes well or not.
    hosts.reverse();
    for (name, mut host) in hosts {
        let ended = host.wait(DEADLINE);
        let said = fs::read_to_string(shared.join(format!("said.{name}"))).unwrap_or_default();
        ended.with_context(|| format!("{name} said:\n{said}"))?;
        let status = fs::read_to_string(shared.join(format!("status.{name}"))).unwrap_or_default();
        ensure!(status.trim() == "0", "{name} said:\n{said}{}", host.said());
        said.lines().filter(|line| line.starts_with("from the package")).for_each(progress);
    }
    Ok(())
}
