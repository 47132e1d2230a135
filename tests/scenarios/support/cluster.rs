//! Three servers, each beside a member of etcd, and what must go on whatever becomes of one of them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, share_seal_key};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{greet, greeting, json, kill, murmesh, text, wait_for_endpoint, wait_until};

/// Where the service of the scenarios greets.
pub const PORT: u16 = 8181;
/// Where the connection that stays open leads.
const OPEN_PORT: u16 = 8570;
/// What the ends of that connection do.
const GOES_ON: [&str; 5] = ["send=x", "expect=x", "say=open", "wait", "exchange=100000"];

/// The daemons of a lab with three servers. Declared after the lab, so that they are killed before it is removed.
pub struct Cluster<'a> {
    pub servers: Vec<&'a Host>,
    pub service: &'a Host,
    pub client: &'a Host,
    pub etcd: BTreeMap<String, Process>,
    pub running: BTreeMap<String, Process>,
    _agents: Vec<Process>,
    written: Vec<String>,
}

impl<'a> Cluster<'a> {
    /// Three servers, and agents on `fcs00` and `fcc00`.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        Self::start_with(lab, |_, servers| servers.to_vec())
    }

    /// The same; each server uses the member of etcd beside it, and no other.
    pub fn start_apart(lab: &'a Lab) -> Result<Self> {
        Self::start_with(lab, |host, _| vec![host])
    }

    fn start_with(lab: &'a Lab, members: impl Fn(&'a Host, &[&'a Host]) -> Vec<&'a Host>) -> Result<Self> {
        let servers: Vec<&Host> =
            lab.hosts().iter().filter(|host| host.name().starts_with("murmesh")).collect();
        share_seal_key(&servers)?;
        let (mut etcd, mut running) = (BTreeMap::new(), BTreeMap::new());
        for host in &servers {
            etcd.insert(host.name().to_owned(), host.start_etcd(&servers)?);
        }
        for host in &servers {
            running.insert(host.name().to_owned(), host.start_cluster_server(&members(host, &servers))?);
        }
        let (service, client) = (lab.host("fcs00")?, lab.host("fcc00")?);
        let agents = [service, client].map(|host| host.start_agent(&servers[0].create_token()?));
        let [one, other] = agents;
        let _agents = vec![one?, other?];
        let cluster = Self { servers, service, client, etcd, running, _agents, written: Vec::new() };
        cluster.wait_until_whole()?;
        Ok(cluster)
    }

    /// Waits until every server sees all servers and both hosts, and one leader.
    pub fn wait_until_whole(&self) -> Result<()> {
        for host in &self.servers {
            wait_until(&format!("{} sees everybody", host.name()), || {
                let members = json(host, "members")?;
                let members = members.as_array().context("a list")?;
                let leaders = members.iter().filter(|member| member["role"] == "leader").count();
                let connected = members.iter().all(|member| member["connected"] == true);
                Ok(leaders == 1 && connected && members.len() == self.servers.len() + 2)
            })?;
        }
        Ok(())
    }

    /// The server that leads, as `host` sees it.
    pub fn leader(&self, host: &Host) -> Result<Option<&'a Host>> {
        let members = json(host, "members")?;
        let mut members = members.as_array().into_iter().flatten();
        let name =
            members.find(|member| member["role"] == "leader").and_then(|member| member["node"].as_str());
        Ok(self.servers.iter().copied().find(|server| Some(server.name()) == name))
    }

    /// The server that the agent of `host` is connected to.
    pub fn server_of(&self, host: &Host) -> Result<Option<&'a Host>> {
        let status = json(host, "status")?;
        let address = status["connected_server"].as_str().unwrap_or_default();
        let is_there = |server: &&Host| address.starts_with(&format!("{}:", server.ipv4()));
        Ok(self.servers.iter().copied().find(is_there))
    }

    /// Every server but `host`.
    pub fn others(&self, host: &Host) -> Vec<&'a Host> {
        self.servers.iter().copied().filter(|server| server.name() != host.name()).collect()
    }

    /// Any server but `host`.
    pub fn another(&self, host: &Host) -> Result<&'a Host> {
        self.others(host).first().copied().context("there are three")
    }

    /// Waits until a server leads that is not `former`.
    pub fn wait_for_leader_after(&self, former: &Host) -> Result<()> {
        let witness = self.another(former)?;
        wait_until("another one leads", || {
            Ok(self.leader(witness)?.is_some_and(|leader| leader.name() != former.name()))
        })
    }

    /// The host of the member of etcd that leads.
    pub fn etcd_leader(&self) -> Result<&'a Host> {
        for host in &self.servers {
            let status = etcd_status(host)?;
            if status["leader"] == status["header"]["member_id"] {
                return Ok(host);
            }
        }
        bail!("no member of etcd leads")
    }

    /// Makes the member of etcd on `host` lead.
    pub fn lead_etcd_from(&self, host: &Host) -> Result<()> {
        let id = etcd_status(host)?["header"]["member_id"].as_u64().context("a member has an id")?;
        if self.etcd_leader()?.name() != host.name() {
            host.etcdctl(&self.servers, "move-leader", &[&format!("{id:x}")])?;
        }
        Ok(())
    }

    /// `kill -9` for the server on `host`.
    pub fn kill_server(&mut self, host: &Host) -> Result<()> {
        kill(self.running.remove(host.name()).context("the server runs")?)
    }

    /// Stops the server on `host` as an operator does.
    pub fn stop_server(&mut self, host: &Host) -> Result<()> {
        let status = self.running.remove(host.name()).context("the server runs")?.stop(DEADLINE)?;
        ensure!(status.success(), "a clean stop ended with {status}");
        Ok(())
    }

    /// `kill -9` for the member of etcd on `host`.
    pub fn kill_etcd(&mut self, host: &Host) -> Result<()> {
        kill(self.etcd.remove(host.name()).context("etcd runs")?)
    }

    /// Starts what does not run on `host`.
    pub fn restart(&mut self, host: &Host) -> Result<()> {
        if !self.etcd.contains_key(host.name()) {
            self.etcd.insert(host.name().to_owned(), host.start_etcd(&self.servers)?);
        }
        if !self.running.contains_key(host.name()) {
            self.running.insert(host.name().to_owned(), host.start_cluster_server(&self.servers)?);
        }
        Ok(())
    }

    /// Starts everything that does not run.
    pub fn restart_all(&mut self) -> Result<()> {
        for host in self.servers.clone() {
            if !self.etcd.contains_key(host.name()) {
                self.etcd.insert(host.name().to_owned(), host.start_etcd(&self.servers)?);
            }
        }
        self.servers.clone().into_iter().try_for_each(|host| self.restart(host))
    }

    /// Changes the policy through one of `hosts` after the other until one has acknowledged it; says how long that took
    /// since `fault`.
    pub fn write(&mut self, hosts: &[&Host], fault: Instant) -> Result<Duration> {
        let source = format!("host/fcc00/write-{}", self.written.len());
        let deadline = Instant::now() + DEADLINE;
        loop {
            for host in hosts {
                let answer = murmesh(host, &["allow", &source, "host/fcs00"])?;
                if answer.status.success() {
                    self.written.push(source);
                    return Ok(fault.elapsed());
                }
                ensure!(Instant::now() < deadline, "nothing can be written: {}", text(&answer.stderr));
            }
        }
    }

    /// Makes sure that every acknowledged write is known to every server that runs.
    pub fn ensure_nothing_lost(&self) -> Result<()> {
        let mut running = self.servers.iter().filter(|host| self.running.contains_key(host.name()));
        running.try_for_each(|host| self.wait_for_written(host))
    }

    /// Waits until the daemon of `host` knows every acknowledged write.
    pub fn wait_for_written(&self, host: &Host) -> Result<()> {
        wait_until(&format!("{} has everything that was written", host.name()), || {
            let rules = text(&murmesh(host, &["policy", "list", "-o", "json"])?.stdout);
            Ok(self.written.iter().all(|source| rules.contains(&format!("\"{source}\""))))
        })
    }
}

fn etcd_status(host: &Host) -> Result<Value> {
    let status = host.etcdctl(&[host], "endpoint", &["status", "-w", "json"])?;
    let status: Value = serde_json::from_str(&status)?;
    Ok(status[0]["Status"].clone())
}

/// A connection that stays open, and a client that opens one after the other, while something happens.
pub struct Witness {
    ends: [Process; 2],
    client: Process,
    _listener: Process,
}

impl Witness {
    /// Begins to watch `cluster`.
    pub fn start(cluster: &Cluster<'_>) -> Result<Self> {
        let (service, client) = (cluster.service, cluster.client);
        let listener = greet(service, PORT)?;
        let end = service.probe(["listen", &format!("[::]:{OPEN_PORT}")].iter().chain(&GOES_ON))?;
        end.wait_for_line("listening", DEADLINE)?;
        for port in [PORT, OPEN_PORT] {
            wait_for_endpoint(client, service, port)?;
        }
        let destination = format!("{}:{OPEN_PORT}", service.ipv4());
        let other = client.probe(["connect", &destination].iter().chain(&GOES_ON))?;
        for end in [&end, &other] {
            end.wait_for_line("open", DEADLINE)?;
        }
        let asking = format!("while :; do nc -w 20 {} {PORT} || echo failed; done", service.ipv4());
        let client = client.spawn("sh", ["-c", &asking])?;
        let witness = Self { ends: [end, other], client, _listener: listener };
        witness.wait_for_more(service)?;
        Ok(witness)
    }

    /// Waits until the client has been greeted some times more.
    pub fn wait_for_more(&self, service: &Host) -> Result<()> {
        let greeted = |said: &[u8]| text(said).matches(&greeting(service)).count();
        let wanted = greeted(&self.client.stdout()) + 10;
        self.client.wait_for_stdout(DEADLINE, |said| greeted(said) >= wanted)
    }

    /// Makes sure that no connection failed, and that the open one still works in both directions.
    pub fn ensure_unharmed(mut self, service: &Host) -> Result<usize> {
        self.wait_for_more(service)?;
        self.client.signal(Signal::SIGKILL)?;
        let said = text(&self.client.stdout());
        let failed = said.matches("failed").count();
        ensure!(failed == 0, "{failed} connections failed: {}", self.client.said());
        for end in &mut self.ends {
            end.take_stdin().context("stdin is a pipe")?.write_all(b"now\n")?;
        }
        for end in self.ends {
            end.succeed(DEADLINE)?;
        }
        Ok(said.matches(&greeting(service)).count())
    }
}
