//! Servers, hosts, rules and certificates.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::super::credentials::Credentials;
use super::super::super::flows::ByHost;
use super::super::super::roots::Phase;
use crate::api::unix_seconds;
use crate::catalog::Catalog;
use crate::identity::tls::fingerprint;
use crate::policy;

/// Rules that are shown; beyond it there is the command line.
const MAX_RULES: usize = 1000;

/// One server.
#[derive(Debug, Serialize)]
pub struct Server {
    node: String,
    addresses: Vec<String>,
    connected: bool,
    leader: bool,
    version: String,
    last_seen: Option<u64>,
}

/// One host.
#[derive(Debug, Serialize)]
pub struct Host {
    node: String,
    connected: bool,
    lost: bool,
    drained: bool,
    last_seen: Option<u64>,
    addresses: Vec<String>,
    version: String,
    /// End of the certificate by which it is connected, as far as that is known.
    certificate_ends: Option<u64>,
    /// Whether this server knows who of it connects to whom.
    reports: bool,
    /// The servers that it is connected to: it tells one of those, and that tells this one.
    servers: Vec<String>,
}

/// Who may reach what.
#[derive(Debug, Serialize)]
pub struct Policy {
    mesh: String,
    egress: String,
    mode: String,
    /// In the order in which they are tried.
    rules: Vec<Rule>,
    /// How many there are.
    all_rules: usize,
}

#[derive(Debug, Serialize)]
struct Rule {
    id: u32,
    action: String,
    source: String,
    destination: String,
    dry_run: bool,
}

/// The mesh's roots, and this server's certificate.
#[derive(Debug, Serialize)]
pub struct Certificates {
    server_ends: u64,
    /// "steady", "prepared" or "activated".
    phase: &'static str,
    roots: Vec<Root>,
}

#[derive(Debug, Serialize)]
struct Root {
    fingerprint: String,
    signs: bool,
    ends: Option<u64>,
}

/// All servers.
pub fn servers(catalog: &Catalog) -> Vec<Server> {
    let server = |server: &crate::catalog::Server| Server {
        node: server.node.to_string(),
        addresses: server.addresses.iter().map(ToString::to_string).collect(),
        connected: server.connected,
        leader: server.leader,
        version: server.version.clone(),
        last_seen: server.last_seen.map(unix_seconds),
    };
    catalog.servers.iter().map(server).collect()
}

/// All hosts.
pub fn hosts(catalog: &Catalog, told: &ByHost, servers: &BTreeMap<String, BTreeSet<String>>) -> Vec<Host> {
    let host = |host: &crate::catalog::Host| {
        let told = told.get(host.node.as_str());
        Host {
            node: host.node.to_string(),
            connected: host.connected,
            lost: host.lost,
            drained: catalog.policy.drained.contains(&host.node),
            last_seen: host.last_seen.map(unix_seconds),
            addresses: host.report.addresses.iter().map(ToString::to_string).collect(),
            version: host.report.version.clone(),
            certificate_ends: told.map(|told| unix_seconds(told.certificate_ends)),
            reports: told.is_some(),
            servers: servers.get(host.node.as_str()).into_iter().flatten().cloned().collect(),
        }
    };
    catalog.hosts.values().map(|known| host(known)).collect()
}

impl From<&policy::Policy> for Policy {
    fn from(policy: &policy::Policy) -> Self {
        let rule = |rule: &policy::Rule| Rule {
            id: rule.id.number(),
            action: rule.action.to_string(),
            source: rule.source.to_string(),
            destination: rule.destination.to_string(),
            dry_run: rule.dry_run,
        };
        Self {
            mesh: policy.defaults.mesh.to_string(),
            egress: policy.defaults.egress.to_string(),
            mode: super::mode(policy.defaults.mode),
            rules: policy.rules_in_order().into_iter().take(MAX_RULES).map(rule).collect(),
            all_rules: policy.rules().len(),
        }
    }
}

impl Certificates {
    /// Of the server that has `credentials`.
    pub fn new(credentials: &Credentials) -> Self {
        let roots = credentials.roots();
        let signing = fingerprint(roots.authority.root());
        let root = |der: &rustls_pki_types::CertificateDer<'_>| {
            let fingerprint = fingerprint(der);
            Root { fingerprint: HEXLOWER.encode(&fingerprint), signs: fingerprint == signing, ends: end(der) }
        };
        Self {
            server_ends: unix_seconds(credentials.not_after()),
            phase: match roots.phase {
                Phase::Steady => "steady",
                Phase::Prepared => "prepared",
                Phase::Activated => "activated",
            },
            roots: roots.bundle.iter().map(root).collect(),
        }
    }
}

/// `None` for what is not a certificate.
fn end(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}
