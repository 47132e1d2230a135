//! Servers over an etcd cluster: a member and a server on each of some hosts.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::host::Host;
use crate::process::Process;

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

impl Host {
    /// Starts this host's member of the cluster that `hosts` make. It serves once most of them run.
    pub fn start_etcd(&self, hosts: &[&Host]) -> Result<Process> {
        Process::spawn(&mut self.etcd_command(hosts)?)
    }

    /// The command line of this host's member.
    pub fn etcd_command(&self, hosts: &[&Host]) -> Result<Command> {
        let url = |host: &Host, port: u16| format!("http://{}:{port}", host.ipv4());
        let members: Vec<_> =
            hosts.iter().map(|host| format!("{}={}", host.name(), url(host, PEER_PORT))).collect();
        let mut etcd = self.command("etcd")?;
        etcd.args(["--name", self.name(), "--logger", "zap", "--auto-compaction-retention", "1h"]);
        etcd.arg("--data-dir").arg(self.data_directory().join("etcd"));
        etcd.args(["--listen-client-urls", &url(self, CLIENT_PORT)]);
        etcd.args(["--advertise-client-urls", &url(self, CLIENT_PORT)]);
        etcd.args(["--listen-peer-urls", &url(self, PEER_PORT)]);
        etcd.args(["--initial-advertise-peer-urls", &url(self, PEER_PORT)]);
        etcd.args(["--initial-cluster", &members.join(","), "--max-txn-ops", "1024"]);
        Ok(etcd)
    }

    /// The command line of a server here that uses the cluster of `hosts`, its own member first.
    pub fn cluster_server_command(&self, hosts: &[&Host]) -> Result<Command> {
        let mut servers = hosts.to_vec();
        servers.sort_by_key(|host| host.name() != self.name());
        let mut command = self.server_command()?;
        command.args(["--store", "etcd", "--node", self.name()]);
        command.args(["--etcd-endpoints", &endpoints(&servers)]);
        Ok(command)
    }

    /// Starts such a server and waits until it serves.
    pub fn start_cluster_server(&self, hosts: &[&Host]) -> Result<Process> {
        self.start(&mut self.cluster_server_command(hosts)?)
    }

    /// A command of `etcdctl` on this host, about the members on `hosts`.
    pub fn etcdctl(&self, hosts: &[&Host], command: &str, arguments: &[&str]) -> Result<String> {
        let mut etcdctl = self.command("etcdctl")?;
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints(hosts), command]).args(arguments);
        Process::spawn(&mut etcdctl)?.succeed(crate::mesh::DEADLINE)
    }
}

fn endpoints(hosts: &[&Host]) -> String {
    let urls: Vec<_> = hosts.iter().map(|host| format!("http://{}:{CLIENT_PORT}", host.ipv4())).collect();
    urls.join(",")
}

/// Gives all `hosts` the same new key for the secrets of their servers.
pub fn share_seal_key(hosts: &[&Host]) -> Result<()> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("reading randomness")?;
    let mut key = String::new();
    for byte in bytes {
        write!(key, "{byte:02x}")?;
    }
    for host in hosts {
        fs::create_dir_all(host.data_directory())?;
        let path = host.data_directory().join("seal.key");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(key.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
