//! A new agent takes over from a running one: no connection is refused or reset, whatever becomes of either.

use std::env;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::process::{ChildStdin, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Process, Steady, Topology};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use serde_json::Value;

use crate::support::kernel::{HOOKS, hooks};
use crate::support::{
    DEADLINE, Daemons, ask, greet, greeting, json, kill, murmesh, skipped, text, wait_for_endpoint,
    wait_until,
};

const PORT: u16 = 8181;
/// Where the connection that stays open leads.
const OPEN_PORT: u16 = 8571;
/// Connections per second, for ten upgrades.
const FULL: &str = "MURMESH_UPGRADES";
/// What the agent that takes over says.
const TAKEN_OVER: &str = "has taken over";

#[test]
fn upgrades_under_load_refuse_and_reset_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let (upgrades, rate) = match env::var(FULL) {
        Ok(rate) => (10, rate.parse().with_context(|| format!("{FULL} is a number"))?),
        Err(_) => (3, 300),
    };
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let named = service.probe(["name", "web", &PORT.to_string()])?;
    named.wait_for_line("listening", DEADLINE)?;
    let open = Open::start(client, service, upgrades)?;
    wait_for_endpoint(client, service, PORT)?;
    let load = Steady::begin_at(client, SocketAddr::from((service.ipv4(), PORT)), rate)?;

    let mut older = Vec::new();
    for upgrade in 0..upgrades {
        for host in [client, service] {
            let mut command = take_over(&mut daemons, host)?;
            let agent = Process::spawn(&mut command)?;
            agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
            older.push(daemons.replace_agent(host, agent)?);
        }
        open.exchange(upgrade)?;
        for host in [client, service] {
            wait_until("an older agent carries the open connection, and nothing else", || {
                Ok(older_agents(host)?.iter().any(|agent| agent["streams"] == 1))
            })?;
        }
    }
    let outcome = load.end()?;
    println!("{upgrades} upgrades of both agents, {rate} connections per second: {outcome:?}");
    outcome.ensure_all_answered()?;
    ensure!(hooks(client)?.len() == HOOKS, "a second set of programs: {:?}", hooks(client)?);
    let page = text(&murmesh(client, &["status"])?.stdout);
    ensure!(page.contains("drains 1 connections") && page.contains("all is well"), "{page}");

    open.end()?;
    for mut agent in older {
        let status = agent.wait(DEADLINE)?;
        ensure!(status.success(), "{status}: {}", agent.said());
    }
    for host in [client, service] {
        wait_until("no older agent is left", || Ok(older_agents(host)?.is_empty()))?;
    }
    Ok(())
}

/// Looks at what `host` knows of the service again and again until `stop`, and says how often.
fn watch_instance(host: &Host, stop: &AtomicBool) -> Result<u32> {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        // A command that comes in the moment in which its own agent hands over may have to be given again.
        let Ok(listed) = json(host, "services") else { continue };
        let found = listed.as_array().into_iter().flatten().find(|service| service["service"] == "fortune");
        let state = found.map(|service| service["state"].clone());
        ensure!(state == Some("healthy".into()), "look {looks} on {}: {listed}", host.name());
        looks += 1;
    }
    Ok(looks)
}

#[test]
fn instances_stay_in_every_catalog_during_upgrades() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let _service = greet(service, PORT)?;
    server.murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", "8181"])?;
    for host in [server, client] {
        wait_until("the instance is healthy", || {
            let listed = json(host, "services")?;
            let mut named = listed.as_array().into_iter().flatten();
            Ok(named.any(|service| service["service"] == "fortune" && service["state"] == "healthy"))
        })?;
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let watching = [server, client].map(|host| scope.spawn(|| watch_instance(host, &stop)));
        let upgraded = upgrade(&mut daemons, &[service, client, service, client]);
        stop.store(true, Ordering::Relaxed);
        for watching in watching {
            let looks = watching.join().map_err(|_| anyhow::anyhow!("the watch panicked"))??;
            ensure!(looks > 0, "nobody has looked");
        }
        for agent in upgraded?.iter().chain([daemons.agent(service)?, daemons.agent(client)?]) {
            ensure!(!agent.said().contains("not serving any more"), "{}", agent.said());
        }
        Ok(())
    })
}

/// Has a new agent take over on one of `hosts` after the other; returns the old ones.
fn upgrade(daemons: &mut Daemons<'_>, hosts: &[&Host]) -> Result<Vec<Process>> {
    let one = |host: &&Host| {
        let agent = Process::spawn(&mut take_over(daemons, host)?)?;
        agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
        daemons.replace_agent(host, agent)
    };
    hosts.iter().map(one).collect()
}

#[test]
fn an_agent_takes_over_on_a_signal_and_systemd_is_told() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let _service = greet(service, PORT)?;
    daemons.stop_agent(client)?;
    let path = client.run_directory().join("notify.sock");
    let systemd = UnixDatagram::bind(&path)?;
    systemd.set_read_timeout(Some(DEADLINE))?;
    let mut command = client.agent_command(&daemons.token(client)?)?;
    daemons.start_agent_by(client, command.env("NOTIFY_SOCKET", &path))?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;

    let agent = daemons.agent(client)?;
    agent.signal(Signal::SIGUSR2)?;
    agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
    let process = told(&systemd, "MAINPID=")?;
    agent.wait_for_line(&format!("handed over to={process}"), DEADLINE)?;
    agent.wait_for_line("stopped", DEADLINE)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);
    Ok(())
}

#[test]
fn a_new_agent_that_does_not_start_leaves_the_old_one_as_it_was() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _service) = Daemons::carrying(&lab, PORT)?;
    // Without the flag a second agent is refused as ever.
    let mut second = Process::spawn(&mut client.agent_command(&daemons.token(client)?)?)?;
    ensure!(!second.wait(DEADLINE)?.success() && second.said().contains("is in use by a running daemon"));
    // With other options it is not the same agent.
    let mut other = Process::spawn(take_over(&mut daemons, client)?.args(["--outbound-port", "15002"]))?;
    ensure!(!other.wait(DEADLINE)?.success());
    other.wait_for_line("its --outbound-port is 15001, and that of the new one 15002", DEADLINE)?;
    // One that is killed on its way there.
    let killed = Process::spawn(&mut take_over(&mut daemons, client)?)?;
    killed.wait_for_line("taking over from a running agent", DEADLINE)?;
    kill(killed)?;
    daemons.agent(client)?.wait_for_line("this one goes on: it has ended", DEADLINE)?;

    daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);
    let page = text(&murmesh(client, &["status"])?.stdout);
    ensure!(page.contains("all is well"), "{page}");
    // Nothing of that keeps the next one from taking over.
    let agent = Process::spawn(&mut take_over(&mut daemons, client)?)?;
    agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
    let mut older = daemons.replace_agent(client, agent)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(older.wait(DEADLINE)?.success(), "{}", older.said());
    Ok(())
}

#[test]
fn an_agent_that_is_killed_while_it_hands_over_leaves_all_to_the_new_one_and_nothing_goes_in_clear()
-> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _service) = Daemons::carrying(&lab, PORT)?;
    let capture = client.capture("tcp port 8181")?;
    let agent = Process::spawn(&mut take_over(&mut daemons, client)?)?;
    agent.wait_for_line("taking over from a running agent", DEADLINE)?;
    daemons.kill_agent(client)?;
    agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
    daemons.adopt_agent(client, agent);
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}

#[test]
fn an_agent_that_is_held_up_while_it_hands_over_gives_way_when_it_goes_on() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _service) = Daemons::carrying(&lab, PORT)?;
    let agent = Process::spawn(&mut take_over(&mut daemons, client)?)?;
    agent.wait_for_line("taking over from a running agent", DEADLINE)?;
    daemons.agent(client)?.signal(Signal::SIGSTOP)?;
    agent.wait_for_line("does not answer, nor has it ended", DEADLINE)?;
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    daemons.agent(client)?.signal(Signal::SIGCONT)?;
    agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
    let mut older = daemons.replace_agent(client, agent)?;
    ensure!(older.wait(DEADLINE)?.success(), "{}", older.said());
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);
    ensure!(ask(client, "fcs00", PORT)? == greeting(service));
    Ok(())
}

#[test]
fn another_version_of_the_protocol_is_refused_with_words() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let daemons = Daemons::start(&lab)?;
    let stranger = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(stranger.as_raw_fd(), &UnixAddr::new(&client.run_directory().join("agent.takeover.sock"))?)?;
    let hello = r#"{"protocol": 99, "version": "9.9.9", "terms": {}, "more": 1}"#;
    send(stranger.as_raw_fd(), hello.as_bytes(), MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(stranger.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let answer: Value = serde_json::from_slice(&answer[..length])?;
    let reason = answer["Refused"].as_str().context("it is refused")?;
    ensure!(reason.contains("the new one (9.9.9) version 99"), "{reason}");
    daemons.agent(client)?.wait_for_line("this one goes on", DEADLINE)?;
    Ok(())
}

#[test]
fn maps_of_another_layout_are_replaced_and_rules_hold_meanwhile() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _service) = Daemons::carrying(&lab, PORT)?;
    let layouts = || -> Result<Vec<String>> {
        let entries = std::fs::read_dir(client.bpf_directory())?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| name.starts_with("layout-")).collect())
    };
    let current = layouts()?;
    let directory = client.bpf_directory();
    std::fs::rename(directory.join(&current[0]), directory.join("layout-0"))?;
    let capture = client.capture("tcp port 8181")?;
    let agent = Process::spawn(&mut take_over(&mut daemons, client)?)?;
    agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
    let mut older = daemons.replace_agent(client, agent)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(older.wait(DEADLINE)?.success(), "{}", older.said());
    ensure!(layouts()? == current, "{:?}", layouts()?);
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}

#[test]
fn a_connection_that_outlasts_the_time_for_it_is_reset_after_an_upgrade() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(service)?;
    let mut agent = client.agent_command(&daemons.token(client)?)?;
    daemons.start_agent_by(client, agent.args(["--upgrade-drain-timeout", "1s"]))?;
    let _service = service.spawn("socat", [&format!("tcp4-listen:{PORT},fork,reuseaddr"), "exec:cat"])?;
    service.wait_listening(PORT, DEADLINE)?;
    wait_for_endpoint(client, service, PORT)?;
    let steps = ["send=x", "expect=x", "say=open", "expect-reset"];
    let destination = format!("{}:{PORT}", service.ipv4());
    let open = client.probe(["connect", &destination].into_iter().chain(steps))?;
    open.wait_for_line("open", DEADLINE)?;

    let agent = Process::spawn(&mut take_over(&mut daemons, client)?)?;
    agent.wait_for_line(TAKEN_OVER, DEADLINE)?;
    let mut older = daemons.replace_agent(client, agent)?;
    open.succeed(DEADLINE)?;
    ensure!(older.wait(DEADLINE)?.success(), "{}", older.said());
    Ok(())
}

/// The command line of an agent that takes over.
fn take_over(daemons: &mut Daemons<'_>, host: &Host) -> Result<Command> {
    let mut command = host.agent_command(&daemons.token(host)?)?;
    command.arg("--take-over");
    Ok(command)
}

fn older_agents(host: &Host) -> Result<Vec<Value>> {
    Ok(json(host, "status")?["older_agents"].as_array().cloned().unwrap_or_default())
}

/// What follows `prefix` in the first notification that begins with it.
fn told(systemd: &UnixDatagram, prefix: &str) -> Result<String> {
    let mut buffer = [0; 4096];
    loop {
        let length = systemd.recv(&mut buffer).context("systemd was not told")?;
        if let Some(rest) = text(&buffer[..length]).strip_prefix(prefix) {
            return Ok(rest.trim().to_owned());
        }
    }
}

/// A connection that is there before all upgrades, and carries bytes both ways after each: its two ends, and what they
/// wait for.
struct Open([(Process, ChildStdin); 2]);

impl Open {
    fn start(client: &Host, service: &Host, exchanges: u32) -> Result<Self> {
        let mut steps: Vec<String> = ["send=x", "expect=x", "say=open"].map(str::to_owned).into();
        for exchange in 0..exchanges {
            let said = format!("say=exchanged {exchange}.");
            steps.extend(["wait".to_owned(), "send=begin".to_owned(), "expect=begin".to_owned(), said]);
        }
        steps.extend(["wait".to_owned(), "exchange=1000000".to_owned()]);
        let listening = ["listen".to_owned(), format!("[::]:{OPEN_PORT}")];
        let end = service.probe(listening.iter().chain(&steps))?;
        end.wait_for_line("listening", DEADLINE)?;
        wait_for_endpoint(client, service, OPEN_PORT)?;
        let connecting = ["connect".to_owned(), format!("{}:{OPEN_PORT}", service.ipv4())];
        let other = client.probe(connecting.iter().chain(&steps))?;
        let with_input = |mut end: Process| {
            end.wait_for_line("open", DEADLINE)?;
            let input = end.take_stdin().context("stdin is a pipe")?;
            anyhow::Ok((end, input))
        };
        Ok(Self([with_input(end)?, with_input(other)?]))
    }

    fn exchange(&self, number: u32) -> Result<()> {
        self.go_on()?;
        self.0
            .iter()
            .try_for_each(|(end, _)| end.wait_for_line(&format!("exchanged {number}."), DEADLINE).map(drop))
    }

    fn end(self) -> Result<()> {
        self.go_on()?;
        self.0.into_iter().try_for_each(|(end, _input)| end.succeed(Duration::from_secs(60)).map(drop))
    }

    fn go_on(&self) -> Result<()> {
        self.0.iter().try_for_each(|(_, input)| Ok((&*input).write_all(b"now\n")?))
    }
}
