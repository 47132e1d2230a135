//! `cargo xtask bench flood`: what a flood of connections to an agent's port costs those whom the agent serves.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use murmesh_lab::{DEADLINE, Mesh, Steady, TUNNEL_PORT, on_interrupt, remove};

use super::prepare;
use super::statistics::median;
use crate::shell::progress;

const PORT: u16 = 8181;

/// What `murmesh-probe flood` can send.
const KINDS: [&str; 3] = ["silent", "garbage", "hello"];

/// How often the slowest connection in a hundred may take what it takes without a flood.
const BAR: f64 = 3.0;

/// Options of `cargo xtask bench flood`.
#[derive(Args)]
pub struct Arguments {
    /// Build as the tests do. The figures are higher.
    #[arg(long)]
    quick: bool,
    /// How many times to measure each kind of flood, and calm before it.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds for each.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections of the flood per second.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    prepare(arguments.quick)?;
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let name = mesh.lab().name().to_owned();
    on_interrupt(move || {
        let _ = remove(&name);
    })?;
    let service = mesh.host("fcs00")?.probe(["name", "fcs00", &PORT.to_string()])?;
    service.wait_for_line("listening", DEADLINE)?;
    murmesh_lab::wait_for_availability(mesh.client()?, address(&mesh, PORT)?, true)?;
    for kind in KINDS {
        let (mut calm, mut flooded) = (Vec::new(), Vec::new());
        for round in 0..arguments.rounds {
            progress(&format!("{kind}, {} of {}", round + 1, arguments.rounds));
            calm.push(slowest_in_a_hundred(&mesh, arguments.seconds)?);
            // The server's host is no host of the mesh: a stranger.
            let destination = address(&mesh, TUNNEL_PORT)?.to_string();
            let rate = arguments.rate.to_string();
            let mut flood = mesh.host("murmesh00")?.probe(["flood", &destination, kind, "--rate", &rate])?;
            flood.wait_for_line("running", DEADLINE)?;
            flooded.push(slowest_in_a_hundred(&mesh, arguments.seconds)?);
            drop(flood.take_stdin());
            progress(flood.succeed(DEADLINE)?.lines().last().unwrap_or_default());
        }
        let (calm, flooded) = (median(&calm).unwrap_or_default(), median(&flooded).unwrap_or_default());
        let verdict = if flooded < BAR * calm { "reached" } else { "missed" };
        println!(
            "{kind:<8} flood of {}/s: p99 of a connection {flooded:>6.2} ms, {calm:>6.2} ms without; {:.1} times, bar {BAR} {verdict}",
            arguments.rate,
            flooded / calm
        );
    }
    let status = mesh.host("fcs00")?.murmesh(["status"])?;
    println!("{}", status.lines().find(|line| line.starts_with("refused")).unwrap_or("nothing was refused"));
    Ok(())
}

fn address(mesh: &Mesh, port: u16) -> Result<SocketAddr> {
    Ok((mesh.host("fcs00")?.ipv4(), port).into())
}

/// Of 200 connections a second, in milliseconds.
fn slowest_in_a_hundred(mesh: &Mesh, seconds: u64) -> Result<f64> {
    let load = Steady::begin(mesh.client()?, address(mesh, PORT)?)?;
    thread::sleep(Duration::from_secs(seconds));
    let outcome = load.end()?;
    outcome.ensure_all_answered().context("connections failed")?;
    Ok(outcome.p99_us as f64 / 1e3)
}
