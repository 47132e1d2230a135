//! Tells servers which clients reach this host's services in clear, from what the kernel half counts.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use murmesh_common::Counter;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tracing::warn;

use crate::{
    api::{unix_seconds, v1},
    bpf::{BpfError, Counters, Pins, Plaintext},
    server::{MAX_PLAINTEXT_CLIENTS, MAX_PLAINTEXT_PORTS},
};

/// How often the totals are looked at: two system calls.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long what is new about a port that is known may wait: each report is written to the servers' store.
const PATIENCE: Duration = Duration::from_secs(10);

/// Publishes a report at the start, as soon as there is a new port in it, and some seconds after other changes.
///
/// # Errors
/// The kernel half's maps are not there.
pub async fn watch(pins: Pins, reports: watch::Sender<Option<v1::PlaintextReport>>) -> anyhow::Result<()> {
    let (counters, plaintext) = (Counters::open(&pins)?, Plaintext::open(&pins)?);
    let (mut ticks, mut seen, mut published) = (interval(INTERVAL), None, Instant::now());
    let mut known = BTreeSet::new();
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match news(&counters, &plaintext, seen) {
            Ok(None) => {}
            Ok(Some((total, report))) => {
                let ports: BTreeSet<_> = report.ports.iter().map(|port| port.port).collect();
                if seen.is_none() || !ports.is_subset(&known) || published.elapsed() >= PATIENCE {
                    reports.send_replace(Some(report));
                    (seen, known, published) = (Some(total), ports, Instant::now());
                }
            }
            Err(error) => warn!("cannot tell who connects in clear: {error}"),
        }
    }
}

/// The report, with the total that it is about, if that is another than `seen`.
fn news(
    counters: &Counters,
    plaintext: &Plaintext,
    seen: Option<u64>,
) -> Result<Option<(u64, v1::PlaintextReport)>, BpfError> {
    let total = counters.get(Counter::PlaintextFromMesh)? + counters.get(Counter::PlaintextFromOutside)?;
    if seen == Some(total) { Ok(None) } else { Ok(Some((total, report(plaintext)?))) }
}

fn report(plaintext: &Plaintext) -> Result<v1::PlaintextReport, BpfError> {
    let mut clients = BTreeMap::<u16, Vec<_>>::new();
    for (port, address, count) in plaintext.clients()? {
        clients.entry(port).or_default().push((address, count));
    }
    let mut ports = plaintext.ports()?;
    ports.sort_by_key(|(_, count)| Reverse(count.last));
    ports.truncate(MAX_PLAINTEXT_PORTS);
    let mut ports: Vec<_> = ports
        .into_iter()
        .map(|(port, count)| {
            let mut clients = clients.remove(&port).unwrap_or_default();
            clients.sort_by_key(|(_, count)| Reverse(count.last));
            let connections = count.from_mesh + count.from_outside;
            let named: u64 = clients.iter().map(|(_, count)| count.from_mesh + count.from_outside).sum();
            // Of clients that the kernel half has forgotten nobody knows when they were last here.
            let forgotten = (named < connections).then_some(count.last);
            let others =
                forgotten.or_else(|| clients.get(MAX_PLAINTEXT_CLIENTS).map(|(_, count)| count.last));
            clients.truncate(MAX_PLAINTEXT_CLIENTS);
            let client = |(address, count): (std::net::IpAddr, crate::bpf::Counted)| v1::PlaintextClient {
                address: address.to_string(),
                last_seen: unix_seconds(count.last),
            };
            v1::PlaintextPort {
                port: port.into(),
                connections,
                clients: clients.into_iter().map(client).collect(),
                others_last_seen: others.map(unix_seconds).unwrap_or_default(),
            }
        })
        .collect();
    ports.sort_by_key(|port| port.port);
    Ok(v1::PlaintextReport { now: unix_seconds(SystemTime::now()), ports })
}
