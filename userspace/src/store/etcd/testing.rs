//! Real etcd clusters on loopback, for tests.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
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
    /// Members and clients prove themselves by the same certificate.
    tls: EtcdTls,
}

impl Cluster {
    /// A cluster that answers; `None`, with the reason printed, where there is no etcd.
    pub async fn start(size: usize) -> Option<Self> {
        Self::start_with(size, false).await
    }

    /// The same, which takes connections over TLS only, and from clients with a certificate only.
    pub async fn start_with_tls() -> Option<Self> {
        Self::start_with(1, true).await
    }

    async fn start_with(size: usize, with_tls: bool) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped with etcd: there is none here; `cargo xtask setup` installs it");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let addresses: Vec<_> = (0..size).map(|_| (fresh_address(), fresh_address())).collect();
        let tls = if with_tls { certificates(directory.path(), addresses[0].0) } else { EtcdTls::default() };
        let mut cluster = Self { directory, addresses, members: (0..size).map(|_| None).collect(), tls };
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
        self.addresses.iter().map(|(client, _)| self.client_url(*client)).collect()
    }

    /// What a server called `name` is told.
    pub fn options(&self, name: &str) -> EtcdOptions {
        let (endpoints, prefix) = (self.endpoints(), "/murmesh/".to_owned());
        EtcdOptions { endpoints, prefix, tls: self.tls.clone(), name: name.to_owned() }
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

    fn client_url(&self, address: SocketAddrV4) -> String {
        if self.tls.ca.is_some() { format!("https://{address}") } else { url(address) }
    }

    fn spawn(&mut self, member: usize) {
        let (client, peer) = self.addresses[member];
        let peers = self.addresses.iter().enumerate();
        let peers: Vec<_> = peers.map(|(member, (_, peer))| format!("m{member}={}", url(*peer))).collect();
        let arguments = [
            ("--name", format!("m{member}")),
            ("--data-dir", self.directory.path().join(format!("m{member}")).display().to_string()),
            ("--listen-client-urls", self.client_url(client)),
            ("--advertise-client-urls", self.client_url(client)),
            ("--listen-peer-urls", url(peer)),
            ("--initial-advertise-peer-urls", url(peer)),
            ("--initial-cluster", peers.join(",")),
            ("--log-outputs", "/dev/null".to_owned()),
            ("--logger", "zap".to_owned()),
        ];
        let mut command = Command::new("etcd");
        command.args(arguments.iter().flat_map(|(flag, value)| [*flag, value.as_str()]));
        if let (Some(ca), Some((certificate, key))) = (&self.tls.ca, &self.tls.client) {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
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

/// An authority, and a certificate of it for servers and clients at `address`.
fn certificates(directory: &Path, address: SocketAddrV4) -> EtcdTls {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer_certificate = ca.self_signed(&ca_key).unwrap();
    let mut leaf = CertificateParams::new([address.ip().to_string()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    let file = |name: &str, text: String| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    EtcdTls {
        ca: Some(file("ca.pem", issuer_certificate.pem())),
        client: Some((file("leaf.pem", leaf.pem()), file("leaf.key", key.serialize_pem()))),
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
