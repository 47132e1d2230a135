//! A mesh in a lab: a server, and hosts that have joined.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use murmesh_common::{Destination, Endpoint, SocketAddress};
use nix::sys::signal::Signal;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde_json::Value;

use crate::cgroup;
use crate::host::Host;
use crate::is_root;
use crate::lab::Lab;
use crate::murmesh::READY;
use crate::patience::deadline;
use crate::process::Process;
use crate::topology::Topology;

/// How long anything in a mesh may take that ought to happen at once. The machine may be busy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often a map of the kernel is looked at, which tells nobody when it changes.
const MAP_INTERVAL: Duration = Duration::from_millis(2);

/// How much of a daemon's log is shown.
const LAST_LINES: usize = 60;

/// A lab whose server `murmesh00` runs, and whose other hosts have an agent each that is ready.
#[derive(Debug)]
pub struct Mesh {
    // Fields are dropped in this order: daemons before the namespaces that they run in.
    agents: BTreeMap<String, Process>,
    server: Process,
    lab: Lab,
}

impl Mesh {
    /// Starts a mesh of service hosts `fcs00…` and client hosts `fcc00…`. `None`, with the reason printed, where
    /// this machine or user cannot have one: the test is skipped.
    pub fn start(services: u8, clients: u8) -> Result<Option<Self>> {
        if let Some(reason) = unavailable() {
            eprintln!("skipped: {reason}");
            return Ok(None);
        }
        let lab = Lab::new(Topology { servers: 1, services, clients })?;
        let server = lab.host("murmesh00")?;
        let process = server.start_server()?;
        let mut agents = BTreeMap::new();
        for host in lab.hosts().iter().filter(|host| host.name() != server.name()) {
            let agent = Process::spawn(&mut host.agent_command(&server.create_token()?)?)?;
            agents.insert(host.name().to_owned(), agent);
        }
        for (name, agent) in &agents {
            agent.wait_for_line(READY, DEADLINE).with_context(|| format!("agent of {name}"))?;
        }
        Ok(Some(Self { agents, server: process, lab }))
    }

    /// The lab, for hosts by name.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The host called `name`.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.lab.host(name)
    }

    /// The first service host, `fcs00`.
    pub fn service(&self) -> Result<&Host> {
        self.host("fcs00")
    }

    /// The first client host, `fcc00`.
    pub fn client(&self) -> Result<&Host> {
        self.host("fcc00")
    }

    /// The agent of the host called `name`.
    pub fn agent(&self, name: &str) -> Result<&Process> {
        self.agents.get(name).with_context(|| format!("{name} has no running agent"))
    }

    /// Ends the agent of the host called `name` by SIGKILL, so that it cleans nothing up.
    pub fn kill_agent(&mut self, name: &str) -> Result<()> {
        let mut agent = self.agents.remove(name).with_context(|| format!("{name} has no running agent"))?;
        agent.signal(Signal::SIGKILL)?;
        agent.wait(DEADLINE)?;
        Ok(())
    }

    /// The server.
    pub fn server(&self) -> &Process {
        &self.server
    }

    /// Starts a program on `host` that listens on `port`, and waits until all other hosts reach it through the mesh
    /// at the host's IPv4 address.
    pub fn serve<I: AsRef<OsStr>>(
        &self,
        host: &Host,
        port: u16,
        program: &str,
        arguments: impl IntoIterator<Item = I>,
    ) -> Result<Process> {
        let process = host.spawn(program, arguments)?;
        host.wait_listening(port, DEADLINE).with_context(|| process.said())?;
        self.wait_carried(&[SocketAddr::new(host.ipv4().into(), port)])?;
        Ok(process)
    }

    /// Starts a probe on `fcs00` that plays `steps` on one connection to `port` after the other, and waits until
    /// all other hosts reach it through the mesh.
    pub fn listen(&self, port: u16, steps: &[&str]) -> Result<Process> {
        let address = format!("[::]:{port}");
        let probe = self.service()?.probe(["listen", &address].iter().chain(steps))?;
        probe.wait_for_line("listening", DEADLINE)?;
        self.wait_carried(&self.service()?.addresses().map(|address| SocketAddr::new(address, port)))?;
        Ok(probe)
    }

    /// Starts a probe on `fcc00` that connects to `port` of `fcs00` and plays `steps`.
    pub fn connect(&self, port: u16, steps: &[&str]) -> Result<Process> {
        let destination = format!("{}:{port}", self.service()?.ipv4());
        self.client()?.probe(["connect", &destination].iter().chain(steps))
    }

    /// Checks that the agent of `fcc00` has carried `expected` connections.
    pub fn ensure_carried(&self, expected: u64) -> Result<()> {
        let carried = status(self.client()?, "/traffic/streams_total")?;
        ensure!(carried == expected, "the mesh carried {carried} connections and not {expected}");
        Ok(())
    }

    /// Waits until every agent but that of a destination's own host carries connections to it: all of
    /// `destinations` are in what `murmesh services` lists, and in the kernel's map.
    pub fn wait_carried(&self, destinations: &[SocketAddr]) -> Result<()> {
        for destination in destinations {
            for host in self.other_hosts(destination.ip()) {
                wait_for_endpoint(host, *destination, true)?;
            }
        }
        for host in self.joined_hosts() {
            wait_listed(host, destinations)?;
        }
        Ok(())
    }

    /// Waits until no agent carries connections to `destination` any more.
    pub fn wait_not_carried(&self, destination: SocketAddr) -> Result<()> {
        self.other_hosts(destination.ip()).try_for_each(|host| wait_for_endpoint(host, destination, false))
    }

    fn other_hosts(&self, address: IpAddr) -> impl Iterator<Item = &Host> {
        self.joined_hosts().filter(move |host| !host.addresses().contains(&address))
    }

    fn joined_hosts(&self) -> impl Iterator<Item = &Host> {
        self.lab.hosts().iter().filter(|host| self.agents.contains_key(host.name()))
    }
}

impl Drop for Mesh {
    /// Tells what the daemons said last. Whoever runs the tests shows it for those that failed.
    fn drop(&mut self) {
        let agents = self.agents.iter().map(|(name, agent)| (name.as_str(), agent));
        for (name, daemon) in agents.chain([("server", &self.server)]) {
            let said = daemon.said();
            let lines: Vec<&str> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            eprintln!("--- {name} said last:\n{}", last.join("\n"));
        }
    }
}

/// What `murmesh services` on `host` says is reached through the mesh.
pub fn services(host: &Host) -> Result<Vec<SocketAddr>> {
    let services: Vec<Value> = serde_json::from_str(&host.murmesh(["services", "-o", "json"])?)?;
    let endpoints = services.iter().filter_map(|service| service["endpoints"].as_array()).flatten();
    endpoints.map(|endpoint| Ok(endpoint.as_str().context("an endpoint is a string")?.parse()?)).collect()
}

/// The addresses of a named service are redirected before anybody listens there.
fn wait_listed(host: &Host, destinations: &[SocketAddr]) -> Result<()> {
    let deadline = deadline(DEADLINE);
    loop {
        let mut wanted = destinations.iter().filter(|wanted| !host.addresses().contains(&wanted.ip()));
        let listed = services(host)?;
        let Some(missing) = wanted.find(|wanted| !listed.contains(wanted)) else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("{missing} is redirected, and not among the services on {}: {listed:?}", host.name());
        }
    }
}

/// A number of `murmesh status` on `host`, by its JSON pointer (RFC 6901).
pub fn status(host: &Host, pointer: &str) -> Result<u64> {
    // A red status is still a status.
    let output = host.run("murmesh", ["status", "-o", "json"], b"", DEADLINE)?;
    let status: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    status
        .pointer(pointer)
        .and_then(Value::as_u64)
        .with_context(|| format!("no number {pointer} in {status}"))
}

/// Waits until the agent of `host` carries connections to `destination`, or until it does not any more.
///
/// The map is the truth about what is redirected: `murmesh services` has the catalog a moment earlier.
pub fn wait_for_endpoint(host: &Host, destination: SocketAddr, wanted: bool) -> Result<()> {
    let still = if wanted { "not" } else { "still" };
    wait_in_map(host, destination, &format!("{still} carried"), |endpoint| endpoint.is_some() == wanted)
}

/// Waits until the kernel of `host` knows that somebody serves `destination`, an address of a named service, or that
/// nobody does.
pub fn wait_for_availability(host: &Host, destination: SocketAddr, wanted: bool) -> Result<()> {
    let still = if wanted { "not" } else { "still" };
    wait_in_map(host, destination, &format!("{still} available"), |endpoint| {
        endpoint
            .is_some_and(|endpoint| (endpoint.destination.flags & Destination::UNAVAILABLE == 0) == wanted)
    })
}

fn wait_in_map(
    host: &Host,
    destination: SocketAddr,
    not_yet: &str,
    wanted: impl Fn(Option<Endpoint>) -> bool,
) -> Result<()> {
    let map = endpoint_map(host.bpf_directory()).with_context(|| format!("on {}", host.name()))?;
    let deadline = deadline(DEADLINE);
    while !wanted(map.get(&destination.into(), 0).ok()) {
        if Instant::now() >= deadline {
            bail!("{destination} is {not_yet} on {} after {DEADLINE:?}", host.name());
        }
        thread::sleep(MAP_INTERVAL);
    }
    Ok(())
}

fn endpoint_map(bpf_directory: &Path) -> Result<HashMap<MapData, SocketAddress, Endpoint>> {
    let path = bpf_directory.join("maps/ENDPOINTS");
    let data = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
    Ok(HashMap::try_from(Map::HashMap(data))?)
}

/// Why there can be no mesh here.
pub fn unavailable() -> Option<String> {
    if !is_root() {
        return Some("a mesh in a lab needs root".to_owned());
    }
    if let Err(error) = cgroup::mount_point() {
        return Some(format!("{error:#}"));
    }
    let bpf = Path::new("/sys/fs/bpf");
    if fs::exists(bpf).unwrap_or(false)
        && statfs(bpf).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
    {
        return None;
    }
    Some("there is no BPF file system: mount -t bpf bpf /sys/fs/bpf".to_owned())
}
