//! The agent of a host: joins, attaches the kernel half, and keeps data path, catalog and report in step.
//! A plain sidecar is an agent without the kernel half.

pub mod canary;
mod discover;
mod enforce;
mod health;
mod identities;
mod interception;
mod local;
mod needs;
mod observe;
mod ping;
mod plaintext;
mod process;
mod protection;
mod publish;
mod remember;
mod reset;
mod takeover;
mod watchdog;
mod whois;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, bail};
use arc_swap::ArcSwapOption;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{info, warn};

pub use interception::{Interception, InterceptionOptions};
pub use process::with_socket;
pub use publish::Upstream;

use crate::{
    api::v1::local_server::LocalServer,
    bpf::{Pins, Records},
    catalog::Catalog,
    control::{self, Control, ControlError, ControlOptions, Joined},
    discovery::ExemptPorts,
    identity::{Identity, JoinToken, NodeName},
    local::{AGENT_SOCKET, Ownership, SIDECAR_SOCKET, SocketFile},
    metrics::{self, MetricsAddress},
    notify,
    proxy::{BoundWorkers, Listen, Listening, Origin, Shared, Workers, instances::Loads, traffic::Counter},
    seal::KeySource,
    workload::{self, Finder, Naming},
};
use discover::{Discovery, Owners, Served};
use enforce::{Enforcement, Problems};
use health::{Failing, Health};
use identities::Keeper;
use protection::FirstProtection;
use publish::Publisher;
use remember::{Mark, Memory};
use takeover::{Claim, Entrance, OlderAgents, Predecessor, Taken, Terms, Upgrade};
use watchdog::Watchdog;

/// How long an agent that takes over may take to know what this host serves and reaches.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(20);

/// What an agent or a sidecar is started with.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// Where the identity is kept.
    pub data_dir: PathBuf,
    /// The key that secrets there are sealed with.
    pub seal: KeySource,
    /// Where the command line finds the running daemon.
    pub run_dir: PathBuf,
    /// The name to join as.
    pub node: NodeName,
    /// Needed once.
    pub join: Option<JoinToken>,
    /// Where tunnels are accepted, on all addresses.
    pub tunnel_port: u16,
    /// Where figures are to be had.
    pub metrics: MetricsAddress,
    /// Ports that are never meshed.
    pub exempt: ExemptPorts,
    /// Where the programs for checks of services are.
    pub checks_dir: PathBuf,
    /// How long streams may go on after a stop.
    pub drain_timeout: Duration,
    /// How long they may go on when another agent has taken over.
    pub upgrade_drain_timeout: Duration,
    /// To take over from the agent that runs, if one does.
    pub take_over: bool,
    /// How connections of this host's applications get here.
    pub capture: Capture,
}

/// How connections of this host's applications get to the daemon.
#[derive(Debug, Clone)]
pub enum Capture {
    /// The kernel half redirects them.
    Kernel(InterceptionOptions),
    /// Applications dial the daemon, which knows one destination.
    Sidecar(Option<SidecarOptions>),
}

impl Capture {
    fn mark(&self) -> Option<u32> {
        match self {
            Self::Kernel(kernel) => Some(kernel.mark),
            Self::Sidecar(_) => None,
        }
    }

    fn listen(&self, tunnel_port: u16) -> Listen {
        match self {
            Self::Kernel(kernel) => Listen::agent(tunnel_port, kernel.outbound_port),
            Self::Sidecar(sidecar) => {
                Listen::sidecar(tunnel_port, sidecar.as_ref().map(|sidecar| sidecar.listen))
            }
        }
    }

    /// Attaches the hooks, if there are any, which enforce `first` from then on.
    fn attach(
        &self,
        first: &FirstProtection<'_>,
        finder: Option<&Arc<Finder>>,
        take_over: Option<&Claim>,
    ) -> anyhow::Result<Option<Interception>> {
        let (Self::Kernel(kernel), Some(finder)) = (self, finder) else { return Ok(None) };
        let workloads = finder.workloads();
        let mut put = Ok(());
        let interception =
            Interception::attach(kernel, take_over, |maps| put = first.put(maps, kernel.room, workloads))?;
        put?;
        Ok(Some(interception))
    }

    /// Who is who on this host, which the kernel half asks for.
    fn finder(&self) -> anyhow::Result<Option<Arc<Finder>>> {
        let Self::Kernel(kernel) = self else { return Ok(None) };
        let naming = Naming::new(kernel.workloads.clone());
        Ok(Some(Arc::new(Finder::new(workload::watch(&kernel.cgroup, naming)?))))
    }

    /// The catalog must not be older than this to be gone by.
    fn revision_in_force(&self) -> u64 {
        match self {
            Self::Kernel(kernel) => Pins::new(&kernel.bpf_dir).revision(),
            Self::Sidecar(_) => 0,
        }
    }

    fn upstream(&self) -> Option<Upstream> {
        match self {
            Self::Sidecar(Some(sidecar)) => Some(sidecar.upstream.clone()),
            _ => None,
        }
    }

    fn role(&self) -> &'static str {
        match self {
            Self::Kernel(_) => "agent",
            Self::Sidecar(_) => "sidecar",
        }
    }

    fn socket_name(&self) -> &'static str {
        match self {
            Self::Kernel(_) => AGENT_SOCKET,
            Self::Sidecar(_) => SIDECAR_SOCKET,
        }
    }
}

/// A sidecar's dial side.
#[derive(Debug, Clone)]
pub struct SidecarOptions {
    /// What applications dial.
    pub listen: SocketAddr,
    /// What they reach.
    pub upstream: Upstream,
}

/// Runs until `shutdown`, then stops cleanly: other hosts are told, no hook, map or pin is left but what keeps strict
/// services of this host closed, and streams have the drain timeout to end. On an error the hooks stay in force, and
/// refuse what they redirect until an agent runs again: only a stop that somebody asked for lets connections go on in
/// clear.
///
/// # Errors
/// The host cannot join, the kernel half cannot be attached, or a port is in use; each error names what to do.
/// Later, when a task or a worker fails that must not.
pub async fn run(options: AgentOptions, shutdown: CancellationToken) -> anyhow::Result<()> {
    let terms = Terms::new(&options)?;
    let mut entrance = Entrance::open(&options, terms).await?;
    let mut control = start_control(&options, &shutdown).await?;
    entrance.catch_up(control.catalog.clone()).await;
    let (shared, wanted) = Shared::new(control.identity.borrow().clone(), options.capture.mark())?;
    let shared = Arc::new(shared);
    // Ports first: an agent that cannot serve must not touch the hooks of one that was killed, which still
    // refuse what they redirect.
    let bound = entrance.workers(&options)?;
    let (catalog, identity) = (control.catalog.borrow().clone(), control.identity.borrow().clone());
    let servers = control.status.borrow().servers.clone();
    let first = FirstProtection {
        catalog: &catalog,
        is_lost: control.catalog_is_lost,
        identity: &identity,
        exempt: &options.exempt,
        servers: &servers,
        mark: options.capture.mark(),
    };
    if let Some(finder) = options.capture.finder()? {
        shared.workloads.get_or_init(|| finder);
    }
    let takes_over = entrance.claim.is_some();
    let interception = options.capture.attach(&first, shared.workloads.get(), entrance.claim.as_ref())?;
    let mut keeper = Keeper::new(&control, shared.clone());
    keeper.adopt(std::mem::take(&mut control.cached_identities));
    let course = Course::new(shutdown, std::mem::take(&mut entrance.failing));
    let started = start(&options, &control, &shared, bound, entrance, interception.as_ref(), &course);
    let serving = match started {
        Ok(mut running) => {
            running.tasks.spawn(keeper.run(wanted));
            running.take_over(interception.as_ref(), &course).await.map(|()| running)
        }
        Err(error) => Err(error),
    };
    if serving.is_ok() {
        notify::ready();
    }
    let ended = match serving {
        Ok(mut running) => match running.until(&course.shutdown).await {
            Ok(end) => Ok((running, end)),
            Err(error) => {
                running.workers.cut().await;
                Err(error)
            }
        },
        Err(error) if takes_over => {
            interception.into_iter().for_each(Interception::give_up);
            return Err(error.context("nothing was taken over, the agent that runs goes on"));
        }
        Err(error) => Err(error),
    };
    match ended {
        Ok((running, End::Stopped)) => {
            course.older.stop().await;
            running.stop(&control, interception, options.drain_timeout).await
        }
        Ok((running, End::Taken(taken))) => {
            interception.into_iter().for_each(Interception::leave);
            control.hand_over();
            running.leave(&taken, &shared, &options, &course).await
        }
        Err(error) if interception.is_some() => Err(error.context(
            "the agent failed; its hooks stay in force and refuse what they redirect: start the agent again",
        )),
        Err(error) => Err(error),
    }
}

/// Becomes a member of the mesh if need be, and no more.
///
/// # Errors
/// When the host is not a member and cannot become one, or its files are unusable.
pub async fn join(options: &AgentOptions) -> Result<Joined, ControlError> {
    control::join(&control_options(options)).await
}

fn control_options(options: &AgentOptions) -> ControlOptions {
    ControlOptions {
        data_dir: options.data_dir.clone(),
        seal: options.seal.clone(),
        join: options.join.clone(),
        node: options.node.clone(),
        mark: options.capture.mark(),
        remembered_from: options.capture.revision_in_force(),
    }
}

async fn start_control(options: &AgentOptions, shutdown: &CancellationToken) -> anyhow::Result<Control> {
    // The control plane outlives the signal to stop: it still has to tell the servers.
    let control = tokio::select! {
        control = control::start(control_options(options), CancellationToken::new()) => control?,
        () = shutdown.cancelled() => anyhow::bail!("stopped while joining"),
    };
    info!(id = %control.identity.borrow().id, "member of the mesh");
    Ok(control)
}

/// Starts workers and background tasks.
fn start(
    options: &AgentOptions,
    control: &Control,
    shared: &Arc<Shared>,
    bound: BoundWorkers,
    entrance: Entrance,
    interception: Option<&Interception>,
    course: &Course,
) -> anyhow::Result<Running> {
    let finder = shared.workloads.get().cloned();
    control.flows.send_replace(Some(shared.flows.clone()));
    let upstream = Arc::new(ArcSwapOption::empty());
    let pins = interception.map(|interception| interception.pins().clone());
    let takeover_file = entrance.takeover_file(options);
    let copies = interception.map(|_| bound.copies()).transpose()?;
    let workers = bound.start(shared, || match &pins {
        Some(pins) => Ok(Origin::Kernel(Records::open(pins)?)),
        None => Ok(Origin::Upstream(upstream.clone())),
    })?;
    let listening = copies.map(|copies| {
        let listen = options.capture.listen(options.tunnel_port);
        Arc::new(Listening::new(&workers, listen, options.capture.mark(), copies))
    });
    // It alone holds on to them: who has handed over must not listen.
    let renewable = listening.as_ref().map(Arc::downgrade).unwrap_or_default();
    let predecessor = entrance.predecessor(listening, interception, control, &course.failing)?;
    let Entrance { socket, claim, .. } = entrance;
    let ownership = socket.ownership();

    let (served_sender, served) = watch::channel(Served::default());
    let problems = Problems::default();
    let maps = interception.map(|interception| interception.take_policy()).transpose()?;
    let maps = maps.map(|maps| Arc::new(Mutex::new(maps)));
    let watchdog = interception
        .zip(maps.clone())
        .map(|(interception, maps)| Arc::new(Watchdog::new(interception, maps, renewable)));
    let (published_sender, published) = watch::channel(0);
    let publisher = Publisher {
        shared: shared.clone(),
        exempt: options.exempt.clone(),
        servers: control.status.clone(),
        enforcement: maps.zip(interception).zip(finder.as_ref()).map(|((maps, interception), finder)| {
            let (room, workloads) = (interception.options().room, finder.workloads().clone());
            Enforcement::new(maps, room, workloads, problems.clone())
        }),
        upstream: options.capture.upstream().map(|wanted| (wanted, upstream)),
        mark: pins.clone().map(Mark::new),
        loads: Loads::default(),
        published: published_sender,
        handed_over: course.handed_over.clone(),
    };
    let events = interception.map(Interception::listener_events).transpose()?;
    let verdicts = interception.map(Interception::verdict_events).transpose()?;
    let memory = Memory::new(control.cache.clone(), control.catalog.clone(), shared.clone());
    let kernel = interception
        .zip(watchdog.clone())
        .map(|(interception, watchdog)| local::Kernel::new(interception, problems, watchdog));
    let local = local::AgentLocal::new(options, control, shared, kernel, memory.saved());
    let local = Arc::new(local.with_older(&course.older));

    let mut tasks = JoinSet::new();
    let health = Health {
        node: NodeName::clone(&shared.node),
        mark: options.capture.mark(),
        directory: options.checks_dir.clone(),
        failing: course.failing.clone(),
    };
    tasks.spawn(course.while_ours(health.run(control.catalog.clone(), served.clone())));
    tasks.spawn(course.while_ours(memory.run()));
    let discovery = Discovery {
        exempt: options.exempt.clone(),
        tunnel_port: options.tunnel_port,
        owners: finder.map(Owners::new),
        failing: course.failing.subscribe(),
    };
    let discovery = tokio::spawn(discovery.run(events, served_sender, control.report.clone()));
    tasks.spawn(publisher.run(control.identity.clone(), control.catalog.clone(), served));
    tasks.spawn(follow_identity(control.identity.clone(), shared.clone()));
    let (serving, figures) = (course.serving.clone(), metrics::serve(options.metrics, local.clone()));
    tasks.spawn(async move {
        serving.run_until_cancelled(figures).await;
        Ok(())
    });
    let served = socket.serve(Routes::new(LocalServer::from_arc(local)), course.serving.clone());
    tasks.spawn(async move { Ok(served.await?) });
    if let Some(verdicts) = verdicts {
        tasks.spawn(observe::tell(verdicts, shared.clone()));
    }
    if let Some(pins) = pins {
        tasks.spawn(plaintext::watch(pins, control.plaintext.clone()));
    }
    tasks.spawn(announce_ready(control.catalog.clone(), published.clone()));
    if predecessor.is_some() {
        tasks.spawn(Upgrade::on_signal()?.run(course.handed_over.clone()));
    }
    Ok(Running {
        workers,
        discovery,
        tasks,
        published,
        predecessor,
        claim,
        ownership,
        watchdog,
        _takeover_file: takeover_file,
    })
}

/// What an agent lives through.
struct Course {
    /// It is to stop.
    shutdown: CancellationToken,
    /// It answers the command line.
    serving: CancellationToken,
    /// Another agent has taken over.
    handed_over: CancellationToken,
    /// Named services of this host whose check fails.
    failing: Arc<watch::Sender<Failing>>,
    /// Agents from before, which still carry streams.
    older: OlderAgents,
}

impl Course {
    fn new(shutdown: CancellationToken, failing: Failing) -> Self {
        Self {
            serving: shutdown.child_token(),
            shutdown,
            handed_over: CancellationToken::new(),
            failing: Arc::new(watch::Sender::new(failing)),
            older: OlderAgents::default(),
        }
    }

    /// Runs what only one agent of a host does.
    fn while_ours(
        &self,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let handed_over = self.handed_over.clone();
        async move { handed_over.run_until_cancelled(task).await.unwrap_or(Ok(())) }
    }
}

/// Why an agent ends.
enum End {
    /// It was told to stop.
    Stopped,
    /// Another one serves in its place.
    Taken(Taken),
}

/// What runs between start and stop.
struct Running {
    workers: Workers,
    discovery: JoinHandle<anyhow::Result<()>>,
    tasks: JoinSet<anyhow::Result<()>>,
    /// The revision of the catalog that the data path goes by.
    published: watch::Receiver<u64>,
    predecessor: Option<Predecessor>,
    claim: Option<Claim>,
    ownership: Ownership,
    watchdog: Option<Arc<Watchdog>>,
    _takeover_file: Option<SocketFile>,
}

impl Running {
    /// Begins to serve: in the place of another agent, if this one takes over.
    async fn take_over(
        &mut self,
        interception: Option<&Interception>,
        course: &Course,
    ) -> anyhow::Result<()> {
        let Some(claim) = self.claim.take() else {
            self.workers.open();
            self.watch(course);
            return Ok(());
        };
        let published = timeout(PUBLISH_TIMEOUT, self.published.wait_for(|revision| *revision > 0));
        published.await.context("this agent did not find out in time what there is to serve")??;
        self.workers.open();
        claim.take(&course.older).await?;
        self.ownership.take();
        if let Some(Err(error)) = interception.map(Interception::settle) {
            warn!("a restart after a crash would know nothing until a server answers: {error:#}");
        }
        self.watch(course);
        Ok(())
    }

    /// From now on the kernel half is this agent's to repair, until another one has taken over.
    fn watch(&mut self, course: &Course) {
        if let Some(watchdog) = self.watchdog.take() {
            self.tasks.spawn(course.while_ours(watchdog.run()));
        }
    }

    /// Until the signal to stop, until another agent has taken over, or until something ends that must not.
    async fn until(&mut self, shutdown: &CancellationToken) -> anyhow::Result<End> {
        let predecessor = self.predecessor.take();
        let taken = async {
            match predecessor {
                Some(predecessor) => predecessor.run().await,
                None => std::future::pending().await,
            }
        };
        let mut taken = std::pin::pin!(taken);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(End::Stopped),
                taken = &mut taken => return Ok(End::Taken(taken?)),
                error = self.workers.failed() => return Err(error),
                ended = &mut self.discovery => {
                    ended.context("discovery panicked")??;
                    bail!("discovery ended");
                }
                Some(ended) = self.tasks.join_next() => ended.context("a task of the agent panicked")??,
            }
        }
    }

    /// Tells other hosts while connections are still carried, then takes the hooks off, then drains.
    async fn stop(
        mut self,
        control: &Control,
        interception: Option<Interception>,
        drain_timeout: Duration,
    ) -> anyhow::Result<()> {
        // It would report again what is withdrawn.
        self.discovery.abort();
        let _ = (&mut self.discovery).await;
        if !control.withdraw().await {
            warn!(
                "no server acknowledged that this host serves nothing any more; other hosts' connections to it fail until one does"
            );
        }
        // One of these writes beside the pins when rules change.
        self.tasks.shutdown().await;
        if let Some(interception) = interception {
            if interception.detach()? {
                warn!(
                    "hooks detached but the one that keeps strict services of this host closed until an agent runs again; `murmesh agent --cleanup` takes it off, too"
                );
            } else {
                info!("hooks detached, pins removed");
            }
        }
        self.workers.stop(drain_timeout).await;
        info!("stopped");
        Ok(())
    }

    /// Leaves everything to another agent but the streams that are open. Rules are followed until the last has ended.
    async fn leave(
        mut self,
        taken: &Taken,
        shared: &Shared,
        options: &AgentOptions,
        course: &Course,
    ) -> anyhow::Result<()> {
        self.ownership.give_up();
        course.serving.cancel();
        course.handed_over.cancel();
        self.workers.hand_over();
        taken.give(&course.older).await;
        notify::followed_by(taken.pid());
        info!(to = taken.pid(), "handed over");
        let is_drained = tokio::select! {
            () = self.workers.drain(options.upgrade_drain_timeout) => true,
            () = taken.tell(|| shared.traffic.get(Counter::StreamsActive)) => false,
            () = course.shutdown.cancelled() => false,
        };
        if !is_drained {
            self.workers.stop(options.drain_timeout).await;
        }
        info!("stopped");
        Ok(())
    }
}

/// Puts renewed certificates into use.
async fn follow_identity(
    mut identity: watch::Receiver<Arc<Identity>>,
    shared: Arc<Shared>,
) -> anyhow::Result<()> {
    while identity.changed().await.is_ok() {
        let current = identity.borrow_and_update().clone();
        let not_after = humantime::format_rfc3339_seconds(current.not_after);
        match shared.identities.set_host(current) {
            Ok(()) => info!(%not_after, "certificate renewed"),
            Err(error) => warn!("the renewed certificate is unusable, the old one stays in use: {error}"),
        }
    }
    Ok(())
}

/// Says `ready` once the first catalog is published: from then on connections are carried.
async fn announce_ready(
    catalog: watch::Receiver<Arc<Catalog>>,
    mut published: watch::Receiver<u64>,
) -> anyhow::Result<()> {
    if published.wait_for(|revision| *revision > 0).await.is_ok() {
        info!(hosts = catalog.borrow().hosts.len(), "ready");
    }
    Ok(())
}
