//! A service in mode observe is left alone: its connections are counted, and neither encrypted nor policed.

use anyhow::{Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh, TUNNEL_PORT, services, status};

use crate::support::{json, murmesh, text, wait_until};

const PORT: u16 = 8181;

fn dial(client: &Host) -> Result<String> {
    let output = client.run("nc", ["fcs00", "8181"], b"", DEADLINE)?;
    Ok(text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn a_service_in_mode_observe_is_neither_encrypted_nor_policed() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (server, service, client) = (mesh.host("murmesh00")?, mesh.service()?, mesh.client()?);
    let listen = format!("tcp-l:{PORT},fork,reuseaddr");
    let _service = mesh.serve(service, PORT, "socat", [&listen, "exec:echo plain words"])?;
    server.murmesh(["deny", "*", "fcs00:8181"])?;
    // Another default has no say.
    server.murmesh(["policy", "default", "deny", "--egress", "deny"])?;
    wait_until("the rule holds", || Ok(dial(client)?.is_empty()))?;
    server
        .murmesh(["service", "set", "fortune", "--host", "fcs00", "--port", "8181", "--mode", "observe"])?;
    wait_until("it is left alone", || Ok(dial(client)?.contains("plain words")))?;
    wait_until("also on its own host", || {
        Ok(service.run("nc", ["-z", "127.0.0.1", "8181"], b"", DEADLINE)?.status.success())
    })?;

    let carried = status(client, "/traffic/streams_total")?;
    let capture = client.capture("tcp")?;
    ensure!(dial(client)?.contains("plain words"), "it goes on");
    let trace = capture.stop()?;
    let in_clear = trace.packets().iter().any(|packet| packet.uses_port(PORT));
    let carries = trace.packets().iter().any(|packet| packet.opens && packet.uses_port(TUNNEL_PORT));
    ensure!(in_clear && !carries, "in clear: {in_clear}, through a tunnel: {carries}");
    ensure!(trace.contains(b"plain words"), "not readable on the wire");
    ensure!(status(client, "/traffic/streams_total")? == carried, "the agent carried it");

    ensure!(services(client)?.is_empty(), "nothing is listed as carried: {:?}", services(client)?);
    ensure!(status(client, "/endpoints")? == 0, "and nothing counted as such");
    let asked = murmesh(client, &["policy", "test", "fcc00", "fcs00:8181"])?;
    ensure!(asked.status.success(), "{}", text(&asked.stdout));
    let encryption = json(service, "status")?["encryption"].clone();
    ensure!(encryption["services"][0]["mode"] == "observe", "{encryption}");
    ensure!(encryption["services"][0]["from_mesh"].as_u64() >= Some(2), "{encryption}");

    server.murmesh(["service", "set", "fortune", "--mode", "permissive"])?;
    wait_until("the rule holds again", || Ok(dial(client)?.is_empty()))?;
    server.murmesh(["allow", "fcc00", "fortune"])?;
    wait_until("it is carried again", || {
        Ok(dial(client)?.contains("plain words") && status(client, "/traffic/streams_total")? > carried)
    })
}
