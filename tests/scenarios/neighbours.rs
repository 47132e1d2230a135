//! Others on the same host: their BPF programs, their network namespaces, and what is not TCP.

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Topology, contains};

use crate::support::kernel::{HOOKS, hooks};
use crate::support::programs::{Mode, forbid_port};
use crate::support::{DEADLINE, Daemons, greet, greeting, opened, skipped, text, wait_for_endpoint};

const PORT: u16 = 8181;

#[test]
fn programs_of_others_on_the_cgroup_stay_in_effect() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let forbidden = 8282;
    forbid_port(client, forbidden, Mode::Shared).context("attaching a program as others do")?;
    ensure_forbidden(client, forbidden)?;

    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    ensure!(hooks(client)?.len() == HOOKS + 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)?;
    // It also rules over what the mesh would carry.
    let _forbidden = greet(service, forbidden)?;
    wait_for_endpoint(client, service, forbidden)?;
    ensure_forbidden(client, forbidden)?;

    daemons.kill_agent(client)?;
    daemons.start_agent(client)?;
    ensure_forbidden(client, forbidden)?;
    daemons.stop_agent(client)?;
    ensure!(hooks(client)?.len() == 1, "{:?}", hooks(client)?);
    ensure_forbidden(client, forbidden)
}

#[test]
fn another_network_namespace_in_the_cgroup_is_left_alone() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let (daemons, _listener) = Daemons::carrying(&lab, PORT)?;

    // A container with a service of its own at the same address. Its loopback interface is not ours.
    let container = "ip link set lo up && ip addr add 10.99.0.20/32 dev lo && \
                     { socat tcp4-listen:8181,reuseaddr exec:'echo hello from inside' & } && \
                     until nc -z 127.0.0.1 1 || grep -q :1FF5 /proc/net/tcp; do :; done && nc 10.99.0.20 8181";
    let carried = opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181");
    let output = client.run("unshare", ["--net", "sh", "-c", container], b"", DEADLINE)?;
    ensure!(
        text(&output.stdout) == "hello from inside\n",
        "{} {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    ensure_carried_once_more(&daemons, client, service, carried)
}

#[test]
fn udp_to_the_address_of_a_meshed_service_is_untouched() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let _listener = greet(service, PORT)?;
    let _echo = service.spawn("socat", ["udp4-listen:8181,fork", "exec:cat"])?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    let carried = opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181");
    let capture = client.capture("udp")?;
    let output = client.run("nc", ["-u", "-W", "1", "10.99.0.20", "8181"], b"a datagram\n", DEADLINE)?;
    let trace = capture.stop()?;
    ensure!(text(&output.stdout) == "a datagram\n", "{:?} {}", text(&output.stdout), text(&output.stderr));
    let datagrams = trace.packets().iter().filter(|packet| contains(&packet.payload, b"a datagram"));
    ensure!(datagrams.filter(|packet| packet.uses_port(PORT)).count() == 2, "one there, one back");
    ensure_carried_once_more(&daemons, client, service, carried)
}

/// Only the connection that this makes is carried since there were `carried` of them: its line in the log shows that
/// an earlier one's would be there.
fn ensure_carried_once_more(
    daemons: &Daemons<'_>,
    client: &Host,
    service: &Host,
    carried: usize,
) -> Result<()> {
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    ensure!(opened(&daemons.agent(client)?.stdout(), "10.99.0.20:8181") == carried + 1, "it was intercepted");
    Ok(())
}

fn ensure_forbidden(client: &Host, port: u16) -> Result<()> {
    let output = client.run("nc", ["-v", "10.99.0.20", &port.to_string()], b"", DEADLINE)?;
    ensure!(
        text(&output.stderr).contains("not permitted"),
        "the other program is not in effect: {}",
        text(&output.stderr)
    );
    Ok(())
}
