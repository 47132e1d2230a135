//! A named service with an instance on each service host, which says the name of its host.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use murmesh_lab::{DEADLINE, Mesh, Process, wait_for_availability};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{ask, json, wait_until};

/// The service's port.
pub const PORT: u16 = 8181;

/// The instances that run, by host.
pub struct Instances<'a> {
    mesh: &'a Mesh,
    running: BTreeMap<String, Process>,
}

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
            // The client's host may not have heard of the service yet.
            let Some(instance) = instance else { return Ok(false) };
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
