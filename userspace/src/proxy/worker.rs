//! Workers: one thread per core, each with its own runtime, its own listeners at the same ports, and its own
//! tunnels. A stream stays on the thread that accepted it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Origin, Shared, accept::accept, access_log, callers::Callers, handshakes::Handshakes, inbound,
    judge::Judge, live::Live, outbound, pool::Pool, sources::Sources, traffic::Counter, watchdog::Watchdog,
};
use crate::{
    flows::{RecentFlows, Side},
    socket,
};

/// How often tunnels at rest are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long workers may take to reset their streams.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a stopping worker looks whether its streams have ended.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);

/// Where to listen.
#[derive(Debug, Clone)]
pub struct Listen {
    /// Tunnels from other hosts.
    pub tunnels: SocketAddr,
    /// Applications on this host: the redirect's targets, or a sidecar's dial address.
    pub applications: Vec<SocketAddr>,
}

impl Listen {
    /// The agent's listeners: tunnels on `tunnel_port` of every address, redirected connections on `outbound_port`
    /// of both loopback addresses.
    pub fn agent(tunnel_port: u16, outbound_port: u16) -> Self {
        Self {
            tunnels: (Ipv6Addr::UNSPECIFIED, tunnel_port).into(),
            applications: vec![
                (Ipv4Addr::LOCALHOST, outbound_port).into(),
                (Ipv6Addr::LOCALHOST, outbound_port).into(),
            ],
        }
    }

    /// A sidecar's listeners: tunnels, and the address that applications dial, if they have an upstream.
    pub fn sidecar(tunnel_port: u16, applications: Option<SocketAddr>) -> Self {
        Self {
            tunnels: (Ipv6Addr::UNSPECIFIED, tunnel_port).into(),
            applications: applications.into_iter().collect(),
        }
    }
}

/// One worker's own things.
pub struct Worker {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// How it learns original destinations.
    pub origin: Origin,
    /// Its tunnels at rest.
    pub pool: Rc<Pool>,
    /// From where it dials this host's services.
    pub sources: Sources,
    /// Permits for handshakes with who connects.
    pub handshakes: Handshakes,
    /// What tells who connects.
    pub callers: Callers,
    /// What tells who may.
    pub judge: Judge,
    /// Its open streams.
    pub live: Live,
    /// Who of this host connected to whom lately.
    pub flows: RecentFlows,
    /// Who of others connected to this host lately.
    pub incoming: RecentFlows,
    /// What looks at the tunnels of its streams.
    pub watchdog: Watchdog,
    /// Cancelled when no new streams are taken any more.
    pub stop: CancellationToken,
    /// Cancelled when another process accepts all connections. Streams on tunnels that are there are still taken, and
    /// tunnels at rest are closed.
    pub handed_over: CancellationToken,
}

/// The running workers.
pub struct Workers {
    /// How each worker's thread ended.
    ended: JoinSet<anyhow::Result<()>>,
    /// Where each one gets other listeners.
    listeners: Vec<mpsc::UnboundedSender<WorkerListeners>>,
    open: CancellationToken,
    stop: CancellationToken,
    handed_over: CancellationToken,
    cut: CancellationToken,
}

/// Listeners of all workers, bound but not served yet.
pub struct BoundWorkers(Vec<WorkerListeners>);

/// One worker's listeners.
pub struct WorkerListeners {
    /// Where tunnels of other hosts are accepted.
    pub tunnels: std::net::TcpListener,
    /// Where applications of this host connect to.
    pub applications: Vec<std::net::TcpListener>,
}

impl Workers {
    fn none() -> Self {
        let token = CancellationToken::new;
        Self {
            ended: JoinSet::new(),
            listeners: Vec::new(),
            open: token(),
            stop: token(),
            handed_over: token(),
            cut: token(),
        }
    }

    /// Binds the listeners of a worker per core.
    ///
    /// # Errors
    /// An address is in use or may not be used.
    pub fn bind(listen: &Listen, mark: Option<u32>) -> anyhow::Result<BoundWorkers> {
        for address in listen.applications.iter().chain([&listen.tunnels]) {
            if_there_is_ipv6(*address, socket::ensure_free(*address))?;
        }
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(BoundWorkers(
            (0..count).map(|_| WorkerListeners::new(listen, mark)).collect::<anyhow::Result<_>>()?,
        ))
    }

    /// Where each one gets listeners that take the place of those that it has.
    pub fn listeners(&self) -> Vec<mpsc::UnboundedSender<WorkerListeners>> {
        self.listeners.clone()
    }

    /// Waits until a worker fails, which none does that is well, and says why.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.ended.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Ok(Ok(()))) => anyhow::anyhow!("a worker ended by itself"),
            Some(Err(error)) => error.into(),
            None => std::future::pending().await,
        }
    }

    /// From now on connections are accepted.
    pub fn open(&self) {
        self.open.cancel();
    }

    /// Stops accepting, and returns when every stream has ended or the time for it is over.
    pub async fn stop(mut self, drain_timeout: Duration) {
        self.stop.cancel();
        self.drain(drain_timeout).await;
    }

    /// Leaves accepting to another process that has the same listeners.
    pub fn hand_over(&self) {
        self.handed_over.cancel();
    }

    /// Returns when every stream has ended; those that have not after `drain_timeout` are reset.
    pub async fn drain(&mut self, drain_timeout: Duration) {
        tracing::info!("draining");
        if timeout(drain_timeout, self.all_ended()).await.is_err() {
            self.cut.cancel();
            self.all_ended().await;
        }
    }

    async fn all_ended(&mut self) {
        while let Some(ended) = self.ended.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::error!("{error:#}");
            }
        }
    }

    /// Resets every stream, which is logged, and returns when that is done, or not possible.
    pub async fn cut(self) {
        self.cut.cancel();
        let _ = timeout(CUT_TIMEOUT, self.stop(CUT_TIMEOUT)).await;
    }

    /// Runs `work` on a thread of its own, and takes note of how that ends.
    fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new().name(name.clone()).spawn(move || {
            // Nobody listens any more when the agent has failed already.
            let _ = sender.send(work());
        })?;
        self.ended.spawn(async move {
            // The sender is dropped unused when the thread panics.
            let ended = receiver.await.map_err(|_| anyhow::anyhow!("{name} panicked"))?;
            ended.with_context(|| format!("{name} failed"))
        });
        Ok(())
    }
}

impl BoundWorkers {
    /// Those of a process that is taken over.
    pub fn inherited(listeners: Vec<WorkerListeners>) -> Self {
        Self(listeners)
    }

    /// Copies, for a process that takes over from this one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn copies(&self) -> io::Result<Vec<WorkerListeners>> {
        self.0.iter().map(WorkerListeners::copy).collect()
    }

    /// Starts the workers, which accept once they are [opened](Workers::open); `origin` makes each one's source of
    /// original destinations.
    ///
    /// # Errors
    /// No thread can be started, or there is no source. Needs a tokio runtime.
    pub fn start(
        self,
        shared: &Arc<Shared>,
        mut origin: impl FnMut() -> anyhow::Result<Origin>,
    ) -> anyhow::Result<Workers> {
        let mut workers = Workers::none();
        for (number, bound) in self.0.into_iter().enumerate() {
            let (shared, origin) = (shared.clone(), origin()?);
            let end = Phases {
                open: workers.open.clone(),
                stop: workers.stop.clone(),
                handed_over: workers.handed_over.clone(),
                cut: workers.cut.clone(),
            };
            let (sender, renewed) = mpsc::unbounded_channel();
            workers.listeners.push(sender);
            workers.spawn(format!("worker-{number}"), move || run(shared, origin, bound, renewed, end))?;
        }
        Ok(workers)
    }
}

impl WorkerListeners {
    /// The application listeners carry the agent's mark, by which the hooks know that it is the agent who listens.
    pub(super) fn new(listen: &Listen, mark: Option<u32>) -> anyhow::Result<Self> {
        let applications = listen
            .applications
            .iter()
            .filter_map(|address| bind(*address).transpose())
            .collect::<anyhow::Result<Vec<_>>>()?;
        for listener in &applications {
            socket::reset_on_close(listener)?;
            let socket = socket2::SockRef::from(listener);
            socket.set_tcp_nodelay(true)?;
            if let Some(mark) = mark {
                socket.set_mark(mark).context(
                    "this process may not mark sockets: run the agent as root (CAP_BPF and CAP_NET_ADMIN)",
                )?;
            }
        }
        let tunnels = match bind(listen.tunnels)? {
            Some(listener) => listener,
            None => bind((Ipv4Addr::UNSPECIFIED, listen.tunnels.port()).into())?
                .context("no IPv4 on this host")?,
        };
        Ok(Self { tunnels, applications })
    }

    pub(super) fn copy(&self) -> io::Result<Self> {
        let applications = self.applications.iter().map(std::net::TcpListener::try_clone);
        Ok(Self {
            tunnels: self.tunnels.try_clone()?,
            applications: applications.collect::<io::Result<_>>()?,
        })
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<Option<std::net::TcpListener>> {
    if_there_is_ipv6(address, socket::listener(address))
}

/// `None` where the kernel has no IPv6.
fn if_there_is_ipv6<T>(address: SocketAddr, bound: io::Result<T>) -> anyhow::Result<Option<T>> {
    match bound {
        Ok(bound) => Ok(Some(bound)),
        Err(error) if address.is_ipv6() && is_without_ipv6(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| {
            format!(
                "cannot listen on {address}: is another agent or sidecar running in this network namespace? Other ports \
                 can be chosen with --tunnel-port, and --outbound-port (agent) or --listen (sidecar)"
            )
        }),
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EAFNOSUPPORT};
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}

/// What a worker lives through.
struct Phases {
    /// Connections are accepted.
    open: CancellationToken,
    /// No new streams are taken any more.
    stop: CancellationToken,
    /// Another process accepts connections.
    handed_over: CancellationToken,
    /// Streams that are open are not waited for.
    cut: CancellationToken,
}

fn run(
    shared: Arc<Shared>,
    origin: Origin,
    bound: WorkerListeners,
    mut renewed: mpsc::UnboundedReceiver<WorkerListeners>,
    phases: Phases,
) -> io::Result<()> {
    let Phases { open, stop, handed_over, cut } = phases;
    let mut runtime = Builder::new_current_thread();
    runtime.enable_all().on_thread_park(access_log::flush);
    let runtime = runtime.build_local(LocalOptions::default())?;
    let ended = runtime.block_on(async move {
        let pool = Rc::new(Pool::new(shared.clone()));
        let worker = Rc::new(Worker {
            callers: Callers::new(shared.clone()),
            judge: Judge::new(shared.clone()),
            live: Live::default(),
            flows: RecentFlows::new(Side::Here),
            incoming: RecentFlows::new(Side::Elsewhere),
            shared,
            origin,
            pool,
            sources: Sources::default(),
            handshakes: Handshakes::default(),
            watchdog: Watchdog::default(),
            stop: stop.clone(),
            handed_over: handed_over.clone(),
        });
        if open.run_until_cancelled(stop.cancelled()).await.is_some() {
            return Ok(());
        }
        let (mut tasks, watched) = (JoinSet::new(), worker.clone());
        tasks.spawn_local(async move { watched.watchdog.run().await });
        let (followed, changed) = (worker.clone(), worker.shared.rules_changed.subscribe());
        tasks.spawn_local(async move { followed.live.follow(&followed.shared, changed).await });
        let (asked, mut questions) = (worker.clone(), worker.shared.questions.to_worker());
        tasks.spawn_local(async move {
            while let Some(question) = questions.recv().await {
                // Whoever asked may not wait any more.
                let _ = question.send(asked.live.moved());
            }
        });
        // Each connection that is served holds the worker, and so do the three above and this function.
        let without_connections = Rc::strong_count(&worker);
        let mut accepting = accept_on(bound, &worker, &mut tasks)?;
        let mut sweeping = std::pin::pin!(sweep(&worker));
        loop {
            tokio::select! {
                () = &mut sweeping => break,
                Some(other) = renewed.recv() => {
                    let former = std::mem::replace(&mut accepting, accept_on(other, &worker, &mut tasks)?);
                    former.cancel();
                }
                Some(ended) = tasks.join_next() => ended?,
            }
        }
        // What may still wait there is not served, and must not look as if it were.
        drop(renewed);
        accepting.cancel();
        worker.pool.close();
        let drained = async {
            if handed_over.is_cancelled() {
                until(|| Rc::strong_count(&worker) <= without_connections).await;
            } else {
                // Streams of all workers are counted together, and all workers stop together.
                until(|| worker.shared.traffic.get(Counter::StreamsActive) == 0).await;
            }
        };
        // Ending in time is wished for; what has not ended is cut.
        cut.run_until_cancelled(drained).await;
        Ok(())
    });
    // What still runs is dropped, which resets its connections and is the last to be logged.
    drop(runtime);
    access_log::flush();
    ended
}

/// Accepts on all of `listeners` until what it returns is cancelled.
fn accept_on(
    listeners: WorkerListeners,
    worker: &Rc<Worker>,
    tasks: &mut JoinSet<()>,
) -> io::Result<CancellationToken> {
    let accepting = CancellationToken::new();
    for listener in listeners.applications {
        let (listener, worker) = (TcpListener::from_std(listener)?, worker.clone());
        let serve = move |stream, peer| outbound::serve(worker.clone(), stream, peer);
        tasks.spawn_local(accept(listener, accepting.clone(), serve));
    }
    let (listener, inbound) = (TcpListener::from_std(listeners.tunnels)?, worker.clone());
    let serve = move |stream, peer| inbound::serve(inbound.clone(), stream, peer);
    tasks.spawn_local(accept(listener, accepting.clone(), serve));
    Ok(accepting)
}

/// Looks after tunnels at rest until nothing is accepted any more.
async fn sweep(worker: &Worker) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                worker.pool.sweep();
                worker.sources.reset();
                worker.callers.forget();
            }
            () = worker.stop.cancelled() => return,
            () = worker.handed_over.cancelled() => return,
        }
    }
}

async fn until(is_so: impl Fn() -> bool) {
    let mut ticks = interval(DRAIN_INTERVAL);
    while !is_so() {
        ticks.tick().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_panics_or_fails_is_noticed() {
        let mut workers = Workers::none();
        workers.spawn("worker-0".to_owned(), || panic!("on purpose")).expect("a thread");
        assert_eq!(workers.failed().await.to_string(), "worker-0 panicked");
        workers.spawn("worker-1".to_owned(), || Err(io::ErrorKind::OutOfMemory.into())).expect("a thread");
        assert_eq!(workers.failed().await.to_string(), "worker-1 failed");
    }

    #[tokio::test]
    async fn stopping_waits_for_the_threads() {
        let mut workers = Workers::none();
        let (stop, (sender, receiver)) = (workers.stop.clone(), std::sync::mpsc::channel());
        let work = move || {
            while !stop.is_cancelled() {
                std::thread::yield_now();
            }
            sender.send(()).map_err(io::Error::other)
        };
        workers.spawn("worker-0".to_owned(), work).expect("a thread");
        workers.stop(Duration::MAX).await;
        receiver.try_recv().expect("the thread has ended");
    }
}
