//! What the scenarios about daemons share: starting them one by one, and looking at what they did.

pub mod browser;
pub mod cluster;
pub mod figures;
pub mod instances;
pub mod kernel;
pub mod key_updates;
pub mod peer;
pub mod programs;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
pub use murmesh_lab::DEADLINE;
use murmesh_lab::{Host, Lab, Process, contains, deadline, services};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Whether this scenario cannot run here; says why.
pub fn skipped() -> bool {
    let reason = murmesh_lab::unavailable();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

/// The daemons of a lab. Declared after the lab, so that they are killed before it is removed.
pub struct Daemons<'a> {
    lab: &'a Lab,
    server: Option<Process>,
    server_arguments: Vec<String>,
    agents: BTreeMap<String, Process>,
    tokens: BTreeMap<String, String>,
}

impl<'a> Daemons<'a> {
    /// A server on `murmesh00`, and no agent.
    pub fn server_only(lab: &'a Lab) -> Result<Self> {
        Self::server_with(lab, &[])
    }

    /// The same; the server is started with more `arguments`, each time.
    pub fn server_with(lab: &'a Lab, arguments: &[&str]) -> Result<Self> {
        let server_arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (agents, tokens) = (BTreeMap::new(), BTreeMap::new());
        let mut daemons = Self { lab, server: None, server_arguments, agents, tokens };
        daemons.start_server()?;
        Ok(daemons)
    }

    /// A server on `murmesh00` by the command that `change` makes of the usual one, and no agent.
    pub fn server_by(lab: &'a Lab, change: impl Fn(&Command) -> Result<Command>) -> Result<Self> {
        let server = Process::spawn(&mut change(&lab.host("murmesh00")?.server_command()?)?)?;
        server.wait_for_line(": ready", DEADLINE)?;
        let (server_arguments, agents, tokens) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { lab, server: Some(server), server_arguments, agents, tokens })
    }

    /// A server, and an agent on every other host.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        let mut daemons = Self::server_only(lab)?;
        for host in lab.hosts().iter().filter(|host| host.name() != "murmesh00") {
            daemons.start_agent(host)?;
        }
        Ok(daemons)
    }

    /// As [`Self::start`], with a greeting served on `port` of `fcs00`, which the mesh has carried to `fcc00` once.
    /// The greeting is served until the process is dropped.
    pub fn carrying(lab: &'a Lab, port: u16) -> Result<(Self, Process)> {
        let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
        let daemons = Self::start(lab)?;
        let listener = greet(service, port)?;
        wait_for_endpoint(client, service, port)?;
        daemons.ask_through_mesh(client, service, port)?;
        Ok((daemons, listener))
    }

    /// Starts the agent of `host`, which joins with a token of its own the first time.
    pub fn start_agent(&mut self, host: &Host) -> Result<()> {
        let agent = host.start_agent(&self.token(host)?)?;
        self.agents.insert(host.name().to_owned(), agent);
        Ok(())
    }

    /// Starts the agent of `host` by a command of its own.
    pub fn start_agent_by(&mut self, host: &Host, command: &mut Command) -> Result<()> {
        let agent = Process::spawn(command)?;
        agent.wait_for_line(": ready", DEADLINE)?;
        self.agents.insert(host.name().to_owned(), agent);
        Ok(())
    }

    /// From now on `agent` is that of `host`, which has none that runs.
    pub fn adopt_agent(&mut self, host: &Host, agent: Process) {
        self.agents.insert(host.name().to_owned(), agent);
    }

    /// From now on `agent` is that of `host`; returns the one before.
    pub fn replace_agent(&mut self, host: &Host, agent: Process) -> Result<Process> {
        self.agents.insert(host.name().to_owned(), agent).context("an agent ran before")
    }

    /// The token of `host`, which is made when first asked for.
    pub fn token(&mut self, host: &Host) -> Result<String> {
        if let Some(token) = self.tokens.get(host.name()) {
            return Ok(token.clone());
        }
        let token = self.lab.host("murmesh00")?.create_token()?;
        self.tokens.insert(host.name().to_owned(), token.clone());
        Ok(token)
    }

    /// Has `host` join with a new token when its agent starts next.
    pub fn renew_token(&mut self, host: &Host) -> Result<()> {
        self.tokens.remove(host.name());
        self.token(host).map(drop)
    }

    /// The running agent of `host`.
    pub fn agent(&self, host: &Host) -> Result<&Process> {
        self.agents.get(host.name()).with_context(|| format!("no agent runs on {}", host.name()))
    }

    /// Stops the agent of `host` as an operator does.
    pub fn stop_agent(&mut self, host: &Host) -> Result<()> {
        let mut agent = self.agents.remove(host.name()).context("the agent runs")?;
        agent.signal(Signal::SIGTERM)?;
        let status = agent.wait(DEADLINE)?;
        ensure!(status.success(), "a clean stop ended with {status}: {}", agent.said());
        Ok(())
    }

    /// `kill -9` for the agent of `host`.
    pub fn kill_agent(&mut self, host: &Host) -> Result<()> {
        kill(self.agents.remove(host.name()).context("the agent runs")?)
    }

    /// `kill -9` for the agent of `host`, and its hooks go too: what a restart of the machine leaves of both.
    pub fn power_off(&mut self, host: &Host) -> Result<()> {
        let ours = kernel::objects(host)?;
        self.kill_agent(host)?;
        std::fs::remove_dir_all(host.bpf_directory()).context("removing the pins")?;
        kernel::wait_until_freed(&ours)
    }

    /// `kill -9` for the server.
    pub fn kill_server(&mut self) -> Result<()> {
        kill(self.server.take().context("the server runs")?)
    }

    /// Starts the server again.
    pub fn start_server(&mut self) -> Result<()> {
        let mut command = self.lab.host("murmesh00")?.server_command()?;
        let server = Process::spawn(command.args(&self.server_arguments))?;
        server.wait_for_line(": ready", DEADLINE)?;
        self.server = Some(server);
        Ok(())
    }

    /// The running server.
    pub fn server(&self) -> Result<&Process> {
        self.server.as_ref().context("no server runs")
    }

    /// Asks the service at `port` of `service`, and makes sure that the client's agent carried the connection.
    pub fn ask_through_mesh(&self, client: &Host, service: &Host, port: u16) -> Result<String> {
        let destination = format!("{}:{port}", service.ipv4());
        let agent = self.agent(client)?;
        let before = opened(&agent.stdout(), &destination);
        let answer = ask(client, &service.ipv4().to_string(), port)?;
        agent
            .wait_for_stdout(DEADLINE, |log| opened(log, &destination) > before)
            .with_context(|| format!("the connection to {destination} did not go through the mesh"))?;
        Ok(answer)
    }
}

pub fn kill(mut process: Process) -> Result<()> {
    process.signal(Signal::SIGKILL)?;
    process.wait(DEADLINE)?;
    Ok(())
}

/// How many outbound connections to `destination` an agent's log has the beginning of.
pub fn opened(log: &[u8], destination: &str) -> usize {
    let wanted =
        [b"direction=\"outbound\"".as_slice(), b" open ", format!("destination={destination} ").as_bytes()]
            .map(<[u8]>::to_vec);
    log.split(|byte| *byte == b'\n').filter(|line| wanted.iter().all(|part| contains(line, part))).count()
}

/// A service on `port` that greets everybody with the name of its host.
pub fn greet(host: &Host, port: u16) -> Result<Process> {
    greet_with(host, port, "reuseaddr")
}

/// The same, with more options of socat's listening address.
pub fn greet_with(host: &Host, port: u16, options: &str) -> Result<Process> {
    let listen = format!("tcp4-listen:{port},fork,{options}");
    let service = host.spawn("socat", [listen.as_str(), &format!("exec:echo hello from {}", host.name())])?;
    host.wait_listening(port, DEADLINE)?;
    Ok(service)
}

/// What [`greet`] says.
pub fn greeting(host: &Host) -> String {
    format!("hello from {}\n", host.name())
}

/// What the service says to a client that says nothing.
pub fn ask(client: &Host, address: &str, port: u16) -> Result<String> {
    let output = client.run("nc", [address, &port.to_string()], b"", DEADLINE)?;
    ensure!(output.status.success(), "nc {address} {port}: {}: {}", output.status, text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Makes the service at `port` of `host` strict, as `name`, and waits until it refuses `outsider`, the server's host, which
/// has no agent.
pub fn go_strict(outsider: &Host, host: &Host, name: &str, port: u16) -> Result<()> {
    let (at, address) = (port.to_string(), host.ipv4().to_string());
    let strict =
        ["service", "set", name, "--host", host.name(), "--port", &at, "--mode", "strict", "--force"];
    outsider.murmesh(strict)?;
    wait_until("plaintext is refused", || Ok(ask(outsider, &address, port).is_err()))
}

/// Waits until the daemon of `client` carries connections to `port` of `service`.
pub fn wait_for_endpoint(client: &Host, service: &Host, port: u16) -> Result<()> {
    let endpoint = SocketAddr::from((service.ipv4(), port));
    wait_until(&format!("{endpoint} is in the catalog"), || Ok(services(client)?.contains(&endpoint)))?;
    wait_for_kernel(client, endpoint, true)
}

/// Waits until it does not any more.
pub fn wait_for_no_endpoint(client: &Host, service: &Host, port: u16) -> Result<()> {
    let endpoint = SocketAddr::from((service.ipv4(), port));
    wait_until(&format!("{endpoint} has left the catalog"), || Ok(!services(client)?.contains(&endpoint)))?;
    wait_for_kernel(client, endpoint, false)
}

/// A sidecar has nothing in the kernel.
fn wait_for_kernel(client: &Host, endpoint: SocketAddr, wanted: bool) -> Result<()> {
    if client.bpf_directory().exists() {
        murmesh_lab::wait_for_endpoint(client, endpoint, wanted)?;
    }
    Ok(())
}

/// Waits until `condition` holds, asking again and again: each time takes as long as a program's start.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = deadline(DEADLINE);
    while !condition()? {
        if Instant::now() >= deadline {
            bail!("after {DEADLINE:?} it is still not so that {what}");
        }
    }
    Ok(())
}

/// Every `IP:PORT` that the daemon on `host` knows a way to through the mesh.
pub fn endpoints(host: &Host) -> Result<Vec<String>> {
    Ok(services(host)?.iter().map(ToString::to_string).collect())
}

/// The strings of a JSON list.
pub fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// The hosts that `murmesh members -o json` lists; the servers come after them.
pub fn hosts(members: &Value) -> Vec<&Value> {
    members.as_array().into_iter().flatten().filter(|member| member["role"] == "host").collect()
}

/// What a reading command prints with `-o json`, whatever its exit status.
pub fn json(host: &Host, command: &str) -> Result<Value> {
    let output = murmesh(host, &[command, "-o", "json"])?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("murmesh {command} on {}: {}", host.name(), text(&output.stderr)))
}

/// Runs `murmesh` and returns how it ended and what it said.
pub fn murmesh(host: &Host, arguments: &[&str]) -> Result<Output> {
    host.run("murmesh", arguments, b"", DEADLINE)
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
