//! Many connections to many ports at once, each of which can tell whether it got to the right one.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::socket::{Dial, errno};

/// Bytes of a nonce, as hexadecimal digits.
const NONCE_LENGTH: usize = 16;

/// The ports of a service host.
#[derive(Args, Clone, Copy)]
struct Ports {
    /// First port.
    #[arg(long, default_value_t = 20000)]
    first: u16,
    /// How many ports.
    #[arg(long, default_value_t = 50)]
    count: u16,
}

/// Arguments of `serve-ports`.
#[derive(Args)]
pub struct ServePorts {
    /// Part of each answer.
    name: String,
    #[command(flatten)]
    ports: Ports,
    /// Answer only when the client has ended its direction.
    #[arg(long)]
    after_end: bool,
}

impl ServePorts {
    /// Serves until killed, on IPv4 and IPv6.
    pub fn run(self) -> Result<()> {
        let Ports { first, count } = self.ports;
        let bind =
            |port| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("port {port}"));
        let listeners =
            (first..first + count).map(|port| Ok((port, bind(port)?))).collect::<Result<Vec<_>>>()?;
        println!("listening");
        thread::scope(|scope| {
            for (port, listener) in &listeners {
                // The answer names the listener's port and not what the connection claims.
                let answer = format!("{}:{port}:", self.name);
                scope.spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let (answer, after_end) = (answer.clone(), self.after_end);
                        thread::spawn(move || serve(stream, &answer, after_end));
                    }
                });
            }
        });
        Ok(())
    }
}

fn serve(mut stream: TcpStream, answer: &str, after_end: bool) -> io::Result<()> {
    let mut nonce = [0; NONCE_LENGTH];
    stream.read_exact(&mut nonce)?;
    if after_end {
        stream.read_to_end(&mut Vec::new())?;
    }
    stream.write_all(&[answer.as_bytes(), &nonce].concat())?;
    stream.shutdown(Shutdown::Write)?;
    // The client ends second, so that its port is free again at once.
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Arguments of `storm`.
#[derive(Args)]
pub struct Storm {
    /// Service hosts.
    #[arg(required = true, value_name = "NAME=ADDRESS")]
    targets: Vec<Target>,
    #[command(flatten)]
    ports: Ports,
    /// How many connections in all; without it, until a line comes on stdin.
    #[arg(long)]
    connections: Option<u64>,
    /// How many at a time.
    #[arg(long)]
    parallel: usize,
    /// End the own direction before the answer comes.
    #[arg(long)]
    ends_first: bool,
    /// How many to begin in a second at most; as many as there can be, if not given.
    #[arg(long, value_name = "NUMBER")]
    per_second: Option<u32>,
}

/// A service host, as its answers name it, and where it is dialled.
#[derive(Clone)]
struct Target {
    name: String,
    address: IpAddr,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').ok_or("use NAME=ADDRESS")?;
        let address = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
        Ok(Self { name: name.to_owned(), address })
    }
}

/// What became of the connections.
#[derive(Default, Serialize)]
struct Outcome {
    /// Answered by the service that was dialled, with the right nonce.
    right: u64,
    /// Any other answer, the first few of them.
    wrong: Vec<String>,
    /// By error.
    failed: BTreeMap<String, u64>,
}

impl Storm {
    /// Prints the outcome as JSON.
    pub fn run(self) -> Result<()> {
        let (next, outcome) = (AtomicU64::new(0), Mutex::new(Outcome::default()));
        let (begun, end) = (Instant::now(), AtomicU64::new(self.connections.unwrap_or(u64::MAX)));
        thread::scope(|scope| {
            if self.connections.is_none() {
                scope.spawn(|| {
                    // Whatever comes, and the end too, is the end.
                    let _ = io::stdin().read_line(&mut String::new());
                    end.store(0, Ordering::Relaxed);
                });
            }
            for _ in 0..self.parallel {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        self.wait_for_turn(begun, number);
                        if number >= end.load(Ordering::Relaxed) {
                            return;
                        }
                        let result = self.ask(number);
                        if let Ok(mut outcome) = outcome.lock() {
                            outcome.count(result);
                        }
                    }
                });
            }
        });
        println!("{}", serde_json::to_string(&outcome)?);
        Ok(())
    }

    fn wait_for_turn(&self, begun: Instant, number: u64) {
        if let Some(per_second) = self.per_second {
            let turn = Duration::from_secs(number) / per_second;
            thread::sleep(turn.saturating_sub(begun.elapsed()));
        }
    }

    /// Asks one service, and returns the expected and the received answer.
    fn ask(&self, number: u64) -> io::Result<(String, String)> {
        let target = &self.targets[(number % self.targets.len() as u64) as usize];
        let port =
            self.ports.first + (number / self.targets.len() as u64 % u64::from(self.ports.count)) as u16;
        // Different for each connection, without being a plain counter.
        let nonce = format!("{:0NONCE_LENGTH$x}", (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut stream = Dial::default().connect(SocketAddr::new(target.address, port))?;
        stream.write_all(nonce.as_bytes())?;
        if self.ends_first {
            stream.shutdown(Shutdown::Write)?;
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok((format!("{}:{port}:{nonce}", target.name), answer))
    }
}

impl Outcome {
    fn count(&mut self, result: io::Result<(String, String)>) {
        match result {
            Ok((expected, answer)) if expected == answer => self.right += 1,
            Ok((expected, answer)) => self.wrong.push(format!("{answer:?} instead of {expected:?}")),
            Err(error) => *self.failed.entry(errno(&error)).or_default() += 1,
        }
    }
}
