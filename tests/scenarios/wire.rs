//! What somebody on the wire can read.

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, TUNNEL_PORT, tls_records};

const QUESTION: &str = "the question is a secret 5f1d";
const ANSWER: &str = "and so is the answer 77c2";
const PORT: u16 = 8300;

/// A port that is never meshed.
const EXEMPT_PORT: u16 = 22;

/// Asks with a program that knows nothing of meshes.
fn ask(client: &Host, address: &str, port: u16) -> Result<()> {
    let input = format!("{QUESTION}\n");
    let output = client.run("nc", ["-N", address, &port.to_string()], input.as_bytes(), DEADLINE)?;
    let answer = String::from_utf8(output.stdout)?;
    ensure!(answer == format!("{QUESTION}\n{ANSWER}\n"), "answer: {answer:?}");
    Ok(())
}

/// socat gives up half a second after its client has ended, unless told otherwise.
fn command(port: u16) -> [String; 3] {
    let listen = format!("tcp6-l:{port},ipv6only=0,fork,reuseaddr");
    ["-t30".to_owned(), listen, format!("system:cat; echo {ANSWER}")]
}

#[test]
fn nothing_is_readable_on_the_wire_in_either_direction() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (service, client) = (mesh.service()?, mesh.client()?);
    let _service = mesh.serve(service, PORT, "socat", command(PORT))?;
    mesh.wait_carried(&[(service.ipv6(), PORT).into()])?;

    let captures = [client.capture("ip or ip6")?, service.capture("ip or ip6")?];
    for address in service.addresses() {
        ask(client, &address.to_string(), PORT)?;
    }
    for capture in captures {
        let trace = capture.stop()?;
        for secret in [QUESTION, ANSWER] {
            ensure!(!trace.contains(secret.as_bytes()), "{secret:?} can be read");
        }
        let stray = trace.packets().iter().find(|packet| packet.uses_port(PORT));
        ensure!(stray.is_none(), "a packet to the service's own port: {stray:?}");
        let tunnels: Vec<_> =
            trace.streams().into_iter().filter(|stream| stream.destination.port() == TUNNEL_PORT).collect();
        for address in service.addresses() {
            let tunnel = tunnels.iter().find(|tunnel| tunnel.destination.ip() == address);
            tunnel.with_context(|| format!("no tunnel to {address}"))?;
        }
        for tunnel in tunnels.iter().filter(|tunnel| !tunnel.bytes.is_empty()) {
            let records = tls_records(&tunnel.bytes)?;
            ensure!(records.iter().any(|record| record.content_type == 22), "no handshake: {records:?}");
        }
    }
    mesh.ensure_carried(2)
}

#[test]
fn the_search_for_secrets_finds_them_where_the_mesh_is_not_in_the_way() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (service, client) = (mesh.service()?, mesh.client()?);
    let _service = service.spawn("socat", command(EXEMPT_PORT))?;
    service.wait_listening(EXEMPT_PORT, DEADLINE)?;
    let capture = client.capture("ip or ip6")?;
    ask(client, "fcs00", EXEMPT_PORT)?;
    let trace = capture.stop()?;
    ensure!(trace.contains(QUESTION.as_bytes()) && trace.contains(ANSWER.as_bytes()), "nothing was found");
    mesh.ensure_carried(0)
}
