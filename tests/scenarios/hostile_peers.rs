//! Port 9191 is open to everybody, and not every host of the mesh is a friend.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh::identity::Subject;
use murmesh::tunnel::HANDSHAKE_TIMEOUT;
use murmesh::tunnel::frame::{Open, RefusalReason};
use murmesh_lab::{Host, Lab, Mesh, Process, TUNNEL_PORT, Topology};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::peer::{
    Target, ask_to_be, forged, handshake_error, hold, impersonate, refusal, say_after_handshake, say_at_once,
    stolen,
};
use crate::support::{
    DEADLINE, Daemons, greet, greeting, json, skipped, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;

/// What a busy machine may add to a time-out.
const SLACK: Duration = Duration::from_secs(5);

/// What strangers from one source and the agent itself may take, whatever the machine allows.
const MOST_DESCRIPTORS: usize = 2048 + 500;

const TWO_CLIENTS: Topology = Topology { servers: 1, services: 1, clients: 2 };

/// One line a second at most, with the number of those in between.
const REFUSED: &str = "refused on the tunnel port";

#[test]
fn strangers_are_refused_in_bounded_time_and_memory_while_others_are_served() -> Result<()> {
    const AT_ONCE: usize = 100;
    const ROUNDS: usize = 20;
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(TWO_CLIENTS)?;
    let (client, stranger, service) = (lab.host("fcc00")?, lab.host("fcc01")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    daemons.start_agent(service)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    let agent = daemons.agent(service)?;
    let target = SocketAddr::from((service.ipv4(), TUNNEL_PORT));

    let (started, garbage) = (Instant::now(), [0x4d; 40_000]);
    // What it takes to hold a hundred strangers once is not held against the agent.
    say_at_once(stranger, target, &garbage, AT_ONCE)?;
    let before = memory(agent)?;
    for _ in 0..ROUNDS {
        let held = say_at_once(stranger, target, &garbage, AT_ONCE)?;
        ensure!(held < HANDSHAKE_TIMEOUT + SLACK, "garbage was held for {held:?}");
    }
    // The header of a TLS record (RFC 8446, 5.1) that promises 16 KiB, and nothing at all: both wait for more.
    let slow: [&[u8]; 2] = [&[22, 3, 1, 0x40, 0, 1], &[]];
    let times: Vec<Result<Duration>> = thread::scope(|scope| {
        let attackers = slow.map(|bytes| scope.spawn(move || say_at_once(stranger, target, bytes, AT_ONCE)));
        let served = daemons.ask_through_mesh(client, service, PORT);
        assert_eq!(served.ok().as_deref(), Some(greeting(service).as_str()), "nobody is served meanwhile");
        attackers.into_iter().filter_map(|attacker| attacker.join().ok()).collect()
    });
    for time in times {
        let held = time?;
        ensure!(held < HANDSHAKE_TIMEOUT + SLACK, "a silent stranger was held for {held:?}");
    }
    let grown = memory(agent)?.saturating_sub(before);
    ensure!(grown < 16 * 1024, "the agent grew by {grown} KiB");
    // Garbage of one round more, and two ways to be silent.
    wait_until_counted(service, (ROUNDS + 3) * AT_ONCE)?;
    let lines = text(&agent.stdout()).matches(REFUSED).count();
    ensure!(lines <= usize::try_from(started.elapsed().as_secs())? + 2, "{lines} lines fill the log");
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    Ok(())
}

/// Waits until `host` has counted so many refusals, whatever their reasons.
fn wait_until_counted(host: &Host, refusals: usize) -> Result<()> {
    wait_until("each refusal is counted by its reason", || {
        let status = json(host, "status")?;
        let counts = status["refused"].as_object().context("a count for each reason")?.values();
        Ok(counts.filter_map(Value::as_u64).sum::<u64>() >= u64::try_from(refusals)?)
    })
}

#[test]
fn thousands_of_silent_strangers_keep_no_host_from_its_first_tunnel() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let strangers: usize = env::var("MURMESH_HALF_OPEN").map_or(Ok(2000), |number| number.parse())?;
    let lab = Lab::new(TWO_CLIENTS)?;
    let (client, stranger, service) = (lab.host("fcc00")?, lab.host("fcc01")?, lab.host("fcs00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    daemons.start_agent(service)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    let target = SocketAddr::from((service.ipv4(), TUNNEL_PORT));
    let agent = daemons.agent(service)?;
    let before = memory(agent)?;
    let (ready, connected) = mpsc::channel();
    thread::scope(|scope| {
        let held = scope.spawn(move || hold(stranger, target, &[], strangers, move || _ = ready.send(())));
        connected.recv_timeout(DEADLINE)?;
        let served = daemons.ask_through_mesh(client, service, PORT);
        let each = memory(agent)?.saturating_sub(before) / u64::try_from(strangers)?;
        let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.id()))?.count();
        let held = held.join().ok().context("the strangers panicked")??;
        ensure!(served? == greeting(service));
        ensure!(each < 16, "a silent stranger takes {each} KiB of the agent's memory");
        ensure!(held < HANDSHAKE_TIMEOUT + SLACK, "a silent stranger was held for {held:?}");
        ensure!(descriptors < MOST_DESCRIPTORS, "{descriptors} descriptors are in use");
        wait_until_counted(service, strangers)
    })
}

#[test]
fn a_certificate_of_another_authority_is_refused() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(TWO_CLIENTS)?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let genuine = stolen(client)?;
    let target = Target::agent_of(service, &genuine)?;
    let objection = handshake_error(client, &forged(&genuine)?, &target)?;
    // The root's name tells its key, too (RFC 8446, section 6.2).
    ensure!(objection == "received fatal alert: UnknownCA", "{objection}");
    let line = daemons.agent(service)?.wait_for_line("refused on the tunnel port", DEADLINE)?;
    ensure!(line.contains("10.99.0.120") && line.contains("invalid peer certificate"), "{line}");
    Ok(())
}

#[test]
fn an_impostor_with_the_identity_of_another_host_gets_no_byte_of_the_client() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(TWO_CLIENTS)?;
    let (client, traitor, service) = (lab.host("fcc00")?, lab.host("fcc01")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    // Its place is free, and the catalog still leads to it.
    daemons.kill_agent(service)?;
    let identity = stolen(traitor)?;
    let capture = client.capture("tcp")?;
    let (ready, listening) = mpsc::channel();
    let (handshake, reset) = thread::scope(|scope| -> Result<_> {
        let impostor = scope.spawn(|| impersonate(service, &identity, move || _ = ready.send(())));
        listening.recv_timeout(DEADLINE)?;
        let reset =
            client.probe(["connect", "10.99.0.20:8181", "send=a secret", "expect-reset"])?.succeed(DEADLINE);
        Ok((impostor.join().ok().context("the impostor panicked")??, reset))
    })?;
    let objection = handshake.err().context("the client's agent took the impostor for the service's host")?;
    ensure!(objection.contains("alert"), "{objection}");
    reset?;
    let trace = capture.stop()?;
    ensure!(
        !trace.contains(b"a secret") && !trace.packets().iter().any(|packet| packet.uses_port(PORT)),
        "it went in clear"
    );
    Ok(())
}

#[test]
fn a_host_speaks_for_its_own_clients_only_and_reaches_services_only() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(TWO_CLIENTS)?;
    let (client, traitor, service) = (lab.host("fcc00")?, lab.host("fcc01")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    let _ssh = greet(service, 22)?;
    let _private = service.spawn("socat", ["tcp4-listen:8282,bind=127.0.0.1,fork", "exec:echo private"])?;
    service.wait_listening(8282, DEADLINE)?;
    wait_for_endpoint(traitor, service, PORT)?;
    wait_for_endpoint(client, service, PORT)?;
    let identity = stolen(traitor)?;
    let target = Target::agent_of(service, &identity)?;
    let address = |text: &str| text.parse::<SocketAddr>();
    let ask = |destination: &str, client: &str| -> Result<Option<RefusalReason>> {
        refusal(
            traitor,
            &identity,
            &target,
            Open { destination: address(destination)?, client: address(client)? },
        )
    };
    let own = "10.99.0.121:40000";
    ensure!(ask("10.99.0.20:8181", own)?.is_none(), "what is allowed is refused");
    for foreign in ["10.99.0.120:40000", "127.0.0.1:40000", "192.0.2.1:40000"] {
        let answer = ask("10.99.0.20:8181", foreign)?;
        ensure!(answer == Some(RefusalReason::SourceNotAllowed), "{foreign}: {answer:?}");
    }
    let not_services = [
        "10.99.0.20:22",
        "10.99.0.20:9191",
        "10.99.0.20:8282",
        "127.0.0.1:8282",
        "127.0.0.1:8181",
        "[::1]:8181",
        "10.99.0.10:9190",
    ];
    for destination in not_services {
        let own = if destination.starts_with('[') { "[fd99::121]:40000" } else { own };
        let answer = ask(destination, own)?;
        ensure!(answer == Some(RefusalReason::NotAService), "{destination}: {answer:?}");
    }
    daemons.agent(service)?.wait_for_line("source_not_allowed", DEADLINE)?;
    daemons.agent(service)?.wait_for_line("not_a_service", DEADLINE)?;
    Ok(())
}

#[test]
fn a_frame_that_may_not_be_closes_the_tunnel_at_once() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(TWO_CLIENTS)?;
    let (traitor, service) = (lab.host("fcc01")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let identity = stolen(traitor)?;
    let target = Target::agent_of(service, &identity)?;
    let agent = daemons.agent(service)?;
    let before = memory(agent)?;
    // docs/tunnel.md: kind, then 24 bits of length. DATA of 16 MiB, OPEN of 64 KiB, an unknown kind, DATA before OPEN.
    let started = Instant::now();
    let wrong: [&[u8]; 4] = [&[4, 0xff, 0xff, 0xff], &[1, 1, 0, 0], &[99, 0, 0, 0], &[4, 0, 0, 1, 0]];
    for (number, frame) in wrong.iter().cycle().take(40).enumerate() {
        let held = say_after_handshake(traitor, &identity, &target, frame)
            .with_context(|| format!("attempt {number}, {frame:?}"))?;
        ensure!(held < HANDSHAKE_TIMEOUT, "attempt {number}, {frame:?}: held for {held:?}");
    }
    wait_until("each breach is counted", || {
        Ok(json(service, "status")?["refused"]["broke_protocol"]
            .as_u64()
            .is_some_and(|breaches| breaches >= 40))
    })?;
    let line = agent.wait_for_line("tunnel closed", DEADLINE)?;
    ensure!(line.contains("/host/fcc01") && line.contains("withheld=0"), "{line}");
    let lines = text(&agent.stdout()).matches("tunnel closed").count();
    ensure!(lines <= usize::try_from(started.elapsed().as_secs())? + 2, "{lines} lines fill the log");
    let grown = memory(agent)?.saturating_sub(before);
    ensure!(grown < 16 * 1024, "the agent grew by {grown} KiB");
    Ok(())
}

/// Resident memory in KiB.
fn memory(process: &Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a line with VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn a_host_that_asks_to_be_another_is_refused_and_named_in_the_log() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let hostile = mesh.client()?;
    mesh.host("murmesh00")?.murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", "8181"])?;
    let workload = |node: &str| anyhow::Ok(Subject::Workload(node.parse()?, "nginx.service".parse()?));
    let own = ask_to_be(hostile, &workload("fcc00")?)?;
    ensure!(own.is_ok(), "{own:?}");
    for stolen in [workload("fcs00")?, Subject::Service("fortune".parse()?), Subject::Host("fcs00".parse()?)]
    {
        let refused = ask_to_be(hostile, &stolen)?;
        ensure!(refused.as_ref().is_err_and(|error| error.contains("may not have")), "{stolen}: {refused:?}");
    }
    let logged = mesh.server().wait_for_line("not its own", DEADLINE)?;
    ensure!(logged.contains("node=fcc00"), "{logged}");
    Ok(())
}

/// Whether it remembers its rules or has none, which would allow everything.
#[test]
fn an_agent_that_was_started_without_its_server_carries_nothing_that_its_rules_may_deny() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, traitor, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    wait_for_endpoint(traitor, service, PORT)?;
    let identity = stolen(traitor)?;
    let target = Target::agent_of(service, &identity)?;
    // The client's own kernel and agent are not asked.
    let ask = || {
        let open =
            Open { destination: (service.ipv4(), PORT).into(), client: (traitor.ipv4(), 40_000).into() };
        refusal(traitor, &identity, &target, open)
    };
    ensure!(ask()?.is_none(), "what is allowed is refused");
    server.murmesh(["deny", "fcc00", "fcs00"])?;
    wait_until("the rule is here", || Ok(ask()? == Some(RefusalReason::Denied)))?;
    wait_until("and remembered", || {
        let status = json(service, "status")?;
        Ok(status["saved_revision"] == status["catalog_revision"])
    })?;

    daemons.kill_server()?;
    daemons.kill_agent(service)?;
    let mut command = service.agent_command(&daemons.token(service)?)?;
    let mut agent = Process::spawn(&mut command)?;
    agent.wait_for_line("hooks attached", DEADLINE)?;
    let answer = ask()?;
    ensure!(answer.is_some(), "carried with the rules that the agent remembers");
    // An agent that remembers nothing: it may not have come to writing anything down.
    agent.signal(Signal::SIGKILL)?;
    agent.wait(DEADLINE)?;
    let cache = service.data_directory().join("cache.sealed");
    if cache.exists() {
        fs::remove_file(cache)?;
    }
    let agent = Process::spawn(&mut command)?;
    agent.wait_for_line("hooks attached", DEADLINE)?;
    for _ in 0..3 {
        ensure!(ask()?.is_some(), "carried without a server");
    }
    daemons.start_server()?;
    agent.wait_for_line(": ready", DEADLINE)?;
    wait_until("the rule is here again", || Ok(ask()? == Some(RefusalReason::Denied)))
}
