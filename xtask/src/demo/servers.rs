//! The servers, each beside a member of etcd; in the last act the one that leads is killed.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Process, share_seal_key};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{CLIENT, DEADLINE, announce, fetch, quote, title};

/// Hosts of servers, with what runs on them.
pub struct Servers<'a> {
    hosts: Vec<&'a Host>,
    running: BTreeMap<&'a str, Process>,
    _etcd: Vec<Process>,
}

impl<'a> Servers<'a> {
    /// Starts etcd and a server on each of their hosts.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        let hosts: Vec<_> = lab.hosts().iter().filter(|host| host.name().starts_with("murmesh")).collect();
        share_seal_key(&hosts)?;
        let etcd = hosts.iter().map(|host| host.start_etcd(&hosts)).collect::<Result<_>>()?;
        let mut running = BTreeMap::new();
        for host in &hosts {
            announce(host, "murmesh server --store etcd");
            running.insert(host.name(), host.start_cluster_server(&hosts)?);
        }
        Ok(Self { hosts, running, _etcd: etcd })
    }

    /// Kills the one that leads.
    pub fn failover(&mut self, client: &Host) -> Result<()> {
        title("Three servers, and the one that leads is killed");
        let leader = self.leader(self.hosts[0])?.context("a server leads")?;
        announce(leader, "kill -9 murmesh   # the server that leads");
        let mut server = self.running.remove(leader.name()).context("it runs")?;
        server.signal(Signal::SIGKILL)?;
        server.wait(DEADLINE)?;
        let fortune = fetch(client, &CLIENT).context("after the leading server was killed")?;
        println!("  nc received, as ever:");
        quote(&fortune);
        let witness =
            self.hosts.iter().find(|host| host.name() != leader.name()).context("there are three")?;
        let successor = self.wait_for_other(witness, leader)?;
        println!("  {} leads now. murmesh members, on {}:", successor.name(), witness.name());
        quote(&witness.murmesh(["members"])?);
        let fortune = fetch(client, &CLIENT).context("after another server leads")?;
        println!("  nc received:");
        quote(&fortune);
        Ok(())
    }

    /// Others take over when the lease of the one before has ended.
    fn wait_for_other(&self, witness: &Host, former: &Host) -> Result<&'a Host> {
        let begun = Instant::now();
        loop {
            if let Some(leader) = self.leader(witness)?.filter(|leader| leader.name() != former.name()) {
                return Ok(leader);
            }
            ensure!(begun.elapsed() < DEADLINE, "no other server leads");
        }
    }

    fn leader(&self, witness: &Host) -> Result<Option<&'a Host>> {
        let members: Value = serde_json::from_str(&witness.murmesh(["members", "-o", "json"])?)?;
        let mut members = members.as_array().into_iter().flatten();
        let leader = members.find(|member| member["role"] == "leader");
        Ok(self.hosts.iter().copied().find(|host| leader.is_some_and(|leader| leader["node"] == host.name())))
    }
}
