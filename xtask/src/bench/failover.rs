//! `cargo xtask bench failover`: from the death of an instance, or of its host, until no client's kernel sends
//! connections there any more, and what becomes of connections meanwhile.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use murmesh_lab::{DEADLINE, Mesh, Process, Steady, on_interrupt, remove, wait_for_availability};
use nix::sys::signal::Signal;

use super::prepare;
use super::statistics::median;
use crate::shell::progress;

const PORT: u16 = 8181;
const SERVICES: [&str; 3] = ["fcs00", "fcs01", "fcs02"];
const CLIENTS: [&str; 3] = ["fcc00", "fcc01", "fcc02"];

/// How long an instance is dead, or back, before the next thing happens: a hundred connections.
const STAY: Duration = Duration::from_millis(500);

/// How long each may take.
const PROCESS_BAR_MS: f64 = 50.0;
const HOST_BAR_MS: f64 = 3000.0;

/// Options of `cargo xtask bench failover`.
#[derive(Args)]
pub struct Arguments {
    /// Build as the tests do. The figures are higher.
    #[arg(long)]
    quick: bool,
    /// How many times to kill a lone instance.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// How many times to unplug its host.
    #[arg(long, default_value_t = 5)]
    unplugs: u32,
    /// How many instances to kill under 200 connections per second.
    #[arg(long, default_value_t = 10)]
    rounds: u32,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    prepare(arguments.quick)?;
    let Some(mesh) = Mesh::start(3, 3)? else { return Ok(()) };
    let name = mesh.lab().name().to_owned();
    on_interrupt(move || {
        let _ = remove(&name);
    })?;
    let server = mesh.host("murmesh00")?;
    server.murmesh(["service", "set", "lone", "--host", "fcs00", "--port", "8181"])?;
    let killed = killed(&mesh, arguments.kills)?;
    print("a killed process is gone from every client's kernel", &killed, PROCESS_BAR_MS);
    let unplugged = unplugged(&mesh, arguments.unplugs)?;
    print("a host without a link is gone from every client's kernel", &unplugged, HOST_BAR_MS);
    server.murmesh(["service", "set", "lone", "--host", &SERVICES.join(",")])?;
    under_load(&mesh, arguments.rounds)
}

fn serve(mesh: &Mesh, host: &str) -> Result<Process> {
    let process = mesh.host(host)?.probe(["name", host, &PORT.to_string()])?;
    process.wait_for_line("listening", DEADLINE)?;
    Ok(process)
}

fn kill(mut process: Process) -> Result<()> {
    process.signal(Signal::SIGKILL)?;
    process.wait(DEADLINE)?;
    Ok(())
}

fn address(mesh: &Mesh, host: &str) -> Result<SocketAddr> {
    Ok((mesh.host(host)?.ipv4(), PORT).into())
}

/// Until the kernels of all clients know it.
fn wait(mesh: &Mesh, available: bool) -> Result<()> {
    let destination = address(mesh, "fcs00")?;
    CLIENTS.iter().try_for_each(|client| wait_for_availability(mesh.host(client)?, destination, available))
}

fn killed(mesh: &Mesh, count: u32) -> Result<Vec<f64>> {
    let mut taken = Vec::new();
    for round in 0..count {
        progress(&format!("killing the process, {} of {count}", round + 1));
        let process = serve(mesh, "fcs00")?;
        wait(mesh, true)?;
        let begun = Instant::now();
        process.signal(Signal::SIGKILL)?;
        wait(mesh, false)?;
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
        kill(process)?;
        let destination = address(mesh, "fcs00")?.to_string();
        mesh.client()?.probe(["connect", &destination, "--fails", "ECONNREFUSED"])?.succeed(DEADLINE)?;
    }
    Ok(taken)
}

fn unplugged(mesh: &Mesh, count: u32) -> Result<Vec<f64>> {
    let _process = serve(mesh, "fcs00")?;
    let mut taken = Vec::new();
    for round in 0..count {
        progress(&format!("unplugging the host, {} of {count}", round + 1));
        wait(mesh, true)?;
        let begun = Instant::now();
        mesh.host("fcs00")?.unplug()?;
        wait(mesh, false)?;
        taken.push(begun.elapsed().as_secs_f64() * 1e3);
        mesh.host("fcs00")?.plug_in()?;
    }
    wait(mesh, true)?;
    Ok(taken)
}

fn under_load(mesh: &Mesh, rounds: u32) -> Result<()> {
    let mut processes = SERVICES.map(|host| serve(mesh, host).ok());
    wait(mesh, true)?;
    let load = Steady::begin(mesh.client()?, address(mesh, "fcs00")?)?;
    for round in 0..rounds {
        progress(&format!("killing an instance under load, {} of {rounds}", round + 1));
        let victim = if round % 3 == 2 { 1 } else { 0 };
        kill(processes[victim].take().context("it runs")?)?;
        // Enough connections to find it dead by themselves, and to hear of it.
        thread::sleep(STAY);
        processes[victim] = Some(serve(mesh, SERVICES[victim])?);
        thread::sleep(STAY);
    }
    let outcome = load.end()?;
    println!(
        "{:<58} {:>6} answered, {} failed, slowest {} ms",
        format!("connections at 200/s, {rounds} instances killed"),
        outcome.answered(),
        outcome.failed.values().sum::<u64>(),
        outcome.slowest_ms
    );
    ensure!(outcome.failed.is_empty(), "connections failed: {:?}", outcome.failed);
    Ok(())
}

fn print(title: &str, milliseconds: &[f64], bar: f64) {
    let worst = milliseconds.iter().copied().fold(0.0, f64::max);
    let middle = median(milliseconds).unwrap_or_default();
    let verdict = if middle < bar { "reached" } else { "missed" };
    println!(
        "{title:<58} median {middle:>7.1} ms, worst {worst:>7.1} ms of {}; bar {bar} ms {verdict}",
        milliseconds.len()
    );
}
