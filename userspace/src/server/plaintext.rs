//! Who reaches services in clear, as their hosts report it, and whom a change of the policy would lock out for that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;

use super::records::PLAINTEXT;
use super::registry::RegistryError;
use super::view::View;
use crate::api::{unix_seconds, v1};
use crate::identity::NodeName;
use crate::policy::{Mode, Policy};
use crate::store::{Change, Condition, Outcome, Store, Transaction};

/// For how long a client counts as one.
pub const MEMORY: Duration = Duration::from_secs(3600);

/// Ports of one host, in a report and in the store.
pub const MAX_PORTS: usize = 256;
/// Clients of one port, in a report and in the store.
pub const MAX_CLIENTS: usize = 16;
/// What a refusal names of each.
const NAMED_CLIENTS: usize = 4;
const NAMED_OBJECTIONS: usize = 8;

/// Why a report is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReport {
    /// More than a host may report.
    #[error("it has {0} ports or clients of a port, more than the {1} that a report may have")]
    TooMany(usize, usize),
    /// Not a port.
    #[error("{0} is not a port number")]
    Port(u32),
    /// Not an address.
    #[error("{0:?} is not an IP address")]
    Address(String),
}

/// Adds what `node` reports to what is in the store.
///
/// # Errors
/// When the store fails. A record that is damaged is replaced.
pub async fn record(
    store: &Arc<dyn Store>,
    node: &NodeName,
    report: v1::PlaintextReport,
) -> Result<(), RegistryError> {
    let key = format!("{PLAINTEXT}{node}");
    let report = by_clock(report, unix_seconds(SystemTime::now()));
    loop {
        let entry = store.get(&key).await?;
        let before = entry.as_ref().and_then(|entry| v1::PlaintextReport::decode(&*entry.value).ok());
        let merged = merged(&report, before.as_ref());
        if before.is_some_and(|before| before.ports == merged.ports) {
            return Ok(());
        }
        let condition = match entry {
            Some(entry) => Condition::Unchanged(entry.key, entry.revision),
            None => Condition::Absent(key.clone()),
        };
        let changes = vec![Change::Put(key.clone(), merged.encode_to_vec())];
        let transaction = Transaction { conditions: vec![condition], changes };
        if let Outcome::Applied(_) = store.commit(transaction).await? {
            return Ok(());
        }
    }
}

/// Whether a report is one that an agent makes.
///
/// # Errors
/// What is wrong with it.
pub fn check(report: &v1::PlaintextReport) -> Result<(), InvalidReport> {
    let at_most = |count, limit| {
        if count > limit { Err(InvalidReport::TooMany(count, limit)) } else { Ok(()) }
    };
    at_most(report.ports.len(), MAX_PORTS)?;
    for port in &report.ports {
        at_most(port.clients.len(), MAX_CLIENTS)?;
        if u16::try_from(port.port).is_err() {
            return Err(InvalidReport::Port(port.port));
        }
        let wrong = port.clients.iter().find(|client| client.address.parse::<IpAddr>().is_err());
        if let Some(client) = wrong {
            return Err(InvalidReport::Address(crate::identity::excerpt(&client.address)));
        }
    }
    Ok(())
}

/// The report by the clock of this server; nothing in it is later than `now`.
pub(super) fn by_clock(mut report: v1::PlaintextReport, now: u64) -> v1::PlaintextReport {
    let theirs = report.now;
    let shift = |time: &mut u64| {
        if *time != 0 {
            *time = now.saturating_sub(theirs.saturating_sub(*time));
        }
    };
    for port in &mut report.ports {
        shift(&mut port.others_last_seen);
        port.clients.iter_mut().for_each(|client| shift(&mut client.last_seen));
    }
    report.now = now;
    report
}

/// What was seen before the agent was started is not in its report, and still counts. Of more ports than a report may have
/// those stay that were reached last.
pub(super) fn merged(
    report: &v1::PlaintextReport,
    before: Option<&v1::PlaintextReport>,
) -> v1::PlaintextReport {
    let mut ports = BTreeMap::<u32, v1::PlaintextPort>::new();
    for port in before.into_iter().flat_map(|before| &before.ports).chain(&report.ports) {
        let known = ports.entry(port.port).or_insert_with(|| v1::PlaintextPort {
            clients: Vec::new(),
            others_last_seen: 0,
            ..port.clone()
        });
        known.connections = port.connections;
        known.others_last_seen = known.others_last_seen.max(port.others_last_seen);
        for client in &port.clients {
            match known.clients.iter_mut().find(|known| known.address == client.address) {
                Some(known) => known.last_seen = known.last_seen.max(client.last_seen),
                None => known.clients.push(client.clone()),
            }
        }
    }
    let mut ports: Vec<_> = ports.into_values().collect();
    ports.iter_mut().for_each(|port| forget_old(port, report.now));
    ports.retain(|port| last_seen(port) != 0);
    ports.sort_by_key(|port| std::cmp::Reverse(last_seen(port)));
    ports.truncate(MAX_PORTS);
    ports.sort_by_key(|port| port.port);
    v1::PlaintextReport { now: report.now, ports }
}

fn forget_old(port: &mut v1::PlaintextPort, now: u64) {
    port.clients.retain(|client| is_recent(client.last_seen, now));
    port.clients.sort_by_key(|client| std::cmp::Reverse(client.last_seen));
    if let Some(first) = port.clients.get(MAX_CLIENTS) {
        port.others_last_seen = port.others_last_seen.max(first.last_seen);
        port.clients.truncate(MAX_CLIENTS);
    }
    if !is_recent(port.others_last_seen, now) {
        port.others_last_seen = 0;
    }
}

/// 0 for never.
fn last_seen(port: &v1::PlaintextPort) -> u64 {
    let clients = port.clients.iter().map(|client| client.last_seen);
    clients.fold(port.others_last_seen, u64::max)
}

fn is_recent(last_seen: u64, now: u64) -> bool {
    last_seen != 0 && last_seen + MEMORY.as_secs() > now
}

/// Whom it would lock out that `after` holds instead of `before`, in words; empty if nobody.
pub fn objections(before: &Policy, after: &Policy, view: &View, now: SystemTime) -> Vec<String> {
    let mut objections = Vec::new();
    for (name, host) in &view.hosts {
        let Ok(node) = name.parse::<NodeName>() else { continue };
        let seen = view.plaintext.get(name);
        if becomes_strict(before, after, &node) {
            if !host.connected {
                objections
                    .push(format!("host {node} cannot tell who connects in clear: it is not connected"));
            } else if seen.is_none() {
                let reason = "its agent has not said, and a sidecar cannot";
                objections.push(format!("host {node} cannot tell who connects in clear: {reason}"));
            }
        }
        let ports = seen.into_iter().flat_map(|seen| &seen.ports);
        objections.extend(ports.filter_map(|port| locked_out(before, after, view, &node, port, now)));
    }
    let more = objections.len().saturating_sub(NAMED_OBJECTIONS);
    objections.truncate(NAMED_OBJECTIONS);
    objections.extend((more > 0).then(|| format!("and {more} more like these")));
    objections
}

fn becomes_strict(before: &Policy, after: &Policy, node: &NodeName) -> bool {
    let named = |policy: &Policy| {
        let services = policy.services().values().filter(|service| service.hosts.contains(node));
        services.map(|service| service.port).collect::<BTreeSet<_>>()
    };
    let (is, was) = (after.defaults.mode == Mode::Strict, before.defaults.mode == Mode::Strict);
    let strict_now = |port: &u16| {
        after.mode_at(node, *port) == Mode::Strict && before.mode_at(node, *port) != Mode::Strict
    };
    is && !was || named(before).union(&named(after)).any(strict_now)
}

fn locked_out(
    before: &Policy,
    after: &Policy,
    view: &View,
    node: &NodeName,
    seen: &v1::PlaintextPort,
    now: SystemTime,
) -> Option<String> {
    let port = u16::try_from(seen.port).ok()?;
    let is_recent = |last_seen| is_recent(last_seen, unix_seconds(now));
    let name = |client: &v1::PlaintextClient| {
        let ago = unix_seconds(now).saturating_sub(client.last_seen);
        let ago = humantime::format_duration(Duration::from_secs(ago));
        let host = view.hosts.values().find(|host| {
            host.report.as_ref().is_some_and(|report| report.addresses.contains(&client.address))
        });
        let host = host.map_or_else(String::new, |host| format!("host {}, ", host.node));
        format!("{} ({host}{ago} ago)", client.address)
    };
    let is_refused = |client: &&v1::PlaintextClient| {
        client.address.parse().is_ok_and(|address| {
            before.admits_plaintext(node, port, address) && !after.admits_plaintext(node, port, address)
        })
    };
    let recent = seen.clients.iter().filter(|client| is_recent(client.last_seen));
    let mut clients: Vec<_> = recent.filter(is_refused).map(name).collect();
    let has_others = clients.len() > NAMED_CLIENTS
        || is_recent(seen.others_last_seen) && may_refuse_others(before, after, node, port);
    clients.truncate(NAMED_CLIENTS);
    clients.extend(has_others.then(|| "others".to_owned()));
    (!clients.is_empty()).then(|| format!("{node}:{port} was reached in clear by {}", clients.join(", ")))
}

/// Of clients whose addresses are not known any more.
fn may_refuse_others(before: &Policy, after: &Policy, node: &NodeName, port: u16) -> bool {
    let exceptions =
        |policy: &Policy| policy.service_at(node, port).map(|service| service.exceptions.clone());
    after.mode_at(node, port) == Mode::Strict
        && (before.mode_at(node, port) != Mode::Strict || exceptions(before) != exceptions(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn reached(ports: std::ops::Range<u32>, last_seen: u64) -> v1::PlaintextReport {
        let client = |number: u32| v1::PlaintextClient { address: format!("192.0.2.{number}"), last_seen };
        let port = |port| v1::PlaintextPort {
            port,
            clients: (0..MAX_CLIENTS as u32).map(client).collect(),
            ..v1::PlaintextPort::default()
        };
        v1::PlaintextReport { now: NOW, ports: ports.map(port).collect() }
    }

    #[test]
    fn other_ports_in_each_report_leave_those_that_were_reached_last() {
        let most = MAX_PORTS as u32;
        let old = merged(&reached(1..most + 1, NOW - 60), None);
        assert_eq!(old.ports.len(), MAX_PORTS);
        let new = merged(&reached(1000..1010, NOW), Some(&old));
        let numbers: Vec<_> = new.ports.iter().map(|port| port.port).collect();
        assert_eq!(numbers, (1..most - 9).chain(1000..1010).collect::<Vec<_>>());
        let none_older = merged(&reached(1000..1000 + most, NOW), Some(&new));
        assert_eq!(none_older.ports, reached(1000..1000 + most, NOW).ports);
        assert_eq!(check(&none_older), Ok(()));
    }
}
