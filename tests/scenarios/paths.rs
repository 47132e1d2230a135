//! Every way to a connection is intercepted, and refused where the rules forbid it: none leads past the mesh.

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh};

use crate::support::wait_until;

const PORT: u16 = 8183;

/// What is sent with the first packet where that can be, and after it.
const SECRETS: [&str; 2] = ["fast open", "a secret 91c4"];

/// How to get to the service, as arguments of the probe.
fn ways(service: &Host) -> Vec<Vec<String>> {
    let plain = format!("{}:{PORT}", service.ipv4());
    let mapped = format!("[::ffff:{}]:{PORT}", service.ipv4());
    let addresses = [plain, format!("[{}]:{PORT}", service.ipv6()), mapped];
    let ways = ["--by=connect", "--nonblocking", "--by=fast-open", "--by=mptcp", "--by=io-uring"];
    let pairs = addresses.iter().flat_map(|address| ways.map(|way| vec![address.clone(), way.to_owned()]));
    pairs.collect()
}

fn connect(client: &Host, way: &[String], more: &[&str]) -> Result<String> {
    let arguments = ["connect"].into_iter().chain(way.iter().map(String::as_str)).chain(more.iter().copied());
    client.probe(arguments)?.succeed(DEADLINE)
}

fn mesh() -> Result<Option<(Mesh, murmesh_lab::Process)>> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(None) };
    let listen = format!("tcp6-l:{PORT},ipv6only=0,fork,reuseaddr");
    let service = mesh.serve(mesh.service()?, PORT, "socat", [&listen, "exec:/bin/cat"])?;
    mesh.wait_carried(&[(mesh.service()?.ipv6(), PORT).into()])?;
    Ok(Some((mesh, service)))
}

#[test]
fn whatever_way_a_connection_is_made_it_is_carried_and_nothing_is_readable() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (client, service) = (mesh.client()?, mesh.service()?);
    let ways = ways(service);
    let captures = [client.capture("ip or ip6")?, service.capture("ip or ip6")?];
    for way in &ways {
        let first = if way[1] == "--by=fast-open" { "expect=fast open\n" } else { "pause=0" };
        let (send, expect) = (format!("send={}", SECRETS[1]), format!("expect={}", SECRETS[1]));
        connect(client, way, &[first, &send, &expect, "shutdown", "end"])?;
    }
    for capture in captures {
        let trace = capture.stop()?;
        let stray = trace.packets().iter().find(|packet| packet.uses_port(PORT));
        ensure!(stray.is_none(), "a packet to the service's own port: {stray:?}");
        for secret in SECRETS {
            ensure!(!trace.contains(secret.as_bytes()), "{secret:?} can be read");
        }
    }
    mesh.ensure_carried(ways.len() as u64)
}

#[test]
fn whatever_way_a_connection_is_made_a_rule_that_forbids_it_makes_it_fail_with_eperm() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (client, service) = (mesh.client()?, mesh.service()?);
    mesh.host("murmesh00")?.murmesh(["deny", "fcc00", "fcs00:8183"])?;
    let ways = ways(service);
    wait_until("the rule is here", || Ok(connect(client, &ways[0], &["--fails=EPERM"]).is_ok()))?;
    let carried = murmesh_lab::status(client, "/traffic/streams_total")?;
    let capture = client.capture("ip or ip6")?;
    for way in &ways {
        connect(client, way, &["--fails=EPERM"])?;
    }
    let trace = capture.stop()?;
    let stray = trace.packets().iter().find(|packet| packet.uses_port(PORT));
    ensure!(stray.is_none(), "a packet to the service's own port: {stray:?}");
    mesh.ensure_carried(carried)
}

#[test]
fn a_connection_that_is_bound_to_an_interface_is_refused_and_sends_nothing() -> Result<()> {
    let Some((mesh, _service)) = mesh()? else { return Ok(()) };
    let (client, service) = (mesh.client()?, mesh.service()?);
    let capture = client.capture("ip or ip6")?;
    for way in ways(service) {
        connect(client, &way, &["--interface=eth0", "--fails=EPERM"])?;
    }
    let trace = capture.stop()?;
    let stray = trace.packets().iter().find(|packet| packet.uses_port(PORT));
    ensure!(stray.is_none(), "a packet to the service's own port: {stray:?}");
    // What is not of the mesh is none of its business.
    let outside = format!("{}:9190", mesh.host("murmesh00")?.ipv4());
    client.probe(["connect", &outside, "--interface=eth0"])?.succeed(DEADLINE)?;
    mesh.ensure_carried(0)
}
