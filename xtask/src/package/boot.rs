//! A host with the package that is booted again: nobody gets in before its agent, which needs no server for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Lab, Machine, Process, Topology};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::shell::progress;

/// A service that starts before the agent, and a network that is not done with starting until somebody has tried to
/// connect. Arguments: a join token.
const PREPARE: &str = include_str!("boot.sh");

/// Tries to connect to an address whenever the network of the host there has come up, and tells when it has.
const OUTSIDER: &str = "
    while read -r _ <\"$1/up\"; do
        nc -w 5 \"$0\" 8181 </dev/null && echo 'let in' || echo 'kept out'
        echo >\"$1/tried\"
    done";

/// Waits until nobody can connect to an address in clear.
const REFUSED: &str = "while nc -z -w 5 \"$0\" 8181; do :; done";

/// Waits until what the agent knows is on disk.
const SAVED: &str = "
    revisions() { murmesh status -o json | grep -E '\"(saved|catalog)_revision\"' | grep -o '[0-9]*' | uniq; }
    until [ \"$(revisions | wc -l)\" = 1 ]; do :; done";

/// Tells since when the units are there: the service, the agent, the network.
const SINCE: &str = "
    until systemctl is-active --quiet network; do :; done
    for unit in hello murmesh-agent network; do
        systemctl show --property ActiveEnterTimestampMonotonic --value \"$unit\"
    done";

/// For one step, on a machine that does other things too.
const DEADLINE: Duration = Duration::from_secs(120);

/// Boots a host with a strict service again, while no server answers, and has an outsider and a member connect.
pub fn run(package: &Path) -> Result<()> {
    if let Some(reason) = Machine::unavailable() {
        progress(&format!("no host is booted: {reason}"));
        return Ok(());
    }
    progress("a host with a strict service is booted again, while no server answers");
    let lab = Lab::new(Topology { servers: 1, services: 1, clients: 1 })?;
    let [member, host, outsider] = ["murmesh00", "fcs00", "fcc00"].map(|name| lab.host(name));
    let (member, host, outsider) = (member?, host?, outsider?);
    let shared = member.log_directory();
    fs::copy(package, shared.join("murmesh.deb"))?;
    for pipe in ["up", "tried"] {
        mkfifo(&shared.join(pipe), Mode::S_IRWXU)?;
    }
    let (server, booted) = (Machine::start(member, &shared)?, Machine::start(host, &shared)?);
    [&server, &booted].into_iter().try_for_each(Machine::wait)?;
    let run = |machine: &Machine, script: &str, argument: &str| {
        Process::spawn(machine.command("sh")?.args(["-euc", script, argument]))?
            .succeed(DEADLINE)
            .with_context(|| format!("on {}: {script}", machine.host().name()))
    };
    run(&server, "dpkg --install /mnt/murmesh.deb; murmesh init >/tmp/join", "")?;
    let token = run(&server, "murmesh token create", "")?;
    run(&booted, PREPARE, token.trim())?;
    let address = host.ipv4().to_string();
    let talk = "until [ \"$(nc -w 5 \"$0\" 8181 </dev/null)\" = hello ]; do :; done";
    run(&server, "until murmesh services | grep -q 8181; do :; done", "")?;
    let strict = "murmesh service set hello --host fcs00 --port 8181 --mode strict --force";
    run(&server, strict, "")?;
    run(&server, talk, &address)?;
    outsider.spawn("sh", ["-c", REFUSED, &*address])?.succeed(DEADLINE)?;
    run(&booted, SAVED, "")?;
    run(&server, "systemctl stop murmesh-server", "")?;

    let tries = outsider.spawn("sh", ["-c", OUTSIDER, &*address, &*shared.to_string_lossy()])?;
    booted.reboot()?;
    let since = run(&booted, SINCE, "")?;
    let said = tries.said();
    ensure!(
        said.contains("kept out") && !said.contains("let in"),
        "an outsider that connected at boot: {said}"
    );
    let times = since.lines().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    ensure!(times[0] > 0 && times.is_sorted(), "since when service, agent and network are there: {since}");
    run(&server, talk, &address)?;
    run(&booted, "murmesh status | grep -q 'is PROTECTED'", "")?;
    Ok(())
}
