//! Real etcd clusters on loopback, for tests.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
use tempfile::TempDir;

use super::{EtcdOptions, EtcdStore, EtcdTls};
use crate::store::Store;

/// How long a cluster may take to come up on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Members of one cluster, which are killed when this is dropped.
pub struct Cluster {
    directory: TempDir,
    /// For clients and for other members.
    addresses: Vec<(SocketAddrV4, SocketAddrV4)>,
    members: Vec<Option<Child>>,
}

impl Cluster {
    /// A cluster that answers; `None`, with the reason printed, where there is no etcd.
    pub async fn start(size: usize) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped with etcd: there is none here; `cargo xtask setup` installs it");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let addresses = (0..size).map(|_| (fresh_address(), fresh_address())).collect();
        let mut cluster = Self { directory, addresses, members: (0..size).map(|_| None).collect() };
        for member in 0..size {
            cluster.spawn(member);
        }
        cluster.wait().await;
        Some(cluster)
    }

    /// A directory that is removed with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        self.addresses.iter().map(|(client, _)| url(*client)).collect()
    }

    /// What a server called `name` is told.
    pub fn options(&self, name: &str) -> EtcdOptions {
        let (endpoints, prefix) = (self.endpoints(), "/murmesh/".to_owned());
        EtcdOptions { endpoints, prefix, tls: EtcdTls::default(), name: name.to_owned() }
    }

    /// The store of a server called `name`.
    pub async fn store(&self, name: &str) -> EtcdStore {
        EtcdStore::open(&self.options(name)).await.unwrap()
    }

    /// `kill -9` for a member.
    pub fn kill(&mut self, member: usize) {
        let mut child = self.members[member].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a killed member again, and waits until the cluster answers.
    pub async fn restart(&mut self, member: usize) {
        self.spawn(member);
        self.wait().await;
    }

    /// The member that leads.
    pub async fn leader(&self) -> usize {
        for (member, endpoint) in self.endpoints().iter().enumerate() {
            let mut client = Client::connect([endpoint], None).await.unwrap();
            let status = client.status().await.unwrap();
            if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                return member;
            }
        }
        panic!("nobody leads");
    }

    /// Forgets what happened before `revision`.
    pub async fn compact(&self, revision: u64) {
        let mut client = Client::connect(self.endpoints(), None).await.unwrap();
        client.compact(revision.cast_signed(), None).await.unwrap();
    }

    fn spawn(&mut self, member: usize) {
        let (client, peer) = self.addresses[member];
        let peers = self.addresses.iter().enumerate();
        let peers: Vec<_> = peers.map(|(member, (_, peer))| format!("m{member}={}", url(*peer))).collect();
        let arguments = [
            ("--name", format!("m{member}")),
            ("--data-dir", self.directory.path().join(format!("m{member}")).display().to_string()),
            ("--listen-client-urls", url(client)),
            ("--advertise-client-urls", url(client)),
            ("--listen-peer-urls", url(peer)),
            ("--initial-advertise-peer-urls", url(peer)),
            ("--initial-cluster", peers.join(",")),
            ("--log-outputs", "/dev/null".to_owned()),
            ("--logger", "zap".to_owned()),
        ];
        let mut command = Command::new("etcd");
        command.args(arguments.iter().flat_map(|(flag, value)| [*flag, value.as_str()]));
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.members[member] = Some(quiet.spawn().unwrap());
    }

    /// A majority that answers is what every call waits for; this one waits longer.
    async fn wait(&self) {
        let store = self.store("waiting").await;
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = store.list("").await {
            assert!(Instant::now() < deadline, "etcd does not answer: {error}");
        }
    }
}

fn url(address: SocketAddrV4) -> String {
    format!("http://{address}")
}

/// On a loopback address of this process only, where no port is taken by chance.
fn fresh_address() -> SocketAddrV4 {
    static PORTS: AtomicU16 = AtomicU16::new(21000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(127, 64 | high, middle, low), PORTS.fetch_add(1, Ordering::Relaxed))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.members.iter_mut().flatten() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
