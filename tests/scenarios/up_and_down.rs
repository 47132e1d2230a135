//! A mesh by two commands, and what keeps its daemons running where there is no systemd.

use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Process, TUNNEL_PORT, Topology};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::kernel::hooks;
use crate::support::{DEADLINE, ask, greet, greeting, skipped, text, wait_until};

const PORT: u16 = 8230;

/// From a host with nothing but the program to the first encrypted connection.
const BAR: Duration = Duration::from_secs(60);

/// What `/etc/murmesh/murmesh.toml` is on a real host: here each host of the lab has its own directories.
fn configuration(host: &Host) -> Result<PathBuf> {
    let path = host.log_directory().join("murmesh.toml");
    let directories = format!(
        "data-dir = {:?}\nrun-dir = {:?}\n",
        host.data_directory().join("kept"),
        host.run_directory().join("murmesh")
    );
    let kernel = format!("bpf-dir = {:?}\ncgroup = {:?}\n", host.bpf_directory(), host.cgroup());
    fs::write(&path, format!("[server]\n{directories}[agent]\n{directories}{kernel}"))?;
    Ok(path)
}

/// Runs `murmesh COMMAND --config FILE ARGUMENTS`.
fn murmesh(host: &Host, command: &str, arguments: &[&str]) -> Result<Output> {
    let path = configuration(host)?.display().to_string();
    host.run("murmesh", [command, "--config", &path].iter().chain(arguments), b"", DEADLINE)
}

fn succeed(host: &Host, command: &str, arguments: &[&str]) -> Result<String> {
    let output = murmesh(host, command, arguments)?;
    ensure!(output.status.success(), "{command} on {}: {}", host.name(), text(&output.stderr));
    Ok(text(&output.stdout) + &text(&output.stderr))
}

/// The token in the line that `init` prints.
fn token(said: &str) -> Result<&str> {
    let line = said.lines().find_map(|line| line.strip_prefix("murmesh up --join "));
    line.with_context(|| format!("no line to paste in {said:?}"))
}

/// Process ids of the agents of a host; the supervisor is none.
fn agent(host: &Host) -> Result<Pid> {
    let processes = fs::read_to_string(host.cgroup().join("cgroup.procs"))?;
    let is_agent = |process: &&str| {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"agent")
    };
    let found = processes.lines().find(is_agent).context("an agent runs")?;
    Ok(Pid::from_raw(found.parse()?))
}

/// `status` of the agent in the directories of [`configuration`].
fn is_healthy(host: &Host) -> Result<bool> {
    let run_dir = host.run_directory().join("murmesh").display().to_string();
    Ok(host.run("murmesh", ["status", "--run-dir", &run_dir], b"", DEADLINE)?.status.success())
}

#[test]
fn two_commands_encrypt_what_runs_between_two_hosts() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 1 })?;
    let (first, second) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let _service = greet(first, PORT)?;
    let capture = second.capture("tcp")?;

    let begin = Instant::now();
    let said = succeed(first, "init", &[])?;
    succeed(second, "up", &["--daemon", "--join", token(&said)?])?;
    let run_dir = second.run_directory().join("murmesh").display().to_string();
    wait_until("the service is known", || {
        let listed = second.run("murmesh", ["services", "--run-dir", &run_dir], b"", DEADLINE)?;
        Ok(text(&listed.stdout).contains(&PORT.to_string()))
    })?;
    murmesh_lab::wait_for_endpoint(second, (first.ipv4(), PORT).into(), true)?;
    ensure!(ask(second, "murmesh00", PORT)? == greeting(first), "another answer");
    let took = begin.elapsed();
    println!("first encrypted connection after {:.1} s, in two commands", took.as_secs_f64());
    ensure!(took < BAR, "the first encrypted connection took {took:?}");

    let trace = capture.stop()?;
    ensure!(trace.packets().iter().any(|packet| packet.uses_port(TUNNEL_PORT)), "nothing passed the tunnels");
    ensure!(!trace.packets().iter().any(|packet| packet.uses_port(PORT)), "something passed in clear");

    // Once more, and nothing changes.
    let before = (agent(first)?, agent(second)?);
    let again = succeed(first, "init", &[])?;
    ensure!(token(&again)? != token(&said)?, "a token that was used");
    let said = succeed(second, "up", &["--daemon"])?;
    ensure!(said.contains("protected"), "{said}");
    ensure!(before == (agent(first)?, agent(second)?), "an agent was started anew");

    for (host, arguments) in [(second, [].as_slice()), (first, &["--server"])] {
        let said = succeed(host, "down", arguments)?;
        ensure!(said.contains("the agent is stopped"), "{said}");
        ensure!(hooks(host)?.is_empty() && agent(host).is_err(), "the agent of {} is not gone", host.name());
    }
    let said = succeed(first, "down", &["--server"])?;
    ensure!(said.contains("no agent runs") && said.contains("no server runs"), "{said}");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_is_started_again_and_one_that_is_stopped_is_not() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 0 })?;
    let host = lab.host("murmesh00")?;
    succeed(host, "init", &[])?;
    let killed = agent(host)?;
    kill(killed, Signal::SIGKILL)?;
    wait_until("another agent protects the host", || {
        Ok(agent(host).is_ok_and(|agent| agent != killed) && is_healthy(host)?)
    })?;
    let stopped = agent(host)?;
    kill(stopped, Signal::SIGTERM)?;
    wait_until("the supervisor has ended with it", || {
        Ok(!host.run_directory().join("murmesh/agent.pid").exists())
    })?;
    ensure!(agent(host).is_err() && hooks(host)?.is_empty(), "an agent runs");
    Ok(())
}

#[test]
fn an_agent_that_has_taken_over_is_started_again_too() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 0 })?;
    let host = lab.host("murmesh00")?;
    succeed(host, "init", &[])?;
    let older = agent(host)?;
    kill(older, Signal::SIGUSR2)?;
    wait_until("a newer agent has taken over, and the older one has ended", || {
        Ok(agent(host).is_ok_and(|agent| agent != older) && is_healthy(host)?)
    })?;
    let newer = agent(host)?;
    kill(newer, Signal::SIGKILL)?;
    wait_until("another agent protects the host", || {
        Ok(agent(host).is_ok_and(|agent| agent != newer) && is_healthy(host)?)
    })?;
    let said = succeed(host, "down", &[])?;
    ensure!(said.contains("the agent is stopped") && agent(host).is_err(), "{said}");
    Ok(())
}

#[test]
fn in_the_foreground_the_agent_runs_until_it_is_interrupted() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 1 })?;
    let (first, second) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let said = succeed(first, "init", &[])?;
    let mut up = second.command("murmesh")?;
    up.args(["up", "--join", token(&said)?, "--config"]).arg(configuration(second)?).stdin(Stdio::null());
    let up = Process::spawn(&mut up)?;
    up.wait_for_line("protected", DEADLINE)?;
    ensure!(is_healthy(second)?, "{}", up.said());
    up.signal(Signal::SIGINT)?;
    up.wait_for_line("stopped", DEADLINE)?;
    ensure!(up.output(DEADLINE)?.status.success(), "a clean stop is no failure");
    ensure!(hooks(second)?.is_empty(), "hooks are left");
    Ok(())
}

#[test]
fn up_says_why_a_host_is_not_protected() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 1 })?;
    let (first, second) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let refused = |arguments: &[&str], words: &[&str]| -> Result<()> {
        let output = murmesh(second, "up", arguments)?;
        let said = text(&output.stderr);
        ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
        ensure!(words.iter().all(|word| said.contains(word)), "{said}");
        ensure!(hooks(second)?.is_empty() && agent(second).is_err(), "something runs");
        Ok(())
    };
    refused(&["--daemon"], &["no membership", "murmesh token create", "--join"])?;
    let said = succeed(first, "init", &[])?;
    let token = token(&said)?;
    let _squatter = second.spawn("socat", [&format!("tcp4-listen:{TUNNEL_PORT}"), "-"])?;
    second.wait_listening(TUNNEL_PORT, DEADLINE)?;
    refused(&["--daemon", "--join", token], &["agent.log", &TUNNEL_PORT.to_string(), "in use"])?;
    refused(&[], &[])
}
