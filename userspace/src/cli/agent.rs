//! `murmesh agent`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, builder::RangedI64ValueParser};
use tracing::info;

use super::daemon::{self, DaemonOptions, KernelOptions, LogFormat};
use crate::{
    agent::{self, AgentOptions, Capture, InterceptionOptions},
    bpf::{DEFAULT_MARK, Pins},
    cgroup,
    discovery::ExemptPorts,
    identity::{JoinToken, NodeName},
    leftovers::{Leftovers, UNIT_DIRECTORY},
    metrics::{self, MetricsAddress},
    policy::compile::Room,
    sandbox,
    seal::KeySource,
    workload::Explicit,
};

/// Arguments of `murmesh agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    #[command(flatten)]
    daemon: DaemonOptions,
    #[command(flatten)]
    kernel: KernelOptions,
    #[command(flatten)]
    member: MemberOptions,
    /// Loopback port that intercepted connections are redirected to.
    #[arg(long, default_value_t = 15001, value_name = "PORT")]
    outbound_port: u16,
    /// Where figures for Prometheus are served (/metrics, and /healthz), or "off".
    #[arg(long, default_value = metrics::AGENT_ADDRESS, value_name = "IP:PORT")]
    metrics: MetricsAddress,
    /// Mark (SO_MARK) of the agent's own sockets; change it if routing rules of this host use the same.
    #[arg(long, default_value_t = DEFAULT_MARK, value_name = "NUMBER")]
    mark: u32,
    /// A workload of this host by your own name instead of that of its unit or user, such as
    /// shop=unit:web.service,user:shop or backup=group:backup; may be given several times.
    #[arg(long = "workload", value_name = "NAME=SELECTOR[,SELECTOR]")]
    workloads: Vec<Explicit>,
    #[command(flatten)]
    room: RoomOptions,
    /// While no agent runs, let connections to services of the mesh go on in clear, except to strict ones, and except
    /// where a rule forbids it. Without this they are refused until an agent runs again.
    #[arg(long)]
    fail_open: bool,
    /// Remove what an agent that was killed or stopped left in the kernel, and end: hooks, links, maps and pins. From
    /// then on connections of this host are plain, and its strict services are open.
    #[arg(long)]
    cleanup: bool,
    #[command(flatten)]
    upgrade: UpgradeOptions,
}

/// How an agent takes over from another, and is taken over. SIGUSR2 has an agent start the program at its own path with
/// its own arguments to take over.
#[derive(Debug, Args)]
struct UpgradeOptions {
    /// Take over from the agent that runs with the same --run-dir, if there is one: no connection is refused, and none
    /// is reset. That one carries what is open, and then ends.
    #[arg(long)]
    take_over: bool,
    /// How long connections may go on in this agent once another has taken over before they are reset.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration, value_name = "DURATION")]
    upgrade_drain_timeout: Duration,
}

/// What the kernel half has room for. Where something does not fit, `status` and `check` say so, and connections that
/// it is about are refused. Kernel memory is taken at the start for as many as are given, unless said otherwise.
#[derive(Debug, Args)]
struct RoomOptions {
    /// Services in the whole mesh, 130 bytes each.
    #[arg(long, default_value_t = 65_536, value_parser = room(16), value_name = "NUMBER")]
    max_endpoints: u32,
    /// Verdicts that hold for some of this host's workloads and some services, 180 bytes each.
    #[arg(long, default_value_t = 32_768, value_parser = room(0), value_name = "NUMBER")]
    max_verdicts: u32,
    /// Networks outside the mesh that rules name, for each port that they name; 200 bytes for each that there is.
    #[arg(long, default_value_t = 65_536, value_parser = room(4), value_name = "NUMBER")]
    max_egress: u32,
    /// cgroups, 80 bytes each.
    #[arg(long, default_value_t = 16_384, value_parser = room(16), value_name = "NUMBER")]
    max_workloads: u32,
    /// Users that rules name, 160 bytes each.
    #[arg(long, default_value_t = 1024, value_parser = room(0), value_name = "NUMBER")]
    max_users: u32,
}

fn room(least: i64) -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(least..=16_777_216)
}

impl RoomOptions {
    fn room(&self) -> Room {
        Room {
            endpoints: self.max_endpoints as usize,
            verdicts: self.max_verdicts as usize,
            egress: self.max_egress as usize,
            workloads: self.max_workloads as usize,
            users: self.max_users as usize,
        }
    }
}

/// What an agent and a sidecar have in common.
#[derive(Debug, Args)]
pub struct MemberOptions {
    /// Token to join with, from `murmesh token create` on a server. Only needed the first time.
    #[arg(long, env = "MURMESH_JOIN", hide_env_values = true, value_name = "TOKEN")]
    join: Option<JoinToken>,
    /// Name to join as [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// File with the key that secrets in the data directory are sealed with: 64 hexadecimal digits [default: systemd's
    /// credential murmesh-seal-key, else seal.key in the data directory, which is made at the first start].
    #[arg(long, value_name = "FILE")]
    seal_key_file: Option<PathBuf>,
    /// Port on which tunnels from other hosts are accepted, on every address.
    #[arg(long, default_value_t = 9191, value_name = "PORT")]
    tunnel_port: u16,
    /// Port whose listeners are left alone; may be given several times. Those of SSH (22) and of Murmesh always are.
    #[arg(long, value_name = "PORT")]
    exempt: Vec<u16>,
    /// Directory of the programs that checks of services run (`murmesh service set … --check command:NAME`). Only root
    /// may be allowed to write there.
    #[arg(long, default_value = "/etc/murmesh/checks", value_name = "DIR")]
    checks_dir: PathBuf,
    /// How long connections may go on after a stop before they are reset.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    drain_timeout: Duration,
}

impl MemberOptions {
    /// The options of the daemon to run. `own` are ports that it listens on beside the usual ones.
    pub(super) fn agent_options(
        self,
        daemon: DaemonOptions,
        capture: Capture,
        own: &[u16],
    ) -> anyhow::Result<AgentOptions> {
        let exempt = ExemptPorts::with(self.exempt.iter().chain(own).copied().chain([self.tunnel_port]));
        Ok(AgentOptions {
            run_dir: daemon.run_dir(),
            seal: KeySource::choose(self.seal_key_file, None, &daemon.data_dir),
            data_dir: daemon.data_dir,
            node: daemon::node_name(self.node)?,
            join: self.join,
            tunnel_port: self.tunnel_port,
            metrics: MetricsAddress::Off,
            exempt,
            checks_dir: self.checks_dir,
            drain_timeout: self.drain_timeout,
            // Nothing is handed over, unless said otherwise.
            upgrade_drain_timeout: self.drain_timeout,
            take_over: false,
            capture,
        })
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the agent cannot start.
pub fn run(arguments: AgentArgs) -> anyhow::Result<ExitCode> {
    let form = arguments.daemon.log_format;
    if arguments.cleanup {
        let _last_lines = daemon::start_log(form)?;
        let (run_dir, bpf_dir) = (arguments.daemon.run_dir(), arguments.kernel.bpf_dir);
        return clean_up(&Leftovers { run_dir, bpf_dir, data_dir: None, unit_dir: UNIT_DIRECTORY.into() });
    }
    run_until_stopped(arguments.options()?, form)
}

impl AgentArgs {
    /// The options of the agent to run.
    pub(super) fn options(self) -> anyhow::Result<AgentOptions> {
        let Self {
            daemon,
            kernel,
            member,
            outbound_port,
            metrics,
            mark,
            workloads,
            room,
            upgrade,
            fail_open,
            ..
        } = self;
        anyhow::ensure!(mark != 0, "--mark 0 is what every socket has: choose another number");
        let cgroup = match kernel.cgroup {
            // Resolved, because it is compared with where processes are.
            Some(cgroup) => std::fs::canonicalize(&cgroup)
                .map_err(|error| anyhow::anyhow!("--cgroup {}: {error}", cgroup.display()))?,
            None => cgroup::root()?,
        };
        let capture = Capture::Kernel(InterceptionOptions {
            cgroup,
            bpf_dir: kernel.bpf_dir,
            mark,
            outbound_port,
            fail_open,
            room: room.room(),
            workloads,
        });
        let own: Vec<u16> = metrics.port().into_iter().chain([outbound_port]).collect();
        let options = member.agent_options(daemon, capture, &own)?;
        let UpgradeOptions { take_over, upgrade_drain_timeout } = upgrade;
        Ok(AgentOptions { take_over, upgrade_drain_timeout, metrics, ..options })
    }
}

fn clean_up(leftovers: &Leftovers) -> anyhow::Result<ExitCode> {
    if let Some(running) = leftovers.running().first() {
        anyhow::bail!("{running}: stop it, which leaves nothing to be cleaned up");
    }
    let removed = leftovers.remove()?;
    for path in &removed {
        info!("removed {}", path.display());
    }
    if removed.is_empty() {
        info!("there was nothing of an agent to be removed");
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs an agent or a sidecar.
pub(super) fn run_until_stopped(options: AgentOptions, form: LogFormat) -> anyhow::Result<ExitCode> {
    if let Capture::Kernel(kernel) = &options.capture {
        // Mounting is root's. What goes wrong is said when the directory is used.
        let _ = Pins::new(&kernel.bpf_dir).ensure_file_system();
    }
    sandbox::enter(&options.needs())?;
    let _last_lines = daemon::start_log(form)?;
    sandbox::log();
    daemon::block_on(async {
        agent::run(options, daemon::stop_on_signal()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}
