//! What the mesh leaves alone on purpose.

use anyhow::{Result, ensure};
use murmesh_lab::{Lab, TUNNEL_PORT, Topology};

use crate::support::{
    DEADLINE, Daemons, ask, endpoints, greet, greeting, json, skipped, strings, text, wait_for_endpoint,
};

#[test]
fn ssh_and_the_ports_of_murmesh_are_exempt() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let _daemons = Daemons::start(&lab)?;
    // 9191 and 15001 are taken by the agent itself.
    let _exempt = [22, 9190, 9193].map(|port| greet(service, port));
    // The server's page is on loopback: whoever has its port elsewhere is like everybody else.
    let _listeners = [greet(service, 8181)?, greet(service, 9194)?];
    wait_for_endpoint(client, service, 8181)?;
    wait_for_endpoint(client, service, 9194)?;
    let carried = ["10.99.0.20:8181", "10.99.0.20:9194"];
    let mut known = endpoints(client)?;
    known.sort();
    ensure!(known == carried, "{known:?}");
    let capture = client.capture("tcp")?;
    ensure!(ask(client, "fcs00", 22)? == greeting(service));
    let trace = capture.stop()?;
    ensure!(trace.packets().iter().any(|packet| packet.uses_port(22)), "nothing was dialled");
    ensure!(
        !trace.packets().iter().any(|packet| packet.opens && packet.uses_port(TUNNEL_PORT)),
        "SSH went through the mesh"
    );
    Ok(())
}

#[test]
fn only_addresses_that_others_can_dial_are_advertised() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let script =
        "ip addr add 169.254.7.7/16 dev eth0 && ip addr add 239.1.1.1/32 dev eth0 autojoin && ip addr show";
    let shown = service.run("sh", ["-c", script], b"", DEADLINE)?;
    let (shown, errors) = (text(&shown.stdout), text(&shown.stderr));
    let special = ["169.254.7.7", "239.1.1.1", "fe80::"];
    ensure!(special.iter().all(|address| shown.contains(address)), "{shown} {errors}");
    let _daemons = Daemons::start(&lab)?;
    let _listener = service.spawn("socat", ["tcp6-listen:8181,ipv6only=0,fork", "exec:echo hello"])?;
    wait_for_endpoint(client, service, 8181)?;
    let members = json(client, "members")?;
    let member = members.as_array().into_iter().flatten().find(|member| member["node"] == "fcs00");
    let addresses = member.map(|member| strings(&member["addresses"])).unwrap_or_default();
    ensure!(addresses == ["10.99.0.20", "fd99::20"], "{addresses:?}");
    ensure!(endpoints(client)? == ["10.99.0.20:8181", "[fd99::20]:8181"], "{:?}", endpoints(client)?);
    Ok(())
}

/// The catalog describes the mesh, and must not decide how its agents reach the server that it comes from.
#[test]
fn the_connection_to_the_server_carries_the_mark_of_the_agent() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    let sockets =
        client.run("ss", ["-Htne", "state", "established", "dport", "=", ":9190"], b"", DEADLINE)?;
    let sockets = text(&sockets.stdout);
    ensure!(
        !sockets.is_empty() && sockets.lines().all(|socket| socket.contains("fwmark:0x6d6d")),
        "{sockets}"
    );
    Ok(())
}
