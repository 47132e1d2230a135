//! Other proxies, with mutual TLS 1.3: one of each on the client's host and on the service's.

mod envoy;
mod haproxy;
mod nginx;
mod stunnel;
pub mod ztunnel;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use murmesh_lab::{DEADLINE, Host, Lab, Process};

use super::certificates::{self, Identity};
use super::lane::{Lane, PORTS, SERVICES, on_loopback};
use super::ours::PLAIN;
use crate::setup;
use crate::shell::progress;

/// A proxy to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// stunnel, of Debian.
    Stunnel,
    /// HAProxy, of Debian.
    Haproxy,
    /// nginx with its stream module, of Debian.
    Nginx,
    /// Envoy, of the Python package index.
    Envoy,
}

/// What a peer's configuration is made of.
#[derive(Debug)]
pub struct Side {
    /// Whether this is the client's side, which takes plain connections and makes encrypted ones.
    pub is_client: bool,
    /// Of this side.
    pub identity: Identity,
    /// First of the ports that are listened on.
    pub listen: u16,
    /// Where connections go: an address and the first of its ports.
    pub to: (Ipv4Addr, u16),
    /// Worker threads or processes.
    pub workers: usize,
    /// For its files.
    pub directory: PathBuf,
}

impl Side {
    /// Address to listen at: the client's side serves its own host only.
    pub fn listen_address(&self) -> Ipv4Addr {
        if self.is_client { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED }
    }

    /// Port listened on, and port that it leads to, of each service.
    pub fn ports(&self) -> impl Iterator<Item = (u16, u16)> {
        (0..PORTS).map(|index| (self.listen + index, self.to.1 + index))
    }
}

impl Peer {
    /// All of them.
    pub fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stunnel => "stunnel",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// First of its ports, on both hosts.
    fn ports(self) -> u16 {
        7110 + 10 * self as u16
    }

    /// Debian packages that bring it.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Stunnel => &["stunnel4"],
            Self::Haproxy => &["haproxy"],
            Self::Nginx => &["nginx", "libnginx-mod-stream"],
            Self::Envoy => &["python3-venv"],
        }
    }

    /// Writes the configuration, and returns the program and its arguments.
    fn configure(self, side: &Side, programs: &Path) -> Result<(PathBuf, Vec<String>)> {
        let file = side.directory.join(if self == Self::Envoy { "envoy.json" } else { "configuration" });
        let (text, program, arguments) = match self {
            Self::Stunnel => stunnel::configure(side, &file),
            Self::Haproxy => haproxy::configure(side, &file),
            Self::Nginx => nginx::configure(side, &file),
            Self::Envoy => envoy::configure(side, &file, programs),
        };
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        Ok((program, arguments))
    }
}

/// Installs what is missing from Debian.
pub fn install(peers: &[Peer]) -> Result<()> {
    let certificates = (!peers.is_empty()).then_some("openssl");
    let needed = peers.iter().flat_map(|peer| peer.packages()).copied().chain(certificates);
    let missing: Vec<&str> = needed.filter(|package| !setup::is_installed(package)).collect();
    setup::install_packages(&missing)
}

/// Starts the peers between the hosts without Murmesh.
pub fn start(peers: &[Peer], lab: &Lab) -> Result<Vec<Lane>> {
    if peers.is_empty() {
        return Ok(Vec::new());
    }
    let (client, service) = (lab.host(PLAIN.0)?, lab.host(PLAIN.1)?);
    let files = client.data_directory().join("peers");
    fs::create_dir_all(&files).with_context(|| format!("making {}", files.display()))?;
    let identities = certificates::make(&files)?;
    if peers.contains(&Peer::Envoy) {
        envoy::install(&files)?;
    }
    peers.iter().map(|peer| start_one(*peer, (client, service), &identities, &files)).collect()
}

fn start_one(
    peer: Peer,
    (client, service): (&Host, &Host),
    identities: &(Identity, Identity),
    files: &Path,
) -> Result<Lane> {
    progress(&format!("starting {}", peer.name()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let side = |is_client: bool| {
        let (identity, to, name) = if is_client {
            (&identities.0, (service.ipv4(), peer.ports()), "client")
        } else {
            (&identities.1, (Ipv4Addr::LOCALHOST, SERVICES), "service")
        };
        let directory = files.join(format!("{}-{name}", peer.name()));
        Side { is_client, identity: identity.clone(), listen: peer.ports(), to, workers, directory }
    };
    let mut proxies = Vec::new();
    for (host, side) in [(service, side(false)), (client, side(true))] {
        proxies.push(
            launch(peer, host, &side, files)
                .with_context(|| format!("{} on {}", peer.name(), host.name()))?,
        );
    }
    Ok(Lane {
        name: peer.name().to_owned(),
        client: client.name().to_owned(),
        service: service.name().to_owned(),
        via: Some(on_loopback(peer.ports())),
        proxies,
    })
}

fn launch(peer: Peer, host: &Host, side: &Side, files: &Path) -> Result<Process> {
    fs::create_dir_all(&side.directory).with_context(|| format!("making {}", side.directory.display()))?;
    let (program, arguments) = peer.configure(side, files)?;
    let process = Process::spawn(host.command(program)?.args(arguments))?;
    for (port, _) in side.ports() {
        host.wait_listening(port, DEADLINE).with_context(|| process.said())?;
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A side whose first port leads from 7110 to 10.99.0.22:7110, or to the service.
    pub fn side(is_client: bool) -> Side {
        let file = |name: &str| PathBuf::from("/certificates").join(name);
        let identity = Identity {
            certificate: file("crt"),
            key: file("key"),
            both: file("pem"),
            authority: file("authority"),
        };
        let to = if is_client { (Ipv4Addr::new(10, 99, 0, 22), 7110) } else { (Ipv4Addr::LOCALHOST, 7000) };
        Side { is_client, identity, listen: 7110, to, workers: 2, directory: "/files".into() }
    }

    #[test]
    fn every_peer_has_ports_of_its_own() {
        let ports: Vec<_> = Peer::all().iter().map(|peer| peer.ports()).collect();
        assert_eq!(ports, [7110, 7120, 7130, 7140]);
    }

    #[test]
    fn every_configuration_leads_each_port_to_its_own_and_checks_the_other_side() {
        for is_client in [true, false] {
            let (side, file) = (side(is_client), Path::new("/files/configuration"));
            let all = [
                stunnel::configure(&side, file).0,
                haproxy::configure(&side, file).0,
                nginx::configure(&side, file).0,
                envoy::configure(&side, file, Path::new("/programs")).0,
            ];
            for text in all {
                for (listen, to) in side.ports() {
                    let (listen, to) = (listen.to_string(), to.to_string());
                    assert!(text.contains(&listen) && text.contains(&to), "{text}");
                }
                assert!(text.contains("/certificates/authority"), "{text}");
                assert_eq!(text.contains(certificates::SERVICE_NAME), is_client, "{text}");
            }
        }
    }
}
