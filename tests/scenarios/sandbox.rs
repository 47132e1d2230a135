//! What is left to a daemon that runs: started by hand as root, and as the user of its unit.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use data_encoding::HEXLOWER;
use murmesh::identity::JoinToken;
use murmesh_lab::{Host, Lab, Mesh, Process, Topology, contains};
use nix::sys::signal::Signal;

use crate::at_rest;
use crate::support::instances::Instances;
use crate::support::{
    DEADLINE, Daemons, greet, greeting, json, skipped, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8241;
/// Of nobody on this machine.
const USER: u32 = 64_711;
const AGENT: &str = include_str!("../../deploy/systemd/murmesh-agent.service");
const SERVER: &str = include_str!("../../deploy/systemd/murmesh-server.service");
const PASSPHRASE: &str = "a horse that is correct, a battery and a staple";
/// In linux/capability.h.
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// What systemd makes of the unit's user, capabilities and mounts: the host's part of the BPF file system is the user's,
/// and nothing else of it can be seen. Arguments: that directory, the program, and a command that runs it by `$program`.
const UNIT: &str = r#"
set -eu
bpf=$1 program=$2
shift 2
mount -t tmpfs -o mode=755 none /mnt
mkdir -p "/mnt${bpf#/sys/fs/bpf}" /mnt/bin
touch /mnt/bin/murmesh
mount --bind "$bpf" "/mnt${bpf#/sys/fs/bpf}"
mount --bind "$program" /mnt/bin/murmesh
mount --rbind /mnt /sys/fs/bpf
exec "$@"
"#;

/// The capabilities that `unit` gives.
fn given(unit: &str) -> Vec<String> {
    let line = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities="));
    let names = line.unwrap_or_default().split_whitespace();
    names.map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect()
}

/// `command` as its unit runs it, with these capabilities.
fn as_unit(host: &Host, command: &Command, capabilities: &[String]) -> Result<Command> {
    let bpf = host.bpf_directory();
    fs::create_dir_all(bpf)?;
    for directory in [bpf, &host.data_directory(), &host.run_directory()] {
        chown(directory, Some(USER), Some(USER))?;
    }
    let set = capabilities.iter().map(|name| format!(",+{name}")).collect::<String>();
    let mut unit = host.command("sh")?;
    unit.args(["-c", UNIT, "sh"]).arg(bpf).arg(murmesh_lab::murmesh_binary()?);
    unit.args(["setpriv", "--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups"]);
    unit.args(["bounding-set", "inh-caps", "ambient-caps"].map(|name| format!("--{name}=-all{set}")));
    unit.args(["--no-new-privs", "/sys/fs/bpf/bin/murmesh"]).args(command.get_args());
    Ok(unit)
}

/// The same for the agent, whose pins are below the directory that is its user's.
fn agent_as_unit(host: &Host, token: &str, capabilities: &[String]) -> Result<Command> {
    let mut command = host.agent_command(token)?;
    let bpf = host.bpf_directory().join("agent");
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    command = Command::new("murmesh");
    let mut is_bpf = false;
    for argument in arguments {
        command.arg(if is_bpf { bpf.as_os_str() } else { argument.as_os_str() });
        is_bpf = argument == "--bpf-dir";
    }
    as_unit(host, &command, capabilities)
}

#[test]
fn the_user_and_the_capabilities_of_the_units_are_enough() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (first, service, client) = (lab.host("murmesh00")?, lab.host("fcs00")?, lab.host("fcc00")?);
    let server = Process::spawn(&mut as_unit(first, &first.server_command()?, &given(SERVER))?)?;
    server.wait_for_line(": ready", DEADLINE)?;
    let mut agents = Vec::new();
    for host in [service, client] {
        let token = first.create_token()?;
        let agent = Process::spawn(&mut agent_as_unit(host, &token, &given(AGENT))?)?;
        agent.wait_for_line(": ready", DEADLINE)?;
        agents.push(agent);
    }
    let _listener = greet(service, PORT)?;
    client.wait_for_service(service.name(), PORT, DEADLINE)?;
    // Somebody else's process, whose name the agent has to find out.
    let somebody = ["--reuid", "nobody", "--clear-groups", "nc", "-N", "fcs00", &PORT.to_string()];
    let answer = client.run("setpriv", somebody, b"", DEADLINE)?;
    ensure!(text(&answer.stdout) == greeting(service), "{}", text(&answer.stderr));
    agents[0].wait_for_line("user-nobody", DEADLINE)?;
    for host in [service, client] {
        let status = json(host, "status")?;
        ensure!(status["healthy"] == true && status["sandbox"]["uid"] == USER, "{status}");
        // What the unit gives for workloads that are told by their program is given up where there are none.
        let left = serde_json::json!(["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        ensure!(status["sandbox"]["capabilities"] == left, "{status}");
    }
    // Who listens on the port is found by root, who asks.
    let found = service.murmesh(["whois", &format!("127.0.0.1:{PORT}")])?;
    ensure!(found.contains("pid"), "{found}");
    // The version that is there now takes over, as after `systemctl reload`.
    agents[1].signal(Signal::SIGUSR2)?;
    agents[1].wait_for_line("handed over", DEADLINE)?;
    wait_until("the new agent is well", || Ok(json(client, "status")?["healthy"] == true))?;
    let answer = client.run("nc", ["-N", "fcs00", &PORT.to_string()], b"", DEADLINE)?;
    ensure!(text(&answer.stdout) == greeting(service), "{}", text(&answer.stderr));
    drop(agents.pop());
    for agent in agents {
        ensure!(agent.stop(DEADLINE)?.success(), "an agent could not clean up");
    }
    ensure!(!service.bpf_directory().join("agent").exists(), "pins are left");
    Ok(())
}

#[test]
fn an_agent_that_lacks_a_capability_names_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let token = Daemons::server_only(&lab)?.token(client)?;
    for (lacks, name) in [("bpf", "CAP_BPF"), ("net_admin", "CAP_NET_ADMIN"), ("perfmon", "CAP_PERFMON")] {
        let left: Vec<_> = given(AGENT).into_iter().filter(|name| name != lacks).collect();
        let ended = Process::spawn(&mut agent_as_unit(client, &token, &left)?)?.output(DEADLINE)?;
        let said = text(&ended.stderr);
        ensure!(ended.status.code() == Some(1) && said.contains(name) && said.contains("root"), "{said}");
    }
    Ok(())
}

/// The value of a line of /proc/PID/status, of every thread; they must agree.
fn of_all_threads(daemon: &Process, name: &str) -> Result<String> {
    let mut values = BTreeSet::new();
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.id()))? {
        // It may have ended.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        values.insert(value.with_context(|| format!("no {name}"))?.trim().to_owned());
    }
    ensure!(values.len() == 1, "{name} differs: {values:?}");
    values.pop_first().context("no thread")
}

#[test]
fn daemons_of_root_give_up_what_they_do_not_need_and_leave_no_core() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (first, client) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let server = first.start_server()?;
    let agent = client.start_agent(&first.create_token()?)?;
    for (mut daemon, left) in [(agent, CAP_BPF | CAP_NET_ADMIN | CAP_PERFMON), (server, 0)] {
        for (set, wanted) in [("CapInh", left), ("CapPrm", left), ("CapEff", left), ("CapBnd", 0)] {
            let value = of_all_threads(&daemon, set)?;
            ensure!(u64::from_str_radix(&value, 16)? == wanted, "{set} is {value}");
        }
        ensure!(of_all_threads(&daemon, "NoNewPrivs")? == "1");
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id()))?;
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        ensure!(core.is_some_and(|core| core.split_whitespace().take(2).eq(["0", "0"])), "{limits}");
        daemon.signal(Signal::SIGABRT)?;
        let ended = daemon.wait(DEADLINE)?;
        ensure!(ended.signal() == Some(Signal::SIGABRT as i32) && !ended.core_dumped(), "{ended}");
    }
    Ok(())
}

#[test]
fn programs_that_check_services_have_no_capability() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let directory = mesh.host("fcs00")?.checks_directory();
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
    // It fails, and so is seen to have run, if it has none.
    let check = directory.join("has-some");
    fs::write(
        &check,
        "#!/bin/sh\nif grep -q '^CapPrm:.*[1-9a-f]' /proc/self/status; then exit 0; else exit 7; fi\n",
    )?;
    fs::set_permissions(check, Permissions::from_mode(0o755))?;
    let check = ["--check", "command:has-some", "--check-interval", "1s", "--check-timeout", "1s"];
    let instances = Instances::start(&mesh, &["fcs00"], &check)?;
    let reason = instances.wait_state("fcs00", "failing")?;
    ensure!(reason == "command:has-some: exit status: 7", "{reason}");
    Ok(())
}

/// Whether `secret` is anywhere in the memory of the process that it could write.
fn remembers(daemon: &Process, secret: &[u8]) -> Result<bool> {
    let memory = File::open(format!("/proc/{}/mem", daemon.id()))?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", daemon.id()))?;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) =
            line.split(' ').next().and_then(|range| range.split_once('-')).context("a range")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let mut content = vec![0; usize::try_from(end - start)?];
        // What is a device's, or is gone by now, cannot be read.
        if memory.read_exact_at(&mut content, start).is_ok() && contains(&content, secret) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn secrets_are_neither_in_the_log_nor_left_in_the_memory() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (first, service, client) = (lab.host("murmesh00")?, lab.host("fcs00")?, lab.host("fcc00")?);
    let file = first.data_directory().join("passphrase");
    fs::write(&file, format!("{PASSPHRASE}\n"))?;
    let start = |mut command: Command| -> Result<Process> {
        let daemon = Process::spawn(command.env("MURMESH_LOG", "trace"))?;
        daemon.wait_for_line(": ready", DEADLINE)?;
        Ok(daemon)
    };
    let mut server = first.server_command()?;
    server.arg("--seal-passphrase-file").arg(&file);
    let server = start(server)?;
    let mut tokens = Vec::new();
    let mut agents = Vec::new();
    for host in [service, client] {
        let token = first.create_token()?;
        agents.push((host, start(host.agent_command(&token)?)?));
        tokens.push(token.parse::<JoinToken>()?.secret);
    }
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    let answer = client.run("nc", ["-N", "fcs00", &PORT.to_string()], b"", DEADLINE)?;
    ensure!(text(&answer.stdout) == greeting(service), "{}", text(&answer.stderr));
    ensure!(!remembers(&server, PASSPHRASE.as_bytes())?, "the server remembers its passphrase");
    let mut secrets: Vec<Vec<u8>> = tokens.iter().map(|secret| secret.to_vec()).collect();
    let mut logs = Vec::new();
    for (host, agent) in agents {
        let key = fs::read_to_string(host.data_directory().join("seal.key"))?;
        ensure!(!remembers(&agent, key.trim().as_bytes())?, "{} remembers the text of its key", host.name());
        secrets.push(HEXLOWER.decode(key.trim().as_bytes())?);
        agent.signal(Signal::SIGTERM)?;
        agent.wait_for_end(DEADLINE)?;
        secrets.extend(at_rest::secrets(host)?);
        logs.push(agent.output(DEADLINE)?);
    }
    server.signal(Signal::SIGTERM)?;
    logs.push(server.output(DEADLINE)?);
    for said in logs.iter().flat_map(|log| [&log.stdout, &log.stderr]) {
        ensure!(!contains(said, PASSPHRASE.as_bytes()), "the passphrase is in a log");
        for secret in &secrets {
            let shown = [format!("{secret:?}"), format!("{secret:02x?}")];
            let shown = shown.map(|form| form.trim_matches(['[', ']']).to_owned().into_bytes());
            for form in at_rest::forms(secret).iter().chain(&shown) {
                ensure!(!contains(said, form), "a secret is in a log: {}", text(form));
            }
        }
    }
    Ok(())
}
