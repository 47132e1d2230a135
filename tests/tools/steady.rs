//! Connections at a steady rate to a service that says its name, until told to stop.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::socket::{Dial, errno};

/// How long one connection may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// Arguments of `name`.
#[derive(Args)]
pub struct Name {
    /// What every client is told.
    name: String,
    /// Where to listen, on IPv4 and IPv6.
    port: u16,
}

impl Name {
    /// Serves until killed.
    pub fn run(self) -> Result<()> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, self.port)).context("bind")?;
        println!("listening");
        for mut stream in listener.incoming().flatten() {
            // At once, and not in a thread that must be made first: whoever is killed between accepting a connection and
            // answering ends it as if there were nothing to say, over plain TCP too.
            if greet(&stream, &self.name).is_ok() {
                thread::spawn(move || stream.read_to_end(&mut Vec::new()));
            }
        }
        Ok(())
    }
}

fn greet(mut stream: &TcpStream, name: &str) -> io::Result<()> {
    stream.write_all(name.as_bytes())?;
    stream.shutdown(Shutdown::Write)
}

/// Arguments of `steady`.
#[derive(Args)]
pub struct Steady {
    destination: SocketAddr,
    /// Connections per second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
}

/// What became of the connections.
#[derive(Default, Serialize)]
struct Outcome {
    /// Connections that were told a name, by the name.
    named: BTreeMap<String, u64>,
    /// Those that were not, by what happened instead.
    failed: BTreeMap<String, u64>,
    /// The longest that one took.
    slowest_ms: u64,
    /// What 99 in 100 took at most.
    p99_us: u64,
}

/// What one connection was told, or what happened instead, and how long that took.
type Answer = (io::Result<String>, Duration);

impl Steady {
    /// Prints `running`, connects until stdin ends, and prints the outcome as JSON.
    pub fn run(self) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        thread::spawn(move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            stopping.store(true, Ordering::Relaxed);
        });
        println!("running");
        let (sender, answers) = mpsc::channel::<Answer>();
        let (begun, mut number) = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            let due = begun + Duration::from_secs(1) / self.rate * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let (sender, destination) = (sender.clone(), self.destination);
            thread::spawn(move || {
                let begun = Instant::now();
                let _ = sender.send((ask(destination), begun.elapsed()));
            });
            number += 1;
        }
        drop(sender);
        let mut outcome = Outcome::default();
        let mut taken = Vec::new();
        for answer in answers {
            taken.push(u64::try_from(answer.1.as_micros()).unwrap_or(u64::MAX));
            outcome.count(answer);
        }
        taken.sort_unstable();
        outcome.p99_us = taken.get(taken.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default();
        println!("{}", serde_json::to_string(&outcome)?);
        Ok(())
    }
}

fn ask(destination: SocketAddr) -> io::Result<String> {
    let mut stream = Dial::default().connect(destination)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

impl Outcome {
    fn count(&mut self, (result, duration): Answer) {
        self.slowest_ms = self.slowest_ms.max(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let entry = match result {
            Ok(name) if name.is_empty() => self.failed.entry("nothing was said".to_owned()),
            Ok(name) => self.named.entry(name),
            Err(error) => self.failed.entry(errno(&error)),
        };
        *entry.or_default() += 1;
    }
}
