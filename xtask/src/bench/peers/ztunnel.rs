//! istio's ztunnel, which is in no package: a binary that somebody built, in its dedicated mode, where one process
//! carries the connections of one host. iptables redirects to it, as istio does it.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process};

use super::super::lane::{Lane, SERVICES};
use crate::setup;
use crate::shell::progress;

/// Hosts of its own: what it redirects would be everybody's.
pub const HOSTS: (&str, &str) = ("fcc03", "fcs03");

/// Where it takes connections of programs, and tunnels (HBONE).
const PORTS: [u16; 2] = [15001, 15008];

/// `SO_MARK` of its own sockets, which are not redirected: its default, in decimal.
const MARK: &str = "1337";

/// Starts services and `binary` on its hosts. The service's process is one of `others`.
pub fn start(binary: &Path, lab: &Lab, others: &mut Vec<Process>) -> Result<Lane> {
    progress("starting ztunnel");
    setup::install_packages(
        &["iptables"].into_iter().filter(|name| !setup::is_installed(name)).collect::<Vec<_>>(),
    )?;
    let (client, service) = (lab.host(HOSTS.0)?, lab.host(HOSTS.1)?);
    let serving = service.spawn("murmesh", ["bench", "serve"])?;
    serving.wait_for_line("serving", DEADLINE)?;
    others.push(serving);
    let file = workloads(client, service)?;
    let proxies = vec![launch(binary, service, "service", &file)?, launch(binary, client, "client", &file)?];
    redirect(client)?;
    Ok(Lane {
        name: "ztunnel".to_owned(),
        client: client.name().to_owned(),
        service: service.name().to_owned(),
        // The services themselves: a path of the mesh is proven by the agent's own counts.
        via: Some(SocketAddrV4::new(service.ipv4(), SERVICES)),
        proxies,
    })
}

/// Writes what its control plane would tell it: who is at which address, and that both speak HBONE.
fn workloads(client: &Host, service: &Host) -> Result<PathBuf> {
    let file = client.data_directory().join("ztunnel.yaml");
    let workload = |host: &Host, name: &str| {
        format!(
            "- {{uid: cluster1//v1/Pod/default/{name}, name: {name}, namespace: default, serviceAccount: {name}, \
             workloadIps: [\"{}\"], protocol: HBONE, node: {name}, network: \"\", services: {{}}}}\n",
            host.ipv4()
        )
    };
    let (client, service) = (workload(client, "client"), workload(service, "service"));
    let text = format!("workloads:\n{client}{service}policies: []\nservices: []\n");
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// With certificates that it makes for itself, and everything else as it comes.
fn launch(binary: &Path, host: &Host, name: &str, workloads: &Path) -> Result<Process> {
    let mut command = host.command(binary)?;
    command
        .env("PROXY_MODE", "dedicated")
        .env("PROXY_WORKLOAD_INFO", format!("default/{name}/{name}"))
        .env("NODE_NAME", name)
        .env("PACKET_MARK", MARK)
        .env("ENABLE_ORIG_SRC", "false")
        .env("FAKE_CA", "true")
        .env("XDS_ADDRESS", "")
        .env("LOCAL_XDS_PATH", workloads);
    let process = Process::spawn(&mut command)?;
    for port in PORTS {
        host.wait_listening(port, DEADLINE).with_context(|| process.said())?;
    }
    Ok(process)
}

fn redirect(client: &Host) -> Result<()> {
    let [port, _] = PORTS.map(|port| port.to_string());
    let rule =
        ["-w", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "!", "-o", "lo", "-m", "mark", "!", "--mark", MARK];
    let arguments = rule.into_iter().chain(["-j", "REDIRECT", "--to-ports", &port]);
    let output = client.run("iptables", arguments, b"", DEADLINE)?;
    ensure!(
        output.status.success(),
        "iptables on {}: {}",
        client.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
