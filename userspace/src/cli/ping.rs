//! `murmesh ping`. JSON: `{destination, address, path, why, rule, host, instance, from, to, tls, rounds, answered}`, each
//! null where it is not known or does not apply. `path` is "mesh", "plaintext", "local" or "refused", `from` and `to` are
//! SPIFFE ids, `tls` is `{version, key_exchange, cipher}`, and `rounds` a list of `{connect_us, tunnel_connect_us,
//! tunnel_handshake_us, answer_us, round_trip_us, error}`: `connect_us` is how long a `connect` of this command took,
//! `error` what it or the agent failed with.

use std::fmt::Write;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::output::{self, Format};
use super::{ReadOptions, daemon};
use crate::api::v1::{self, Path};
use crate::cli::status::local_error;
use crate::local::{AGENT_SOCKET, connect};

/// How long a connection of this command may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two rounds.
const PAUSE: Duration = Duration::from_secs(1);

/// Arguments of `murmesh ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    #[command(flatten)]
    read: ReadOptions,
    /// How often it is tried, once a second.
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..), value_name = "NUMBER")]
    count: u32,
    /// The service, as a program of this host would dial it. It sees connections that are broken off at once.
    #[arg(value_name = "HOST:PORT")]
    destination: String,
}

#[derive(Debug, Serialize)]
struct Ping {
    destination: String,
    address: SocketAddr,
    path: &'static str,
    why: Option<String>,
    rule: Option<u32>,
    host: Option<String>,
    instance: Option<String>,
    from: Option<String>,
    to: Option<String>,
    tls: Option<Tls>,
    rounds: Vec<Round>,
    answered: usize,
}

#[derive(Debug, Serialize)]
struct Tls {
    version: String,
    key_exchange: String,
    cipher: String,
}

#[derive(Debug, Serialize)]
struct Round {
    connect_us: Option<u64>,
    tunnel_connect_us: Option<u64>,
    tunnel_handshake_us: Option<u64>,
    answer_us: Option<u64>,
    round_trip_us: Option<u64>,
    error: Option<String>,
}

/// Tries it, and prints what became of it; fails if any round did.
///
/// # Errors
/// When the name has no address, or no agent answers.
pub fn run(arguments: &PingArgs) -> anyhow::Result<ExitCode> {
    let PingArgs { read, count, destination } = arguments;
    let is_table = read.output == Format::Table;
    let ping = daemon::block_on(async {
        let mut agent = connect(&read.run_directory.run_dir, &[AGENT_SOCKET], "murmesh agent").await?;
        let address = resolve(destination).await?;
        let mut ping: Option<Ping> = None;
        for number in 1..=*count {
            if number > 1 {
                tokio::time::sleep(PAUSE).await;
            }
            let request = v1::PingRequest { destination: address.to_string() };
            let answer = agent.ping(request).await.map_err(local_error)?.into_inner();
            let round = Round::new(&answer, dial(address).await?);
            let mut next = Ping::new(destination, address, answer);
            if is_table {
                let heading = if ping.is_none() { next.heading() } else { String::new() };
                output::print(&(heading + &round.row(number)))?;
            }
            next.rounds = ping.take().map(|ping| ping.rounds).unwrap_or_default();
            next.rounds.push(round);
            ping = Some(next);
        }
        ping.context("no round was asked for")
    })?;
    let ping = Ping { answered: ping.rounds.iter().filter(|round| round.error.is_none()).count(), ..ping };
    if is_table {
        output::print(&ping.conclusion())?;
    } else {
        output::print_json(&ping)?;
    }
    Ok(if ping.answered == ping.rounds.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn resolve(destination: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses = tokio::net::lookup_host(destination)
        .await
        .with_context(|| format!("{destination:?} is no HOST:PORT, or the name has no address"))?;
    addresses.next().with_context(|| format!("{destination}: the name has no address"))
}

/// As any program of this host would.
async fn dial(address: SocketAddr) -> anyhow::Result<io::Result<Duration>> {
    let dialled = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map(|_| begun.elapsed())
    });
    Ok(dialled.await?)
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

impl Ping {
    fn new(destination: &str, address: SocketAddr, answer: v1::PingResponse) -> Self {
        let path = match answer.path() {
            Path::Unspecified => "unknown",
            Path::Mesh => "mesh",
            Path::Plaintext => "plaintext",
            Path::Local => "local",
            Path::Refused => "refused",
        };
        let tls = answer.handshake.map(|handshake| Tls {
            version: handshake.version.replace("TLSv", "TLS ").replace('_', "."),
            key_exchange: handshake.key_exchange,
            cipher: handshake.cipher,
        });
        Self {
            destination: destination.to_owned(),
            address,
            path,
            why: some(answer.why),
            rule: answer.rule,
            host: some(answer.node),
            instance: some(answer.instance),
            from: some(answer.caller),
            to: some(answer.peer),
            tls,
            rounds: Vec::new(),
            answered: 0,
        }
    }

    fn heading(&self) -> String {
        let path = match self.path {
            "mesh" => "through the mesh, encrypted",
            "plaintext" => "IN CLEAR",
            "local" => "on this host",
            "refused" => "refused",
            path => path,
        };
        let why = self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let mut page = format!("{} ({}) is reached {path}{why}\n", self.destination, self.address);
        if self.path == "refused" {
            page = format!("{} ({}) is refused{why}\n", self.destination, self.address);
        }
        let tls =
            self.tls.as_ref().map(|tls| format!("{}, {}, {}", tls.version, tls.key_exchange, tls.cipher));
        let instance = self.instance.as_ref().filter(|instance| **instance != self.address.to_string());
        let lines = [
            ("from", self.from.clone()),
            ("to", self.to.clone()),
            ("host", self.host.clone()),
            ("instance", instance.cloned()),
            ("tunnel", tls),
            ("by", self.rule.map(|rule| format!("rule {rule}"))),
        ];
        for (name, value) in lines.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let _ = writeln!(page, "  {name:<10}{value}");
        }
        page
    }

    fn conclusion(&self) -> String {
        let times: Vec<u64> =
            self.rounds.iter().filter_map(|round| round.answer_us.or(round.connect_us)).collect();
        let mut line = format!("{} of {} answered", self.answered, self.rounds.len());
        if let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) {
            let mean = times.iter().sum::<u64>() / times.len() as u64;
            let _ = write!(line, "; {}, {}, {} (least, mean, most)", time(*least), time(mean), time(*most));
        }
        line + "\n"
    }
}

impl Round {
    fn new(answer: &v1::PingResponse, dialled: io::Result<Duration>) -> Self {
        let refused = (answer.path() == Path::Refused).then(|| answer.why.clone());
        let (connect_us, failed) = match dialled {
            Ok(took) => (u64::try_from(took.as_micros()).ok(), None),
            Err(error) => (None, Some(format!("connect: {error}"))),
        };
        let handshake = answer.handshake.as_ref();
        Self {
            connect_us,
            tunnel_connect_us: handshake.map(|handshake| handshake.connect_us),
            tunnel_handshake_us: handshake.map(|handshake| handshake.handshake_us),
            answer_us: answer.answer_us,
            round_trip_us: handshake.map(|_| answer.round_trip_us),
            error: failed.or(refused),
        }
    }

    fn row(&self, number: u32) -> String {
        let parts = [
            ("connect", self.connect_us),
            ("new tunnel: TCP", self.tunnel_connect_us),
            ("TLS", self.tunnel_handshake_us),
            ("answer", self.answer_us),
            ("round trip", self.round_trip_us),
        ];
        let parts = parts.into_iter().filter_map(|(name, us)| Some(format!("{name} {}", time(us?))));
        let parts: Vec<_> = parts.chain(self.error.clone()).collect();
        format!("{number}: {}\n", parts.join(", "))
    }
}

/// For people.
fn time(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> v1::PingResponse {
        v1::PingResponse {
            path: Path::Mesh.into(),
            node: "fcs00".to_owned(),
            instance: "10.0.0.1:80".to_owned(),
            caller: "spiffe://mesh.test/host/fcc00/user-root".to_owned(),
            peer: "spiffe://mesh.test/service/web".to_owned(),
            handshake: Some(v1::Handshake {
                version: "TLSv1_3".to_owned(),
                key_exchange: "X25519MLKEM768".to_owned(),
                cipher: "TLS13_AES_128_GCM_SHA256".to_owned(),
                connect_us: 210,
                handshake_us: 2_300,
            }),
            answer_us: Some(540),
            round_trip_us: 200,
            ..v1::PingResponse::default()
        }
    }

    #[test]
    fn a_page_tells_the_way_the_ends_and_the_times() {
        let (address, took) = (([10, 0, 0, 1], 80).into(), Duration::from_micros(1_005));
        let ping = Ping::new("web:80", address, answer());
        assert_eq!(
            ping.heading() + &Round::new(&answer(), Ok(took)).row(1),
            "web:80 (10.0.0.1:80) is reached through the mesh, encrypted\n  \
             from      spiffe://mesh.test/host/fcc00/user-root\n  to        spiffe://mesh.test/service/web\n  \
             host      fcs00\n  tunnel    TLS 1.3, X25519MLKEM768, TLS13_AES_128_GCM_SHA256\n\
             1: connect 1.005 ms, new tunnel: TCP 0.210 ms, TLS 2.300 ms, answer 0.540 ms, round trip 0.200 ms\n"
        );
    }

    #[test]
    fn a_refusal_is_an_error_of_its_round() {
        let why = "rule 3 forbids it".to_owned();
        let refused = v1::PingResponse {
            path: Path::Refused.into(),
            why: why.clone(),
            rule: Some(3),
            ..v1::PingResponse::default()
        };
        let round = Round::new(&refused, Ok(Duration::ZERO));
        assert_eq!(round.error, Some(why), "also where the kernel does not refuse it yet");
        let denied = io::Error::from_raw_os_error(nix::libc::EPERM);
        let round = Round::new(&refused, Err(denied));
        assert!(round.row(1).starts_with("1: connect: Operation not permitted"), "{}", round.row(1));
        let heading = Ping::new("web:80", ([10, 0, 0, 1], 80).into(), refused).heading();
        assert_eq!(heading, "web:80 (10.0.0.1:80) is refused: rule 3 forbids it\n  by        rule 3\n");
    }
}
