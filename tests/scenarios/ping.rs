//! What `murmesh ping` tells of the way to a service, tried on real ones.

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh};
use serde_json::Value;

use crate::support::{greet, text, wait_until};

const PORT: u16 = 8181;

/// What it says of one round, and whether it ended well.
fn ping(host: &Host, destination: &str) -> Result<(Value, bool)> {
    let output = host.run("murmesh", ["ping", "-c", "1", "-o", "json", destination], b"", DEADLINE)?;
    ensure!(!output.stdout.is_empty(), "{}", text(&output.stderr));
    Ok((serde_json::from_slice(&output.stdout)?, output.status.success()))
}

#[test]
fn ping_tells_the_way_the_identities_at_both_ends_and_what_tls_they_agreed_on() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, client, service) = (mesh.host("murmesh00")?, mesh.client()?, mesh.service()?);
    let listen = format!("tcp-l:{PORT},bind=0,fork,reuseaddr");
    // It says nothing, and waits.
    let _service = mesh.serve(service, PORT, "socat", [&listen, "exec:cat"])?;
    let (said, well) = ping(client, "fcs00:8181")?;
    ensure!(well && said["path"] == "mesh" && said["answered"] == 1 && said["host"] == "fcs00", "{said}");
    ensure!(said["from"] == "spiffe://murmesh.internal/host/fcc00/user-root", "{said}");
    ensure!(said["to"] == "spiffe://murmesh.internal/host/fcs00/user-root", "{said}");
    let tls = &said["tls"];
    ensure!(tls["version"] == "TLS 1.3" && tls["key_exchange"] == "X25519MLKEM768", "{said}");
    let round = &said["rounds"][0];
    for time in ["connect_us", "tunnel_connect_us", "tunnel_handshake_us", "answer_us", "round_trip_us"] {
        ensure!(round[time].as_u64() > Some(0), "{time} in {said}");
    }
    let page = client.murmesh(["ping", "-c", "2", "fcs00:8181"])?;
    ensure!(page.contains("is reached through the mesh, encrypted") && page.contains("\n2: "), "{page}");
    ensure!(page.contains("2 of 2 answered"), "{page}");

    let (said, well) = ping(service, "fcs00:8181")?;
    ensure!(well && said["path"] == "local", "{said}");
    let _outside = greet(server, 7000)?;
    let (said, well) = ping(client, "murmesh00:7000")?;
    ensure!(well && said["path"] == "plaintext" && said["tls"].is_null(), "{said}");
    let nobody = format!("{}:9", service.ipv4());
    let (said, well) = ping(client, &nobody)?;
    let why = said["why"].as_str().unwrap_or_default();
    ensure!(!well && said["path"] == "plaintext" && why.contains("is an address of fcs00"), "{said}");

    server.murmesh(["deny", "fcc00", "fcs00:8181"])?;
    wait_until("the rule is told, and enforced", || {
        let (said, well) = ping(client, "fcs00:8181")?;
        let error = said["rounds"][0]["error"].as_str().unwrap_or_default();
        Ok(!well && said["path"] == "refused" && said["rule"] == 1 && error.contains("not permitted"))
    })
}
