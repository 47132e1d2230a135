//! Everything at once, for as long as is asked for: at the end nobody holds more than at the beginning.

use std::env;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Steady, Topology, deadline};

use crate::support::figures::Figures;
use crate::support::{Daemons, kill, murmesh, skipped, text, wait_for_endpoint, wait_until};

/// How many minutes it takes; without it, two rounds.
const MINUTES: &str = "MURMESH_SOAK_MINUTES";
const FEW_ROUNDS: u32 = 2;

/// Where the service listens that says its name.
const PORT: u16 = 8181;
const NAME: &str = "a fortune of the soak";
/// The first of those that are opened and closed.
const FIRST_PORT: u16 = 8600;

/// Connections per second, from each client host.
const RATE: u32 = 50;

/// Tunnels are kept at rest for a minute, and looked at every five seconds.
const SETTLED: Duration = Duration::from_secs(90);

/// What the two ends of a connection do, the service first.
const CONNECTIONS: [[&[&str]; 2]; 5] = [
    [&["exchange=2000000"], &["exchange=2000000"]],
    [&["expect=question", "end", "send=answer"], &["send=question", "shutdown", "expect=answer", "end"]],
    [&["send=greeting", "shutdown", "expect=late", "end"], &["expect=greeting", "end", "send=late"]],
    [&["send=x", "expect-reset"], &["expect=x", "reset"]],
    [&["expect=x", "reset"], &["send=x", "expect-reset"]],
];

/// What the ends of a connection do that a rule cuts.
const CUT: [&str; 4] = ["send=x", "expect=x", "say=open", "expect-reset"];

/// A server, a service, and two clients, of which the agent of the second is replaced in each round.
struct World<'a> {
    server: &'a Host,
    service: &'a Host,
    client: &'a Host,
    restless: &'a Host,
    daemons: Daemons<'a>,
    rounds: u32,
    connections: u64,
}

impl World<'_> {
    fn figures(&self) -> Result<Figures> {
        let agent = |host| Ok::<_, anyhow::Error>((host, self.daemons.agent(host)?));
        Figures::of(&[(self.server, self.daemons.server()?), agent(self.service)?, agent(self.client)?])
    }

    /// Fortunes all the time, and meanwhile one of everything else.
    fn round(&mut self) -> Result<()> {
        let fortunes = SocketAddr::from((self.service.ipv4(), PORT));
        let steady = Steady::begin_at(self.client, fortunes, RATE)?;
        let harassed = Steady::begin_at(self.restless, fortunes, RATE)?;
        for (number, [service, client]) in (0..).zip(CONNECTIONS) {
            let [one, other] = self.connect(number, service, client)?;
            other.succeed(DEADLINE)?;
            one.succeed(DEADLINE)?;
        }
        self.cut()?;
        self.replace_agent()?;
        if self.rounds.is_multiple_of(10) {
            self.replace_root()?;
        }
        let outcome = steady.end()?;
        outcome.ensure_all_answered()?;
        let harassed = harassed.end()?;
        ensure!(harassed.named.keys().all(|name| name == NAME), "{harassed:?}");
        self.connections += outcome.answered() + harassed.answered();
        self.rounds += 1;
        Ok(())
    }

    /// Both ends of a connection to a service that opens for it.
    fn connect(&self, number: u16, service: &[&str], client: &[&str]) -> Result<[Process; 2]> {
        // Not the port of the round before: it may not be forgotten yet.
        let port = FIRST_PORT + (self.rounds % 10) as u16 * 10 + number;
        let listener = self.service.probe(["listen", &format!("[::]:{port}")].iter().chain(service))?;
        listener.wait_for_line("listening", DEADLINE)?;
        wait_for_endpoint(self.client, self.service, port)?;
        let destination = format!("{}:{port}", self.service.ipv4());
        Ok([listener, self.client.probe(["connect", &destination].iter().chain(client))?])
    }

    /// A rule comes, ends what it forbids, and goes.
    fn cut(&self) -> Result<()> {
        let ends = self.connect(9, &CUT, &CUT)?;
        for end in &ends {
            end.wait_for_line("open", DEADLINE)?;
        }
        let port = FIRST_PORT + (self.rounds % 10) as u16 * 10 + 9;
        let rule = self.server.murmesh(["deny", "fcc00", &format!("fcs00:{port}")])?;
        let number = rule.strip_prefix("rule ").and_then(|rest| rest.split_once(':')).context("a rule")?.0;
        for end in ends {
            end.succeed(DEADLINE)?;
        }
        self.server.murmesh(["policy", "delete", number])?;
        Ok(())
    }

    /// By a kill, a clean stop, or one that takes over.
    fn replace_agent(&mut self) -> Result<()> {
        match self.rounds % 3 {
            0 => self.daemons.kill_agent(self.restless)?,
            1 => self.daemons.stop_agent(self.restless)?,
            _ => {
                let mut command = self.restless.agent_command(&self.daemons.token(self.restless)?)?;
                let agent = Process::spawn(command.arg("--take-over"))?;
                agent.wait_for_line("has taken over", DEADLINE)?;
                return kill(self.daemons.replace_agent(self.restless, agent)?);
            }
        }
        self.daemons.start_agent(self.restless)
    }

    fn replace_root(&self) -> Result<()> {
        for step in ["prepare", "activate", "retire"] {
            wait_until(&format!("{step} is done"), || {
                let answer = murmesh(self.server, &["ca", "rotate", step])?;
                let refusal = text(&answer.stderr);
                ensure!(answer.status.success() || refusal.contains("not ready"), "{step}: {refusal}");
                Ok(answer.status.success())
            })?;
        }
        Ok(())
    }
}

#[test]
fn nothing_grows_under_everything_at_once() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let minutes =
        env::var(MINUTES).ok().map(|minutes| minutes.parse::<u64>()).transpose().context(MINUTES)?;
    let lab = Lab::new(Topology { servers: 1, services: 1, clients: 2 })?;
    let mut daemons = Daemons::server_with(&lab, &["--certificate-lifetime", "20s"])?;
    for host in ["fcs00", "fcc00", "fcc01"] {
        daemons.start_agent(lab.host(host)?)?;
    }
    let mut world = World {
        server: lab.host("murmesh00")?,
        service: lab.host("fcs00")?,
        client: lab.host("fcc00")?,
        restless: lab.host("fcc01")?,
        daemons,
        rounds: 0,
        connections: 0,
    };
    let name = world.service.probe(["name", NAME, &PORT.to_string()])?;
    name.wait_for_line("listening", DEADLINE)?;
    for client in [world.client, world.restless] {
        wait_for_endpoint(client, world.service, PORT)?;
    }
    // What is made once and kept is there after the first tenth.
    let (warm, long) =
        (Duration::from_secs(minutes.unwrap_or(0) * 6), Duration::from_secs(minutes.unwrap_or(0) * 60));
    let begun = Instant::now();
    while world.rounds == 0 || begun.elapsed() < warm {
        world.round()?;
    }
    let before = world.figures()?;
    while world.rounds <= FEW_ROUNDS || begun.elapsed() < long {
        world.round()?;
    }
    let settled = deadline(SETTLED);
    let mut after = world.figures()?;
    while !after.growth(&before).is_empty() && Instant::now() < settled {
        after = world.figures()?;
    }
    let (rounds, connections) = (world.rounds, world.connections);
    println!("{rounds} rounds, {connections} fortunes, {:?}\n{}", begun.elapsed(), after.beside(&before));
    ensure!(after.growth(&before).is_empty(), "{:#?}", after.growth(&before));
    Ok(())
}
