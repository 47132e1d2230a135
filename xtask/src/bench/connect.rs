//! `cargo xtask bench connect`: what the connect hook adds to `connect`.
//!
//! Connects that fail at once, on one socket again and again, so that little but the call itself is timed. The agent
//! is killed first: its hooks stay, it takes no time of the machine, and a redirected connect is refused at once too.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology, add_endpoints, add_rules, on_interrupt, remove};
use nix::libc::{ECONNREFUSED, ENETUNREACH, EPERM};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use super::statistics::median;
use crate::shell::progress;
use crate::{build, setup};

/// In the endpoint map of the agent's host. The first also is a destination that is redirected.
const ENDPOINTS: [u32; 3] = [1, 1_000, 100_000];

/// Rules about the process that connects, as many in the mesh as outside of it, with all of the endpoints.
const RULES: [u32; 3] = [1, 1_000, 10_000];

/// Connects that are timed together.
const BATCH: u32 = 1_000;

/// Connects of one run in a host, which takes turns with that in the other.
const TURN: u32 = 20_000;

/// Turns of each case.
const TURNS: u32 = 10;

/// For one turn.
const LONG: Duration = Duration::from_secs(60);

/// Options of `bench connect-samples`.
#[derive(Args)]
pub struct Samples {
    /// Where to connect to; nobody may listen there.
    destination: SocketAddrV4,
    /// How many times.
    count: u32,
    /// The error that each must end with (errno): any other says that it took another way.
    error: i32,
}

/// What is dialled, with hooks and without.
struct Case {
    title: &'static str,
    hooked: SocketAddrV4,
    plain: SocketAddrV4,
    error: i32,
}

/// Prints nanoseconds per connect of each batch.
pub fn sample(samples: &Samples) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("making a socket")?;
    let address = SocketAddr::V4(samples.destination).into();
    for _ in 0..samples.count / BATCH {
        let begin = Instant::now();
        for _ in 0..BATCH {
            let error = socket.connect(&address).err().and_then(|error| error.raw_os_error());
            ensure!(error == Some(samples.error), "{}: error {error:?}", samples.destination);
        }
        println!("{}", begin.elapsed().as_nanos() / u128::from(BATCH));
    }
    Ok(())
}

/// Measures and prints.
pub fn run() -> Result<()> {
    build::run()?;
    setup::for_running()?;
    let lab = Lab::new(Topology { servers: 1, services: 0, clients: 2 }).context("making the hosts")?;
    let name = lab.name().to_owned();
    on_interrupt(move || {
        let _ = remove(&name);
    })?;
    let (hooked, plain) = (lab.host("fcc00")?, lab.host("fcc01")?);
    leave_hooks(lab.host("murmesh00")?, hooked)?;
    println!(
        "{:<42} {:>9} {:>6} {:>10} {:>10} {:>9} {:>6}",
        "CONNECT TO", "ENDPOINTS", "RULES", "PLAIN", "HOOKED", "ADDED", "RATIO"
    );
    let mut present = 0;
    for endpoints in ENDPOINTS {
        progress(&format!("{endpoints} endpoints"));
        add_endpoints(hooked, (present..endpoints).map(endpoint))?;
        present = endpoints;
        cases().iter().try_for_each(|case| case.print(plain, hooked, endpoints, 0))?;
    }
    for rules in RULES {
        progress(&format!("{rules} rules"));
        add_rules(hooked, rules, (0..present).map(endpoint), DENIED)?;
        cases_with_rules().iter().try_for_each(|case| case.print(plain, hooked, present, rules))?;
    }
    Ok(())
}

/// Nobody listens there.
const REFUSED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);

/// In a block that is for documentation. Neither to it nor to the endpoints have the hosts a route, so that a redirected
/// connect, which is refused, is told from one that is not.
const UNREACHABLE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9);

/// The endpoint that a rule denies.
const DENIED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 19, 255, 255), 80);

fn cases() -> [Case; 3] {
    [
        Case {
            title: "no endpoint, no route: the hook alone",
            hooked: UNREACHABLE,
            plain: UNREACHABLE,
            error: ENETUNREACH,
        },
        Case {
            title: "no endpoint, refused on loopback",
            hooked: REFUSED,
            plain: REFUSED,
            error: ECONNREFUSED,
        },
        Case {
            title: "an endpoint, redirected, refused",
            hooked: endpoint(0),
            plain: REFUSED,
            error: ECONNREFUSED,
        },
    ]
}

/// Every verdict depends on who connects.
fn cases_with_rules() -> [Case; 4] {
    let [outside, loopback, redirected] = cases();
    [
        Case { title: "outside, allowed, no route", ..outside },
        loopback,
        Case { title: "an endpoint, allowed, redirected, refused", ..redirected },
        Case { title: "an endpoint, denied", hooked: DENIED, plain: UNREACHABLE, error: EPERM },
    ]
}

/// The endpoint with a number, in a block that is for benchmarks (RFC 2544).
fn endpoint(number: u32) -> SocketAddrV4 {
    let [_, _, high, low] = number.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(198, 18, high, low), if number < 65_536 { 80 } else { 81 })
}

impl Case {
    fn print(&self, plain: &Host, hooked: &Host, endpoints: u32, rules: u32) -> Result<()> {
        let (without, with) = self.measure(plain, hooked)?;
        println!(
            "{:<42} {endpoints:>9} {rules:>6} {without:>7.0} ns {with:>7.0} ns {:>6.0} ns {:>6.3}",
            self.title,
            with - without,
            with / without
        );
        Ok(())
    }

    /// Medians without hooks and with them, in nanoseconds per connect.
    fn measure(&self, plain: &Host, hooked: &Host) -> Result<(f64, f64)> {
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            without.extend(turn(plain, self.plain, self.plain_error())?);
            with.extend(turn(hooked, self.hooked, self.error)?);
        }
        Ok((median(&without).context("no samples")?, median(&with).context("no samples")?))
    }

    /// Without hooks nothing is forbidden.
    fn plain_error(&self) -> i32 {
        if self.error == EPERM { ENETUNREACH } else { self.error }
    }
}

fn turn(host: &Host, destination: SocketAddrV4, error: i32) -> Result<Vec<f64>> {
    let this = std::env::current_exe().context("finding our own program")?;
    let arguments =
        ["bench", "connect-samples", &destination.to_string(), &TURN.to_string(), &error.to_string()]
            .map(str::to_owned);
    let output = Process::spawn(host.command(this)?.args(arguments))?.succeed(LONG)?;
    output.lines().map(|line| line.parse().with_context(|| format!("reading {line:?}"))).collect()
}

/// Attaches an agent's hooks to `host`, and kills the agent.
fn leave_hooks(server: &Host, host: &Host) -> Result<()> {
    progress("attaching the hooks");
    let _server = server.start_server()?;
    let mut command = host.agent_command(&server.create_token()?)?;
    let mut agent = Process::spawn(command.args(["--max-endpoints", "131072"]))?;
    agent.wait_for_line(": ready", DEADLINE)?;
    agent.signal(Signal::SIGKILL)?;
    agent.wait(DEADLINE)?;
    ensure!(Path::new(host.bpf_directory()).exists(), "the agent left no hooks");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_distinct_and_no_case_uses_another_by_chance() {
        let all: std::collections::HashSet<_> = (0..ENDPOINTS[2]).map(endpoint).collect();
        assert_eq!(all.len(), ENDPOINTS[2] as usize);
        let [alone, refused, redirected] = cases();
        assert!(!all.contains(&alone.hooked) && !all.contains(&refused.hooked));
        assert!(all.contains(&redirected.hooked) && !all.contains(&DENIED));
    }
}
