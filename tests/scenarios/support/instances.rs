//! A named service with an instance on each service host, which says the name of its host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Mesh, Process, wait_for_availability};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

use super::{ask, json, wait_until};

/// The service's port.
pub const PORT: u16 = 8181;

/// The instances that run, by host.
pub struct Instances<'a> {
    mesh: &'a Mesh,
    running: BTreeMap<String, Process>,
}

/// What `murmesh-probe steady` prints.
#[derive(Debug, Deserialize)]
pub struct Outcome {
    /// Connections that were told a name.
    pub named: BTreeMap<String, u64>,
    /// Those that were not.
    pub failed: BTreeMap<String, u64>,
}

/// Connections at a steady rate.
pub struct Load(Process);

impl<'a> Instances<'a> {
    /// Names `fortune` on `hosts`, with more arguments of `service set`, and starts all instances.
    pub fn start(mesh: &'a Mesh, hosts: &[&str], arguments: &[&str]) -> Result<Self> {
        let (all, port) = (hosts.join(","), PORT.to_string());
        let set = ["service", "set", "fortune", "--host", &all, "--port", &port];
        mesh.host("murmesh00")?.murmesh(set.iter().chain(arguments))?;
        let mut instances = Self { mesh, running: BTreeMap::new() };
        for host in hosts {
            instances.run(host)?;
        }
        instances.wait_healthy(hosts)?;
        Ok(instances)
    }

    /// Starts the instance on `host`.
    pub fn run(&mut self, host: &str) -> Result<()> {
        let process = self.mesh.host(host)?.probe(["name", host, &PORT.to_string()])?;
        process.wait_for_line("listening", DEADLINE)?;
        self.running.insert(host.to_owned(), process);
        Ok(())
    }

    /// Ends the instance on `host` by SIGKILL.
    pub fn kill(&mut self, host: &str) -> Result<()> {
        let mut process = self.running.remove(host).context("the instance runs")?;
        process.signal(Signal::SIGKILL)?;
        process.wait(DEADLINE)?;
        Ok(())
    }

    /// Where the instance on `host` is dialled.
    pub fn address(&self, host: &str) -> Result<SocketAddr> {
        Ok((self.mesh.host(host)?.ipv4(), PORT).into())
    }

    /// Who answers a client that dials the instance on `host`.
    pub fn who(&self, host: &str) -> Result<String> {
        ask(self.mesh.client()?, &self.mesh.host(host)?.ipv4().to_string(), PORT)
    }

    /// Whether the client's kernel sends connections to the instance on `host` to anybody.
    pub fn wait_available(&self, host: &str, wanted: bool) -> Result<()> {
        wait_for_availability(self.mesh.client()?, self.address(host)?, wanted)
    }

    /// Waits until the client's host has the instance on `host` in this state, and returns why.
    pub fn wait_state(&self, host: &str, state: &str) -> Result<String> {
        let mut reason = String::new();
        wait_until(&format!("the instance on {host} is {state}"), || {
            let listed = json(self.mesh.client()?, "services")?;
            let instance = listed.as_array().into_iter().flatten().find(|instance| is_of(instance, host));
            let instance = instance.context("every instance is listed")?;
            reason = instance["reason"].as_str().unwrap_or_default().to_owned();
            Ok(instance["state"] == state)
        })?;
        Ok(reason)
    }

    /// Waits until the client's host has all of these for healthy, and its kernel them for available.
    pub fn wait_healthy(&self, hosts: &[&str]) -> Result<()> {
        for host in hosts {
            self.wait_state(host, "healthy")?;
            self.wait_available(host, true)?;
        }
        Ok(())
    }
}

fn is_of(instance: &Value, host: &str) -> bool {
    instance["host"] == host && instance["service"] == "fortune"
}

impl Load {
    /// Begins, on the first client, to connect to `destination` 200 times a second.
    pub fn begin(mesh: &Mesh, destination: SocketAddr) -> Result<Self> {
        let load = mesh.client()?.probe(["steady", &destination.to_string()])?;
        load.wait_for_line("running", DEADLINE)?;
        Ok(Self(load))
    }

    /// Stops, and tells what became of all connections.
    pub fn end(mut self) -> Result<Outcome> {
        drop(self.0.take_stdin());
        let said = self.0.succeed(Duration::from_secs(60))?;
        let outcome = said.lines().last().context("the probe said nothing")?;
        serde_json::from_str(outcome).with_context(|| said.clone())
    }
}

impl Outcome {
    /// Makes sure that every connection was told a name, and that there were `least` of them.
    pub fn ensure_all_named(&self, least: u64) -> Result<()> {
        let named: u64 = self.named.values().sum();
        ensure!(self.failed.is_empty() && named >= least, "{self:?}");
        Ok(())
    }
}
