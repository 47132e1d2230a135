//! Plain TCP, the mesh and plain sidecars, each between two hosts of its own: agents and sidecars use the same
//! ports, and plain TCP is to have no hooks at all.

use anyhow::Result;
use murmesh_lab::{DEADLINE, Host, Lab, Process, TUNNEL_PORT};

use super::lane::{Lane, PORTS, Running, SERVICES, on_loopback};
use crate::shell::progress;

/// First of the ports on which the client's sidecars are dialled.
const SIDECARS: u16 = 7100;

/// What a daemon logs once it serves.
const READY: &str = ": ready";

/// Hosts without anything of Murmesh, for plain TCP and for the peers.
pub const PLAIN: (&str, &str) = ("fcc02", "fcs02");

/// Starts the server, the daemons and the services.
pub fn start(lab: &Lab) -> Result<Running> {
    progress("starting Murmesh");
    let server = lab.host("murmesh00")?;
    let mut others = vec![server.start_server()?];
    for service in ["fcs00", "fcs01", PLAIN.1] {
        let process = lab.host(service)?.spawn("murmesh", ["bench", "serve"])?;
        process.wait_for_line("serving", DEADLINE)?;
        others.push(process);
    }
    let direct = Lane {
        name: "direct".to_owned(),
        client: PLAIN.0.to_owned(),
        service: PLAIN.1.to_owned(),
        via: None,
        proxies: Vec::new(),
    };
    Ok(Running { lanes: vec![direct, sidecar(lab, server)?, mesh(lab, server)?], others })
}

fn mesh(lab: &Lab, server: &Host) -> Result<Lane> {
    let (client, service) = ("fcc00", "fcs00");
    let mut proxies = Vec::new();
    for host in [client, service] {
        proxies.push(lab.host(host)?.start_agent(&server.create_token()?)?);
    }
    Ok(Lane {
        name: "mesh".to_owned(),
        client: client.to_owned(),
        service: service.to_owned(),
        via: None,
        proxies,
    })
}

/// A sidecar leads to one port, so that the client's host has one for each service.
fn sidecar(lab: &Lab, server: &Host) -> Result<Lane> {
    let (client, service) = ("fcc01", "fcs01");
    let mut proxies = vec![lab.host(service)?.start_sidecar(&server.create_token()?, &[])?];
    for index in 0..PORTS {
        proxies.push(start_sidecar(lab.host(client)?, service, index, &server.create_token()?)?);
    }
    Ok(Lane {
        name: "sidecar".to_owned(),
        client: client.to_owned(),
        service: service.to_owned(),
        via: Some(on_loopback(SIDECARS)),
        proxies,
    })
}

fn start_sidecar(host: &Host, service: &str, index: u16, token: &str) -> Result<Process> {
    let name = format!("{}-{index}", host.name());
    let mut command = host.command("murmesh")?;
    command
        .args(["sidecar", "--join", token, "--node", &name])
        .arg("--data-dir")
        .arg(host.data_directory().join(&name))
        .arg("--run-dir")
        .arg(host.run_directory().join(&name))
        .args(["--tunnel-port", &(TUNNEL_PORT + index).to_string()])
        .args(["--listen", &format!("127.0.0.1:{}", SIDECARS + index)])
        .args(["--upstream", &format!("{service}:{}", SERVICES + index)]);
    let process = Process::spawn(&mut command)?;
    process.wait_for_line(READY, DEADLINE)?;
    Ok(process)
}
