//! What the agent tells the command line. Nothing of it is remembered: everything is looked up, or probed, when
//! asked.

mod figures;
mod flows;

use std::{pin::Pin, sync::Arc, time::SystemTime};

use futures_util::stream::{self, Stream, StreamExt};
use murmesh_common::Counter as KernelCounter;
use tokio::sync::watch;
use tonic::{Request, Response, Status, transport::server::UdsConnectInfo};

use super::{
    AgentOptions, Interception, InterceptionOptions, canary,
    enforce::Problems,
    observe::{self, Watch},
    ping,
    takeover::{Older, OlderAgents},
    watchdog::Watchdog,
    whois,
};
use crate::{
    api::{refused, unix_seconds, v1},
    bpf::{Counted, Counters, HOOKS, Hook, Pins, Plaintext, attached_hooks},
    catalog::Catalog,
    control::{Control, ServerStatus},
    identity::NodeName,
    log_writer,
    observe::Filter,
    policy::{Mode, Policy},
    proxy::{
        CurrentIdentity, Shared,
        traffic::{Counter, Traffic},
    },
    sandbox,
};

/// Answers on the agent's socket.
pub struct AgentLocal {
    role: &'static str,
    shared: Arc<Shared>,
    catalog: watch::Receiver<Arc<Catalog>>,
    server: watch::Receiver<ServerStatus>,
    /// Revision of the catalog on disk.
    saved: Arc<watch::Sender<u64>>,
    kernel: Option<Kernel>,
    older: OlderAgents,
}

/// What it takes to look at the kernel half.
#[derive(Clone)]
pub struct Kernel {
    options: InterceptionOptions,
    pins: Pins,
    hooks: Vec<(Hook, u32)>,
    problems: Problems,
    watchdog: Arc<Watchdog>,
}

impl AgentLocal {
    /// For the running agent.
    pub fn new(
        options: &AgentOptions,
        control: &Control,
        shared: &Arc<Shared>,
        kernel: Option<Kernel>,
        saved: Arc<watch::Sender<u64>>,
    ) -> Self {
        Self {
            role: options.capture.role(),
            shared: shared.clone(),
            catalog: control.catalog.clone(),
            server: control.status.clone(),
            saved,
            kernel,
            older: OlderAgents::default(),
        }
    }

    /// Tells of agents from before, too.
    #[must_use]
    pub fn with_older(self, older: &OlderAgents) -> Self {
        Self { older: older.clone(), ..self }
    }
}

impl AgentLocal {
    /// Addresses that lead through the mesh.
    fn carried(&self, policy: &Policy) -> u64 {
        let routes = self.shared.routes.load();
        let carried = routes
            .iter()
            .filter(|(address, route)| policy.mode_at(&route.peer.node, address.port()) != Mode::Observe);
        carried.count() as u64
    }

    /// Until when everything in use can be carried without a server.
    fn first_end(&self, host: &CurrentIdentity) -> SystemTime {
        let others = self.shared.identities.all();
        let ends = others.iter().map(|identity| identity.not_after);
        ends.chain([host.identity.not_after]).min().unwrap_or(host.identity.not_after)
    }
}

impl Kernel {
    /// Of the attached kernel half.
    pub fn new(interception: &Interception, problems: Problems, watchdog: Arc<Watchdog>) -> Self {
        Self {
            options: interception.options().clone(),
            pins: interception.pins().clone(),
            hooks: interception.hooks(),
            problems,
            watchdog,
        }
    }

    fn interception(&self) -> v1::Interception {
        let (attached, error) = match attached_hooks(&self.options.cgroup, &self.hooks) {
            Ok(attached) => (attached, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let names = |wanted: bool| {
            let is_attached = |hook: &Hook| attached.contains(hook);
            HOOKS.iter().filter(|hook| is_attached(hook) == wanted).map(|hook| hook.name.to_owned()).collect()
        };
        v1::Interception {
            cgroup: self.options.cgroup.display().to_string(),
            bpf_dir: self.options.bpf_dir.display().to_string(),
            attached: names(true),
            missing: names(false),
            canary_error: error.or_else(|| canary::probe().err()).unwrap_or_default(),
            map_problems: self.problems.load().to_vec(),
            unheld_services: Vec::new(),
            faults: self.watchdog.faults().iter().map(ToString::to_string).collect(),
        }
    }

    /// Nothing, while the maps are not there.
    fn encryption(&self) -> v1::Encryption {
        let counters = Counters::open(&self.pins);
        let get = |counter| counters.as_ref().map_or(0, |counters| counters.get(counter).unwrap_or_default());
        let ports = Plaintext::open(&self.pins).and_then(|plaintext| plaintext.ports()).unwrap_or_default();
        let service = |(port, count): (u16, Counted)| v1::PlaintextService {
            port: port.into(),
            from_mesh: count.from_mesh,
            from_outside: count.from_outside,
            last_seen: unix_seconds(count.last),
            ..v1::PlaintextService::default()
        };
        let mut services: Vec<_> = ports.into_iter().map(service).collect();
        services.sort_by_key(|service| service.port);
        v1::Encryption {
            encrypted_to_mesh: get(KernelCounter::Redirected),
            encrypted_from_mesh: get(KernelCounter::Served),
            plaintext_to_mesh: get(KernelCounter::PlaintextToMesh),
            plaintext_from_mesh: get(KernelCounter::PlaintextFromMesh),
            plaintext_from_outside: get(KernelCounter::PlaintextFromOutside),
            plaintext_refused: get(KernelCounter::PlaintextRefused),
            services,
        }
    }
}

impl From<Older> for v1::OlderAgent {
    fn from(agent: Older) -> Self {
        Self { pid: agent.pid, version: agent.version, streams: agent.streams }
    }
}

/// Adds what the policy says of the services.
fn named(mut encryption: v1::Encryption, policy: &Policy, node: &NodeName) -> v1::Encryption {
    for service in &mut encryption.services {
        let Ok(port) = u16::try_from(service.port) else { continue };
        let name = policy.service_at(node, port).map(|named| named.name.to_string());
        service.name = name.unwrap_or_default();
        service.mode = v1::Mode::from(policy.mode_at(node, port)).into();
    }
    encryption
}

fn traffic(traffic: &Traffic, redirected: u64) -> v1::Traffic {
    v1::Traffic {
        streams_active: traffic.get(Counter::StreamsActive),
        streams_total: traffic.get(Counter::StreamsTotal),
        streams_failed: traffic.get(Counter::StreamsFailed),
        bytes_sent: traffic.get(Counter::BytesSent),
        bytes_received: traffic.get(Counter::BytesReceived),
        tunnels_idle: traffic.get(Counter::TunnelsIdle),
        tunnel_handshakes: traffic.get(Counter::TunnelHandshakes),
        missing_records: traffic.get(Counter::MissingRecords),
        redirected,
        log_lines_lost: log_writer::lost(),
    }
}

#[tonic::async_trait]
impl v1::local_server::Local for AgentLocal {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<v1::ObserveResponse, Status>> + Send>>;

    async fn create_token(
        &self,
        _request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        Err(Status::unimplemented("tokens are made by a server: run `murmesh token create` on its host"))
    }

    async fn members(&self, _request: Request<v1::MembersRequest>) -> Result<Response<v1::Snapshot>, Status> {
        let routes = self.shared.routes.load();
        let ejections = routes.ejections().map(|ejection| v1::Ejection {
            service: ejection.service.to_string(),
            node: ejection.node.to_string(),
            reason: ejection.reason,
            remaining_ms: u64::try_from(ejection.remaining.as_millis()).unwrap_or(u64::MAX),
        });
        let ejections = ejections.collect();
        Ok(Response::new(v1::Snapshot { ejections, ..v1::Snapshot::from(&**self.catalog.borrow()) }))
    }

    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let kernel = self.kernel.clone();
        // The probe connects through the hooks to this very agent, and waits for its answer.
        let probed = tokio::task::spawn_blocking(move || {
            kernel.map(|kernel| (kernel.encryption(), kernel.interception()))
        });
        let probed = probed.await.map_err(|error| Status::internal(error.to_string()))?;
        let (encryption, interception) = probed.unzip();
        let redirected = encryption.as_ref().map_or(0, |encryption| encryption.encrypted_to_mesh);
        let current = self.shared.identities.host();
        let (server, catalog) = (self.server.borrow().clone(), self.catalog.borrow().clone());
        let unheld = catalog.unheld_services(&self.shared.node).map(|service| service.name.to_string());
        let interception =
            interception.map(|found| v1::Interception { unheld_services: unheld.collect(), ..found });
        Ok(Response::new(v1::StatusResponse {
            role: self.role.to_owned(),
            node: current.identity.id.node().map(ToString::to_string).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: current.identity.id.trust_domain.to_string(),
            spiffe_id: current.identity.id.to_string(),
            certificate_expires_at: unix_seconds(current.identity.not_after),
            catalog_revision: catalog.revision,
            servers: server.servers.iter().map(ToString::to_string).collect(),
            connected_server: server.connected.map(|server| server.to_string()).unwrap_or_default(),
            interception,
            traffic: Some(traffic(&self.shared.traffic, redirected)),
            endpoints: self.carried(&catalog.policy),
            contested_addresses: server.contested.iter().map(ToString::to_string).collect(),
            server_error: server.error.or(server.refusal).unwrap_or_default(),
            encryption: encryption.map(|encryption| named(encryption, &catalog.policy, &self.shared.node)),
            saved_revision: *self.saved.borrow(),
            first_end: unix_seconds(self.first_end(&current)),
            older_agents: self.older.now().into_iter().map(v1::OlderAgent::from).collect(),
            sandbox: Some(sandbox::report()),
            refused: refused(&self.shared.refusals),
        }))
    }

    async fn observe(
        &self,
        request: Request<v1::ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let request = request.into_inner();
        let (filter, pins) = (Filter::from(&request), self.kernel.as_ref().map(|kernel| &kernel.pins));
        if !request.follow {
            let remembered = observe::remembered(&filter, &self.shared, pins);
            return Ok(Response::new(stream::iter(remembered).map(Ok).boxed()));
        }
        let watch = Watch::new(filter, &self.shared, pins);
        let told = stream::unfold(watch, async |mut watch| Some((Ok(watch.next().await), watch)));
        Ok(Response::new(Box::pin(told)))
    }

    async fn ping(&self, request: Request<v1::PingRequest>) -> Result<Response<v1::PingResponse>, Status> {
        let credentials = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let pid = credentials.and_then(|credentials| credentials.pid()).map(i32::cast_unsigned);
        let pid = pid.ok_or_else(|| Status::internal("the kernel does not tell who asks"))?;
        let text = request.into_inner().destination;
        let destination = text.parse();
        let destination =
            destination.map_err(|_| Status::invalid_argument(format!("{text:?} is no IP:PORT")))?;
        let catalog = self.catalog.borrow().clone();
        Ok(Response::new(ping::ping(pid, destination, &self.shared, &catalog).await))
    }

    async fn live_flows(
        &self,
        _request: Request<v1::LiveFlowsRequest>,
    ) -> Result<Response<v1::LiveFlowsResponse>, Status> {
        let catalog = self.catalog.borrow().clone();
        Ok(Response::new(flows::live(&self.shared, &catalog).await))
    }

    async fn whois(&self, request: Request<v1::WhoisRequest>) -> Result<Response<v1::WhoisResponse>, Status> {
        let v1::WhoisRequest { subject, holders } = request.into_inner();
        let (shared, catalog) = (self.shared.clone(), self.catalog.borrow().clone());
        let asked = tokio::task::spawn_blocking(move || whois::answer(subject, holders, &shared, &catalog));
        let known = asked.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(v1::WhoisResponse { known }))
    }
}
