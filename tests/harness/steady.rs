//! Connections at a steady rate, for as long as something happens to their service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::host::Host;
use crate::mesh::DEADLINE;
use crate::process::Process;

/// For those connections that are open at the end.
const LONG: Duration = Duration::from_secs(60);

/// Connections at a steady rate, to a service that says a name.
pub struct Steady(Process);

/// What became of them.
#[derive(Debug, Default, Deserialize)]
pub struct SteadyOutcome {
    /// Connections that were told a name, by the name.
    pub named: BTreeMap<String, u64>,
    /// Those that were not, by what happened instead.
    pub failed: BTreeMap<String, u64>,
    /// The longest that one took.
    pub slowest_ms: u64,
    /// What 99 in 100 took at most.
    pub p99_us: u64,
}

impl Steady {
    /// Begins to connect from `client` to `destination` 200 times a second.
    pub fn begin(client: &Host, destination: SocketAddr) -> Result<Self> {
        Self::begin_at(client, destination, 200)
    }

    /// Begins to connect from `client` to `destination` `rate` times a second.
    pub fn begin_at(client: &Host, destination: SocketAddr, rate: u32) -> Result<Self> {
        let load = client.probe(["steady", &destination.to_string(), "--rate", &rate.to_string()])?;
        load.wait_for_line("running", DEADLINE)?;
        Ok(Self(load))
    }

    /// Stops, and tells what became of all connections.
    pub fn end(mut self) -> Result<SteadyOutcome> {
        drop(self.0.take_stdin());
        let said = self.0.succeed(LONG)?;
        let outcome = said.lines().last().context("the probe said nothing")?;
        serde_json::from_str(outcome).with_context(|| said.clone())
    }
}

impl SteadyOutcome {
    /// Connections that were told a name.
    pub fn answered(&self) -> u64 {
        self.named.values().sum()
    }

    /// Makes sure that there were connections, and that every one was told a name. How many there were is the machine's
    /// affair: what happens to their service takes less time on a faster one.
    pub fn ensure_all_answered(&self) -> Result<()> {
        ensure!(self.failed.is_empty() && self.answered() > 0, "{self:?}");
        Ok(())
    }
}
