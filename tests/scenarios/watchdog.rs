//! What somebody does to the kernel half of a running agent is noticed, told and undone.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use murmesh_common::{Endpoint, PolicyState, SocketAddress};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology, contains, patience};
use nix::sys::signal::Signal;

use crate::support::kernel::{HOOKS, detach, hooks, move_to};
use crate::support::programs::replace_program;
use crate::support::{
    Daemons, ask, go_strict, greeting, json, murmesh, skipped, strings, text, wait_for_endpoint, wait_until,
};

const PORT: u16 = 8181;

/// What the strict service says.
const NAME: &str = "the name of a strict service 55a0";

/// From the fault to the end of its repair.
const REPAIR_TIME: Duration = Duration::from_secs(5);

/// `fcc00` reaches a strict service at `PORT` of `fcs00` through the mesh.
fn strict_service(lab: &Lab) -> Result<(Daemons<'_>, Process)> {
    let (daemons, service) = (Daemons::start(lab)?, lab.host("fcs00")?);
    let listener = service.probe(["name", NAME, &PORT.to_string()])?;
    listener.wait_for_line("listening", DEADLINE)?;
    wait_for_endpoint(lab.host("fcc00")?, service, PORT)?;
    go_strict(lab.host("murmesh00")?, service, "fortune", PORT)?;
    Ok((daemons, listener))
}

/// Until `fcs00` refuses what comes in clear from a host without an agent.
fn wait_refused(lab: &Lab) -> Result<()> {
    let (outsider, address) = (lab.host("murmesh00")?, lab.host("fcs00")?.ipv4().to_string());
    wait_until("plaintext is refused", || {
        Ok(!outsider.run("nc", ["-z", &address, &PORT.to_string()], b"", DEADLINE)?.status.success())
    })
}

/// Does `fault` to `host`: from then on `status` is red and names `what`, until it is repaired in time. The agent says
/// both.
fn ensure_repaired(
    daemons: &Daemons<'_>,
    host: &Host,
    what: &str,
    fault: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let begun = Instant::now();
    fault().with_context(|| format!("making the fault {what:?}"))?;
    let status = json(host, "status")?;
    let named = strings(&status["interception"]["faults"]).iter().any(|fault| fault.contains(what));
    ensure!(named && status["healthy"] == false, "{what}: {status}");
    ensure!(
        murmesh(host, &["status"])?.status.code() == Some(1) || begun.elapsed() > REPAIR_TIME / 5,
        "not red"
    );
    wait_until(&format!("{what}: it is repaired"), || Ok(murmesh(host, &["status"])?.status.success()))?;
    let took = begun.elapsed();
    println!("{what}: repaired, and status green, after {took:?}");
    ensure!(took < patience(REPAIR_TIME), "{what}: {took:?}");
    let agent = daemons.agent(host)?;
    agent.wait_for_line(what, DEADLINE)?;
    agent.wait_for_line("the kernel half is repaired", DEADLINE)?;
    Ok(())
}

#[test]
fn a_hook_that_is_taken_off_or_replaced_is_put_back_and_a_strict_service_leaks_nothing() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = strict_service(&lab)?;
    let capture = client.capture("tcp port 8181")?;
    let ask_meanwhile = || {
        let output = client.run("nc", ["-w2", "fcs00", "8181"], b"a secret", DEADLINE)?;
        ensure!([NAME, ""].contains(&text(&output.stdout).as_str()), "{output:?}");
        Ok(())
    };
    for hook in ["connect4", "connect6", "sockops", "sendmsg4", "getpeername4"] {
        ensure_repaired(&daemons, client, &format!("hook {hook} was taken off"), || {
            detach(client, hook)?;
            ask_meanwhile()
        })?;
    }
    ensure_repaired(&daemons, client, "hook connect4 was taken off", || {
        replace_program(&client.bpf_directory().join("links/connect4"))?;
        ask_meanwhile()
    })?;
    let payload = |bytes: &[u8]| contains(bytes, b"secret") || contains(bytes, NAME.as_bytes());
    ensure!(!capture.stop()?.packets().iter().any(|packet| payload(&packet.payload)), "bytes went in clear");
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);
    let answer = daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(answer == NAME, "{answer:?}");

    ensure_repaired(&daemons, service, "hook sk_lookup was taken off", || detach(service, "sk_lookup"))?;
    wait_refused(&lab)
}

#[test]
fn a_pin_that_is_removed_is_put_back_and_its_hook_stays_on_meanwhile() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let pins = client.bpf_directory();
    let remove = |pin: &str| fs::remove_file(pins.join(pin)).context("removing a pin");
    ensure_repaired(&daemons, client, "the pin of hook connect4 was removed", || {
        remove("links/connect4")?;
        ensure!(hooks(client)?.len() >= HOOKS, "{:?}", hooks(client)?);
        Ok(())
    })?;
    ensure_repaired(&daemons, client, "the pin of map COUNTERS was removed", || remove("maps/COUNTERS"))?;
    ensure_repaired(&daemons, client, "the pin of map ENDPOINTS was removed", || {
        Ok(fs::remove_dir_all(pins)?)
    })?;
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);

    // They hold without the agent.
    daemons.kill_agent(client)?;
    let output = client.run("nc", ["-v", "fcs00", "8181"], b"", DEADLINE)?;
    ensure!(text(&output.stderr).contains("refused"), "{output:?}");
    daemons.start_agent(client)?;
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    daemons.stop_agent(client)?;
    ensure!(hooks(client)?.is_empty() && !pins.exists(), "{:?}", hooks(client)?);
    Ok(())
}

#[test]
fn a_map_that_is_emptied_or_changed_is_filled_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = strict_service(&lab)?;
    ensure_repaired(&daemons, client, "map ENDPOINTS was changed", || {
        empty::<SocketAddress, Endpoint>(client.bpf_directory(), "ENDPOINTS")
    })?;
    ensure_repaired(&daemons, client, "map WORKLOADS was changed", || {
        empty::<u64, murmesh_common::WorkloadEntry>(client.bpf_directory(), "WORKLOADS")
    })?;
    ensure_repaired(&daemons, service, "map PORTS was changed", || {
        empty::<u16, u32>(service.bpf_directory(), "PORTS")
    })?;
    wait_refused(&lab)?;
    ensure_repaired(&daemons, service, "map POLICY was changed", || {
        let map = Map::Array(open(service.bpf_directory(), "POLICY")?);
        Ok(Array::<_, PolicyState>::try_from(map)?.set(0, PolicyState::default(), 0)?)
    })?;
    // What lets somebody in is taken out again.
    ensure_repaired(&daemons, service, "map PORTS was changed", || {
        let map = Map::HashMap(open(service.bpf_directory(), "PORTS")?);
        Ok(HashMap::<_, u16, u32>::try_from(map)?.insert(PORT.to_be(), 0, 0)?)
    })?;
    wait_refused(&lab)?;
    ensure!(ask(client, &service.ipv4().to_string(), PORT)? == NAME);
    Ok(())
}

#[test]
fn an_agent_that_is_moved_is_followed_within_its_cgroup_and_red_outside() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    // Programs of the service's host may not reach it, but its agent may.
    lab.host("murmesh00")?.murmesh(["deny", "fcs00", "fcs00"])?;
    let address = service.ipv4().to_string();
    wait_until("the rule is there", || Ok(ask(service, &address, PORT).is_err()))?;
    let is_green = |host: &Host| -> Result<bool> { Ok(murmesh(host, &["status"])?.status.success()) };
    for host in [client, service] {
        let elsewhere = host.cgroup().join("elsewhere");
        fs::create_dir(&elsewhere)?;
        let agent = daemons.agent(host)?;
        move_to(&elsewhere, agent.id())?;
        let line = agent.wait_for_line("was moved to cgroup", DEADLINE)?;
        ensure!(line.contains("elsewhere"), "{line}");
        agent.wait_for_line("the kernel half is repaired", DEADLINE)?;
        wait_until("status is green", || is_green(host))?;
        wait_until("connections are carried", || {
            Ok(ask(client, &address, PORT).is_ok_and(|answer| answer == greeting(service)))
        })?;
    }
    daemons.ask_through_mesh(client, service, PORT)?;
    ensure!(ask(service, &address, PORT).is_err(), "what a rule forbids is carried");

    let agent = daemons.agent(client)?;
    let above = client.cgroup().parent().context("the lab's cgroup")?;
    move_to(above, agent.id())?;
    let line = agent.wait_for_line("outside of", DEADLINE)?;
    ensure!(line.contains("move it back"), "{line}");
    wait_until("status is red", || Ok(!is_green(client)?))?;
    let metrics = || client.run("nc", ["127.0.0.1", "9192"], b"GET /metrics HTTP/1.0\r\n\r\n", DEADLINE);
    let unhealthy = || Ok(text(&metrics()?.stdout).contains("\nmurmesh_interception_healthy 0"));
    wait_until("the figures say so", unhealthy)?;
    move_to(client.cgroup(), agent.id())?;
    wait_until("status is green", || is_green(client))?;

    // Where it was started is not where it is.
    move_to(&client.cgroup().join("elsewhere"), agent.id())?;
    agent.signal(Signal::SIGUSR2)?;
    agent.wait_for_line("handed over", DEADLINE)?;
    wait_until("connections are carried", || {
        Ok(ask(client, &address, PORT).is_ok_and(|answer| answer == greeting(service)))
    })?;
    wait_until("status is green", || is_green(client))
}

fn open(pins: &Path, map: &str) -> Result<MapData> {
    Ok(MapData::from_pin(pins.join("maps").join(map))?)
}

fn empty<K: Pod, V: Pod>(pins: &Path, map: &str) -> Result<()> {
    let mut map = HashMap::<_, K, V>::try_from(Map::HashMap(open(pins, map)?))?;
    let keys = map.keys().collect::<Result<Vec<K>, _>>()?;
    ensure!(!keys.is_empty(), "there is nothing in it");
    for key in keys {
        map.remove(&key)?;
    }
    Ok(())
}
