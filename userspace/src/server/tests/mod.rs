//! The control plane as a whole: a real server and real agents' clients over TLS on loopback, with a real database.

mod addresses;
mod catalog;
mod cluster;
mod hostile;
mod identities;
mod join;
mod lifecycle;
mod logs;
mod policy;
mod removal;
mod rotation;
mod sealing;
mod strict;
mod web;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{PageOptions, Server, ServerError, ServerOptions, StoreOptions};
use crate::api::v1;
use crate::api::v1::mesh_client::MeshClient;
use crate::catalog::{Catalog, Listener, Report};
use crate::control::{self, Control, ControlOptions};
use crate::identity::token::ServerAddress;
use crate::identity::{HostKey, Identity, JoinToken, tls};
use crate::local::{SERVER_SOCKET, connect};
use crate::metrics::MetricsAddress;
use crate::seal::{DEFAULT_KEY_FILE, KeySource};

/// A running server and the directories of everything around it.
struct World {
    directory: TempDir,
    address: ServerAddress,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), ServerError>>,
}

fn options(directory: &Path) -> ServerOptions {
    ServerOptions {
        store: StoreOptions::Embedded(directory.join("server")),
        seal: KeySource::Default(directory.join("server").join(DEFAULT_KEY_FILE)),
        run_dir: directory.join("run"),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        advertise: vec![],
        metrics: MetricsAddress::Off,
        trust_domain: Some("mesh.test".parse().unwrap()),
        certificate_lifetime: Duration::from_secs(3600),
        node: "murmesh00".parse().unwrap(),
        max_rules: super::DEFAULT_MAX_RULES,
        page: PageOptions::Off,
    }
}

impl World {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start_with(directory, |_| {}).await
    }

    async fn start_with(directory: TempDir, change: impl FnOnce(&mut ServerOptions)) -> Self {
        let mut options = options(directory.path());
        change(&mut options);
        let server = Server::bind(options).await.unwrap();
        let address = server.addresses()[0].to_string().parse().unwrap();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(server.serve(shutdown.clone()));
        Self { directory, address, shutdown, running }
    }

    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
        self.directory
    }

    async fn token(&self) -> JoinToken {
        self.token_for(3600).await.unwrap()
    }

    async fn token_for(&self, valid_seconds: u64) -> Result<JoinToken, tonic::Status> {
        let mut server =
            connect(&self.directory.path().join("run"), &[SERVER_SOCKET], "server").await.unwrap();
        let answer = server.create_token(v1::CreateTokenRequest { valid_seconds }).await?;
        Ok(answer.into_inner().token.parse().unwrap())
    }

    fn control_options(&self, node: &str, join: Option<JoinToken>) -> ControlOptions {
        ControlOptions {
            remembered_from: 0,
            data_dir: self.directory.path().join(node),
            seal: KeySource::Default(self.directory.path().join(node).join(DEFAULT_KEY_FILE)),
            join,
            node: node.parse().unwrap(),
            mark: None,
        }
    }

    async fn agent(&self, node: &str) -> Control {
        self.agent_with(node, self.token().await).await
    }

    async fn agent_with(&self, node: &str, token: JoinToken) -> Control {
        let options = self.control_options(node, Some(token));
        control::start(options, self.shutdown.clone()).await.unwrap()
    }

    async fn call_anonymously(&self, token: &JoinToken) -> MeshClient<Channel> {
        let tls = tls::join_client(&token.trust_domain, token.ca_fingerprint).unwrap();
        control::dial(&self.address, tls, None).await.unwrap()
    }

    /// Reports as `host`; returns what is contested.
    async fn report_as(&self, host: &Control, report: &Report) -> Result<Vec<String>, tonic::Status> {
        let identity = host.identity.borrow().clone();
        let answer = self.call_as(&identity).await.report(v1::HostReport::from(report)).await?;
        Ok(answer.into_inner().contested_addresses)
    }

    async fn call_as(&self, identity: &Identity) -> MeshClient<Channel> {
        control::dial(&self.address, tls::api_client(identity).unwrap(), None).await.unwrap()
    }
}

fn join_request(token: &JoinToken, node: &str, key: &HostKey) -> v1::JoinRequest {
    v1::JoinRequest {
        token_secret: token.secret.to_vec(),
        node: node.to_owned(),
        certificate_request: key.certificate_request().unwrap(),
    }
}

fn report(address: &str, port: u16) -> Report {
    Report {
        addresses: vec![address.parse().unwrap()],
        tunnel_port: 9191,
        listeners: vec![Listener {
            address: format!("0.0.0.0:{port}").parse().unwrap(),
            ipv6_only: false,
            workload: None,
        }],
        version: "test".to_owned(),
        ..Report::default()
    }
}

async fn until(control: &Control, wanted: impl FnMut(&Arc<Catalog>) -> bool) -> Arc<Catalog> {
    control.catalog.clone().wait_for(wanted).await.unwrap().clone()
}

fn has_endpoint(catalog: &Catalog, address: &str) -> bool {
    catalog.endpoints().contains_key(&address.parse().unwrap())
}
