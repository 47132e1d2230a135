//! `murmesh-probe`: socket behaviour that ordinary programs cannot be told to have. Scenarios run it in hosts.
//!
//! Exit status 0 means that everything happened as the arguments say; otherwise stderr says what happened instead.

mod bytes;
mod flood;
mod hold;
mod script;
mod socket;
mod steady;
mod storm;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(name = "murmesh-probe", about)]
enum Command {
    /// Connects, and plays a script on the connection.
    Connect(script::Connect),
    /// Prints `listening`, accepts connections one after the other, and plays a script on each.
    Listen(script::Listen),
    /// Listens on many ports, and answers each connection with name, port and the nonce it sent.
    ServePorts(storm::ServePorts),
    /// Opens many connections at once to those ports, and counts right and wrong answers.
    Storm(storm::Storm),
    /// Listens on a port, and tells each client a name as soon as it connects.
    Name(steady::Name),
    /// Connects to a port at a steady rate without being anybody, until stdin ends.
    Flood(flood::Flood),
    /// Connects there at a steady rate until stdin ends, and counts names and failures.
    Steady(steady::Steady),
    /// Listens on a port, and gives back what comes, on any number of connections.
    Keep(hold::Keep),
    /// Opens many connections there, one after the other, and holds them until a line comes on stdin.
    Hold(hold::Hold),
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Connect(connect) => connect.run(),
        Command::Listen(listen) => listen.run(),
        Command::ServePorts(serve) => serve.run(),
        Command::Storm(storm) => storm.run(),
        Command::Name(name) => name.run(),
        Command::Flood(flood) => flood.run(),
        Command::Steady(steady) => steady.run(),
        Command::Keep(keep) => keep.run(),
        Command::Hold(hold) => hold.run(),
    }
}
