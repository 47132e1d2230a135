//! A path that is measured, with everything that runs for it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use murmesh_lab::{DEADLINE, Host, Lab, Process};

/// First of the four ports of the services on every service host.
pub const SERVICES: u16 = 7000;

/// Services, and ports of each proxy.
pub const PORTS: u16 = 4;

/// A proxy's ports on its client's own host.
pub const fn on_loopback(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// Between two tries whether a path answers.
const RETRY: Duration = Duration::from_millis(50);

/// From a client's host to the services of a service host.
#[derive(Debug)]
pub struct Lane {
    /// As it is called in the results.
    pub name: String,
    /// Where the load comes from.
    pub client: String,
    /// Where the services are.
    pub service: String,
    /// Address that leads to the first service, where further ports lead to the others; none where `bench run` dials
    /// the services as it would without a proxy.
    pub via: Option<SocketAddrV4>,
    /// Proxies of the path, which are ended with it.
    pub proxies: Vec<Process>,
}

/// Everything that runs in the lab.
#[derive(Debug)]
pub struct Running {
    /// The paths.
    pub lanes: Vec<Lane>,
    /// Services, and the server of the mesh: held, because a process ends when it is dropped.
    pub others: Vec<Process>,
}

impl Lane {
    /// The arguments of `murmesh bench run` for this path.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![self.service.clone(), "--paths".to_owned(), self.name.clone()];
        if let Some(via) = self.via {
            arguments.extend(["--via".to_owned(), format!("{}={via}", self.name)]);
        }
        if !self.proxies.is_empty() {
            let processes: Vec<_> = self.proxies.iter().map(|process| process.id().to_string()).collect();
            arguments.extend(["--cpu-of".to_owned(), format!("{}={}", self.name, processes.join(","))]);
        }
        arguments
    }

    /// Waits until a whole answer comes. Neither a catalog nor another's proxy tells when it has one.
    fn wait_until_answered(&self, lab: &Lab) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let quick = ["--loads", "fortune", "--rounds", "1", "--duration", "1ms"].map(str::to_owned);
            let output = self.run(lab.host(&self.client)?, &quick, DEADLINE)?;
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("path {}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
            }
            thread::sleep(RETRY);
        }
    }

    /// Runs `murmesh bench run` with these further arguments.
    pub fn run(&self, client: &Host, arguments: &[String], within: Duration) -> Result<Output> {
        let command = ["bench", "run"].map(str::to_owned).into_iter();
        client.run("murmesh", command.chain(self.arguments()).chain(arguments.iter().cloned()), b"", within)
    }

    /// Whether this is Murmesh or plain TCP, and no peer: then it must work.
    pub fn is_ours(&self) -> bool {
        ["direct", "sidecar", "mesh"].contains(&self.name.as_str())
    }
}

impl Running {
    /// Adds paths.
    pub fn extend(&mut self, lanes: Vec<Lane>) {
        self.lanes.extend(lanes);
    }

    /// Waits until every path carries whole answers: catalogs have arrived, and proxies have started.
    pub fn wait_until_answered(&self, lab: &Lab) -> Result<()> {
        self.lanes.iter().try_for_each(|lane| lane.wait_until_answered(lab))
    }
}
