//! `murmesh-crowd`: many agents in one process, without a data plane. Each has its key, its certificates and its
//! connection to a server, and keeps the whole catalog. `cargo xtask bench scale` runs it.
//!
//! Each line of stdin asks for one thing, and is answered by one line: `change` changes a service on one of the hosts,
//! `outage` waits until every agent is without a server and then until every one has one again, and `renewals` waits
//! until every agent has renewed its certificate.

mod agent;

use std::io::{self, BufRead as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use murmesh::local::{SERVER_SOCKET, connect};
use tokio::task::JoinSet;

use agent::Agent;

/// How many changes are timed.
const CHANGES: u16 = 20;
const SECOND: Duration = Duration::from_secs(1);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many agents there are, and where.
#[derive(Parser)]
#[command(name = "murmesh-crowd", about)]
struct Arguments {
    #[arg(long)]
    agents: u16,
    /// Listening sockets that each reports.
    #[arg(long, default_value_t = 10)]
    listeners: u16,
    /// Where a server has its socket for the command line.
    #[arg(long)]
    run_dir: PathBuf,
    /// Where the agents keep their keys.
    #[arg(long)]
    data_dir: PathBuf,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(Arguments::parse()))
}

async fn run(arguments: Arguments) -> Result<()> {
    let begun = Instant::now();
    let agents = join(&arguments).await.context("joining")?;
    println!("joined: {:.1}", begun.elapsed().as_secs_f64());
    let Arguments { agents: count, listeners, .. } = arguments;
    each(&agents, |agent| async move { agent.wait_for_all(count, listeners).await }).await?;
    println!("complete: {:.1}", begun.elapsed().as_secs_f64());
    let mut next = listeners;
    loop {
        // Nothing else is to be done meanwhile but what agents do by themselves.
        let line = tokio::task::spawn_blocking(|| io::stdin().lock().lines().next()).await?;
        match line.transpose()?.as_deref() {
            Some("change") => {
                change(&agents, next).await?;
                next += CHANGES;
            }
            Some("outage") => outage(&agents).await?,
            Some("renewals") => renewals(&agents).await?,
            Some(other) => bail!("{other:?} is not one of change, outage and renewals"),
            None => return Ok(()),
        }
    }
}

/// Has all of them join at once, each with a token of its own.
async fn join(arguments: &Arguments) -> Result<Vec<Agent>> {
    let mut server = connect(&arguments.run_dir, &[SERVER_SOCKET], "murmesh server").await?;
    let mut joining = JoinSet::new();
    for number in 0..arguments.agents {
        let request = murmesh::api::v1::CreateTokenRequest { valid_seconds: 3600 };
        let token = server.create_token(request).await?.into_inner().token.parse()?;
        let directory = arguments.data_dir.join(format!("agent-{number}"));
        joining.spawn(Agent::join(number, arguments.listeners, token, directory));
    }
    let mut agents = joining.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    agents.sort_by_key(|agent| agent.number);
    Ok(agents)
}

/// Does the same with every agent, and waits for all of them.
async fn each<T, F>(agents: &[Agent], doing: impl Fn(Agent) -> F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let all: JoinSet<_> = agents.iter().cloned().map(doing).collect();
    let all = tokio::time::timeout(PATIENCE, all.join_all()).await;
    all.context("some agents are not there yet")?.into_iter().collect()
}

/// Times how long changes take until each agent has them.
async fn change(agents: &[Agent], first: u16) -> Result<()> {
    let mut all = Vec::new();
    for number in first..first + CHANGES {
        let begun = Instant::now();
        agents[0].listen(number);
        all.extend(each(agents, |agent| async move { agent.wait_for_change(number, begun).await }).await?);
    }
    all.sort_unstable();
    let at = |share: usize| all[(all.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("changed: {:.1} {:.1} {:.1}", at(50), at(99), at(100));
    Ok(())
}

async fn outage(agents: &[Agent]) -> Result<()> {
    each(agents, |agent| async move { agent.wait_connected(false).await }).await?;
    println!("alone");
    each(agents, |agent| async move { agent.wait_connected(true).await }).await?;
    println!("back");
    Ok(())
}

/// Counts those who come in the busiest second.
async fn renewals(agents: &[Agent]) -> Result<()> {
    let mut ages = each(agents, |agent| async move { agent.wait_renewed().await }).await?;
    ages.sort_unstable();
    let within =
        |start: &Duration| ages.iter().filter(|age| (*start..*start + SECOND).contains(*age)).count();
    let busiest = ages.iter().map(within).max().unwrap_or_default();
    let spread = ages[ages.len() - 1].saturating_sub(ages[0]);
    println!("renewed: {:.1} {busiest}", spread.as_secs_f64());
    Ok(())
}
