//! A host has no memory left for its agent: the agent ends, strict services stay closed, and the next one serves again.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology};

use crate::support::kernel::move_to;
use crate::support::{Daemons, ask, go_strict, skipped, wait_for_endpoint, wait_until};

const PORT: u16 = 8181;

/// Where cgroups of version 1 limit memory.
const MEMORY: &str = "/sys/fs/cgroup/memory";

/// What the strict service gives back.
const SECRET: &[u8] = b"a secret of the strict service 90f3";

/// `fcc00` reaches a strict service at `PORT` of `fcs00`, which gives back what it gets.
fn strict_service(lab: &Lab) -> Result<(Daemons<'_>, Process)> {
    let (outsider, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(lab)?;
    let keep = service.probe(["keep", &PORT.to_string()])?;
    keep.wait_for_line("listening", DEADLINE)?;
    wait_for_endpoint(client, service, PORT)?;
    go_strict(outsider, service, "keep", PORT)?;
    Ok((daemons, keep))
}

/// What came back of the secret.
fn exchange(client: &Host) -> Result<Vec<u8>> {
    Ok(client.run("nc", ["-N", "fcs00", &PORT.to_string()], SECRET, DEADLINE)?.stdout)
}

/// Memory of a process that is its own and can be written, in bytes.
fn writable(process: &Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:")).context("a line with VmData")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Has it that `exhaust` leaves the agent of the service without memory, under load, and looks at what becomes of it.
fn ensure_closed_until_an_agent_runs(exhaust: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
    let lab = Lab::new(Topology::default())?;
    let (outsider, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _keep) = strict_service(&lab)?;
    ensure!(exchange(client)? == SECRET);
    let capture = service.capture("tcp port 8181")?;
    let agent = daemons.agent(service)?;
    exhaust(agent)?;
    let (process, destination) =
        (PathBuf::from(format!("/proc/{}/task", agent.id())), SocketAddr::from((service.ipv4(), PORT)));
    wait_until("the agent has ended", || {
        let load = client.probe(["hold", &destination.to_string(), "500", "--at-most"])?;
        load.wait_for_line("open ", DEADLINE)?;
        Ok(fs::read_dir(&process).map_or(0, Iterator::count) <= 1)
    })?;
    ensure!(ask(outsider, "fcs00", PORT).is_err(), "a stranger reached a strict service");
    ensure!(exchange(client)?.is_empty(), "somebody answered");
    daemons.kill_agent(service)?;
    daemons.start_agent(service)?;
    wait_until("the service is reached again", || Ok(exchange(client)? == SECRET))?;
    ensure!(ask(outsider, "fcs00", PORT).is_err(), "a stranger reached a strict service");
    let trace = capture.stop()?;
    ensure!(trace.packets().iter().all(|packet| packet.payload.is_empty()), "bytes went in clear");
    Ok(())
}

#[test]
fn an_agent_that_gets_no_memory_ends_and_a_strict_service_stays_closed_until_the_next() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    ensure_closed_until_an_agent_runs(|agent| {
        let (id, limit) = (agent.id().to_string(), format!("--data={}", writable(agent)?));
        Process::spawn(Command::new("prlimit").args(["--pid", &id, &limit]))?.succeed(DEADLINE).map(drop)
    })
}

/// A cgroup of version 1 whose processes are killed when they need more than a megabyte beyond what they have.
struct SmallCgroup(PathBuf);

impl SmallCgroup {
    fn make() -> Result<Self> {
        let cgroup = Self(Path::new(MEMORY).join(format!("murmesh-lab-{}", std::process::id())));
        fs::create_dir(&cgroup.0).with_context(|| format!("making {}", cgroup.0.display()))?;
        for (setting, value) in [("memory.limit_in_bytes", "1M"), ("memory.swappiness", "0")] {
            fs::write(cgroup.0.join(setting), value).context(setting)?;
        }
        Ok(cgroup)
    }
}

impl Drop for SmallCgroup {
    fn drop(&mut self) {
        // What is left of those that were in it may keep it for a moment, and it limits nobody else.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn an_agent_that_the_kernel_kills_for_its_memory_leaves_a_strict_service_closed_until_the_next() -> Result<()>
{
    if skipped() {
        return Ok(());
    }
    if !Path::new(MEMORY).join("memory.limit_in_bytes").exists() {
        eprintln!("skipped: memory is not limited by cgroups of version 1 here ({MEMORY})");
        return Ok(());
    }
    let small = SmallCgroup::make()?;
    ensure_closed_until_an_agent_runs(|agent| move_to(&small.0, agent.id()))
}
