//! What a connection does, step by step.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::bytes::{Bytes, exchange};
use crate::socket::{Dial, Names, Way, ensure_fails, errno, reset, wait_until_broken};

/// Seeds of the streams that the two ends of an exchange send.
const CONNECTING: u64 = 1;
const LISTENING: u64 = 2;

/// After how long without room for a byte a connection is full.
const FULL: Duration = Duration::from_secs(1);

const STEPS: &str = "send=TEXT, expect=TEXT, names, say=LINE, pause=MILLISECONDS, wait, fill, shutdown, end, reset, \
                     expect-reset, expect-broken=ERRNO, expect-write-error or exchange=BYTES";

/// Arguments of `connect`.
#[derive(Args)]
pub struct Connect {
    destination: SocketAddr,
    /// Bind this address first.
    #[arg(long)]
    from: Option<SocketAddr>,
    /// Bind this interface first.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Connect without blocking.
    #[arg(long)]
    nonblocking: bool,
    /// Mark the socket (SO_MARK) first.
    #[arg(long, value_name = "NUMBER")]
    mark: Option<u32>,
    /// How to connect.
    #[arg(long, value_enum, default_value = "connect", conflicts_with = "nonblocking")]
    by: Way,
    /// `connect` must fail with this error, such as ECONNREFUSED.
    #[arg(long, conflicts_with = "steps", value_name = "ERRNO")]
    fails: Option<String>,
    /// Steps of the script.
    #[arg(help = STEPS)]
    steps: Vec<Step>,
}

/// Arguments of `listen`.
#[derive(Args)]
pub struct Listen {
    address: SocketAddr,
    /// How many connections to accept.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Steps of the script.
    #[arg(help = STEPS)]
    steps: Vec<Step>,
}

impl Connect {
    /// Connects and plays the script.
    pub fn run(self) -> Result<()> {
        let Self { interface, from, nonblocking, mark, by, .. } = self;
        let connected = Dial { interface, from, nonblocking, mark, by }.connect(self.destination);
        if let Some(expected) = self.fails {
            return ensure_fails(connected, &expected).context("connect");
        }
        let stream = connected.map_err(|error| anyhow::anyhow!("connect: {}", errno(&error)))?;
        Play { accepted: None, sends: CONNECTING, receives: LISTENING }.run(stream, &self.steps)
    }
}

impl Listen {
    /// Accepts and plays the script.
    pub fn run(self) -> Result<()> {
        let listener = TcpListener::bind(self.address).context("bind")?;
        println!("listening");
        for _ in 0..self.connections {
            let (stream, accepted) = listener.accept().context("accept")?;
            let play = Play { accepted: Some(accepted), sends: LISTENING, receives: CONNECTING };
            play.run(stream, &self.steps)?;
        }
        Ok(())
    }
}

/// One thing that a connection does.
#[derive(Clone, Debug)]
enum Step {
    /// Writes the text.
    Send(String),
    /// Reads exactly the text.
    Expect(String),
    /// Prints accepted, peer and local address as JSON.
    Names,
    /// Prints a line, for the scenario to wait for.
    Say(String),
    /// Stays idle.
    Pause(Duration),
    /// Stays idle until a line arrives on stdin.
    Wait,
    /// Writes until nothing more has been taken for a while.
    Fill,
    /// Ends its own direction.
    Shutdown,
    /// Reads the clean end of the other direction and nothing before it.
    End,
    /// Closes with a reset.
    Reset,
    /// Reads until the connection is reset. A clean end is a failure.
    ExpectReset,
    /// Neither reads nor writes until the connection is broken, with this error.
    ExpectBroken(String),
    /// Writes until it fails, and prints the error.
    ExpectWriteError,
    /// Sends and receives that many bytes at once, ends its own direction and reads the other's end.
    Exchange(u64),
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let number = |value: &str| value.parse::<u64>().map_err(|_| format!("{value:?} is not a number"));
        Ok(match (name, value) {
            ("send", Some(text)) => Self::Send(text.to_owned()),
            ("expect", Some(text)) => Self::Expect(text.to_owned()),
            ("names", None) => Self::Names,
            ("say", Some(line)) => Self::Say(line.to_owned()),
            ("pause", Some(value)) => Self::Pause(Duration::from_millis(number(value)?)),
            ("wait", None) => Self::Wait,
            ("fill", None) => Self::Fill,
            ("shutdown", None) => Self::Shutdown,
            ("end", None) => Self::End,
            ("reset", None) => Self::Reset,
            ("expect-reset", None) => Self::ExpectReset,
            ("expect-broken", Some(error)) => Self::ExpectBroken(error.to_owned()),
            ("expect-write-error", None) => Self::ExpectWriteError,
            ("exchange", Some(value)) => Self::Exchange(number(value)?),
            _ => return Err(format!("{text:?} is no step: use {STEPS}")),
        })
    }
}

/// A script on one connection.
struct Play {
    accepted: Option<SocketAddr>,
    sends: u64,
    receives: u64,
}

impl Play {
    fn run(&self, stream: TcpStream, steps: &[Step]) -> Result<()> {
        for (index, step) in steps.iter().enumerate() {
            if let Step::Reset = step {
                return reset(stream);
            }
            self.step(&stream, step).with_context(|| format!("step {}, {step:?}", index + 1))?;
        }
        Ok(())
    }

    fn step(&self, mut stream: &TcpStream, step: &Step) -> Result<()> {
        match step {
            Step::Send(text) => stream.write_all(text.as_bytes())?,
            Step::Expect(text) => expect(stream, text)?,
            Step::Names => println!("{}", serde_json::to_string(&Names::of(stream, self.accepted)?)?),
            Step::Say(line) => println!("{line}"),
            Step::Pause(time) => thread::sleep(*time),
            Step::Wait => drop(io::stdin().lines().next()),
            Step::Fill => fill(stream)?,
            Step::Shutdown => stream.shutdown(Shutdown::Write)?,
            Step::End => expect_end(stream)?,
            Step::Reset => bail!("a reset is the last step"),
            Step::ExpectReset => ensure_fails(io::copy(&mut stream, &mut io::sink()), "ECONNRESET")?,
            Step::ExpectBroken(error) => ensure_fails(wait_until_broken(stream), error)?,
            Step::ExpectWriteError => expect_write_error(stream)?,
            Step::Exchange(length) => {
                exchange(stream, &Bytes::new(self.sends), &Bytes::new(self.receives), *length)?;
            }
        }
        Ok(())
    }
}

fn expect(mut stream: &TcpStream, text: &str) -> Result<()> {
    let mut received = vec![0; text.len()];
    stream.read_exact(&mut received)?;
    ensure!(received == text.as_bytes(), "received {:?}", String::from_utf8_lossy(&received));
    Ok(())
}

fn expect_end(mut stream: &TcpStream) -> Result<()> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    ensure!(rest.is_empty(), "received {:?} before the end", String::from_utf8_lossy(&rest));
    Ok(())
}

fn fill(mut stream: &TcpStream) -> Result<()> {
    stream.set_write_timeout(Some(FULL))?;
    loop {
        match stream.write(&[0; 65536]) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(stream.set_write_timeout(None)?)
}

fn expect_write_error(mut stream: &TcpStream) -> Result<()> {
    loop {
        if let Err(error) = stream.write_all(&[0; 4096]) {
            println!("write failed: {}", errno(&error));
            return Ok(());
        }
    }
}
