//! What a server knows of the mesh now, as its store and its watchers tell.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message;
use tracing::error;

use super::records::{DEFAULTS, DRAINED, HOSTS, PLAINTEXT, REMOVED, RULES, SERVICES};
use super::roots::{self, AUTHORITY};
use super::servers::{Changed, Departed, Servers};
use crate::api::v1::catalog_event::Event;
use crate::api::{unix_seconds, v1};
use crate::catalog::removed_hosts;
use crate::identity::{NameError, NodeName, Removed, TrustDomain};
use crate::policy::{Names, Policy, RuleId};

/// A record of the policy that is not understood. It is not left out: that could open what it closes.
#[derive(Debug, thiserror::Error)]
#[error("the record {key} in the server's database is damaged: {reason}")]
pub struct DamagedRecord {
    key: String,
    reason: String,
}

/// How long a host may be without a connection before its services are taken for dead: it may only be connecting
/// anew, with a renewed certificate for instance.
pub const RECONNECT_TIME: Duration = Duration::from_millis(500);

#[derive(Default)]
pub struct View {
    pub revision: u64,
    pub hosts: BTreeMap<String, v1::Host>,
    pub policy: Policy,
    /// What hosts have seen of connections in clear. Of no concern to watchers.
    pub plaintext: BTreeMap<String, v1::PlaintextReport>,
    /// Hosts that were removed.
    pub removed: Removed,
    /// The roots of the mesh.
    pub trust: v1::Trust,
    /// Watch streams of each host to this server; two for a moment when one replaces another.
    pub connections: HashMap<String, usize>,
    /// Until when hosts without any may come back before they are lost.
    pub away: HashMap<String, Instant>,
    /// Those that did not.
    pub lost: HashSet<String>,
    /// Hosts that came or left, of which watchers have not been told yet.
    pub moved: BTreeSet<String>,
    /// The encoded snapshot, as long as watchers have been told of nothing that is not in it.
    pub encoded: Option<Bytes>,
    pub servers: Servers,
    /// Who is gone, as far as other servers have told.
    pub departed: Vec<Departed>,
}

impl View {
    /// Whether `node` was removed and has not joined again.
    pub fn has_removed(&self, node: &NodeName) -> bool {
        self.removed.at(node).is_some() && !self.hosts.contains_key(node.as_str())
    }

    pub fn snapshot(&self) -> v1::Snapshot {
        v1::Snapshot {
            hosts: self.hosts.values().cloned().collect(),
            policy: Some((&self.policy).into()),
            removed_hosts: removed_hosts(&self.removed),
            trust: Some(self.trust.clone()).filter(|trust| !trust.roots.is_empty()),
            servers: Some(self.servers.list()),
            ejections: vec![],
        }
    }

    /// What plain names stand for.
    pub fn names(&self, trust_domain: &TrustDomain) -> Names {
        Names {
            trust_domain: trust_domain.clone(),
            hosts: self.hosts.keys().filter_map(|node| node.parse().ok()).collect(),
            services: self.policy.services().keys().cloned().collect(),
        }
    }

    /// Takes a stored record; `None` if it is of no concern to watchers.
    ///
    /// # Errors
    /// When a record of the policy is damaged. One of a host is left out, with an error in the log.
    pub fn put(&mut self, key: &str, value: &[u8]) -> Result<Option<Event>, DamagedRecord> {
        if let Some(node) = key.strip_prefix(HOSTS) {
            return Ok(self.put_host(node, value).map(Event::Host));
        }
        if let Some(node) = key.strip_prefix(PLAINTEXT) {
            match decoded(value) {
                Ok(report) => _ = self.plaintext.insert(node.to_owned(), report),
                Err(error) => {
                    error!(node, %error, "a record of connections in clear is damaged and left out")
                }
            }
            return Ok(None);
        }
        if key == AUTHORITY {
            self.trust =
                roots::trust(value).map_err(|reason| DamagedRecord { key: key.to_owned(), reason })?;
            return Ok(Some(Event::Trust(self.trust.clone())));
        }
        if key.starts_with(REMOVED) {
            let refused =
                self.put_removed(value).map_err(|reason| DamagedRecord { key: key.to_owned(), reason })?;
            return Ok(Some(Event::HostRefused(refused)));
        }
        if let Some(changed) = self.servers.put(key, value) {
            return Ok(self.told_of(changed));
        }
        let event = if key == DEFAULTS {
            decoded(value).map(Event::Defaults)
        } else if key == DRAINED {
            decoded(value).map(Event::Drained)
        } else if key.starts_with(RULES) {
            decoded(value).map(Event::Rule)
        } else if key.starts_with(SERVICES) {
            decoded(value).map(Event::Service)
        } else {
            return Ok(None);
        };
        let applied = event.and_then(|event| {
            self.policy.apply(event.clone()).map_err(|error| error.to_string())?;
            Ok(Some(event))
        });
        applied.map_err(|reason| DamagedRecord { key: key.to_owned(), reason })
    }

    /// Takes the end of a record; `None` if it is of no concern to watchers.
    pub fn remove(&mut self, key: &str) -> Option<Event> {
        if let Some(node) = key.strip_prefix(HOSTS) {
            return self.hosts.remove(node).map(|host| Event::HostRemoved(host.node));
        }
        if let Some(node) = key.strip_prefix(REMOVED) {
            // Its certificates have ended long ago: watchers need not be told.
            self.encoded = None;
            self.removed.forget(&node.parse().ok()?);
            return None;
        }
        if let Some(changed) = self.servers.remove(key) {
            self.note_departure(key, &changed);
            return self.told_of(changed);
        }
        if let Some(number) = key.strip_prefix(RULES) {
            let id: RuleId = number.parse().ok()?;
            self.policy.remove_rule(id);
            return Some(Event::RuleRemoved(id.number()));
        }
        let name = key.strip_prefix(SERVICES)?.parse().ok()?;
        self.policy.remove_service(&name);
        Some(Event::ServiceRemoved(name.to_string()))
    }

    fn put_removed(&mut self, value: &[u8]) -> Result<v1::RemovedHost, String> {
        let host: v1::RemovedHost = decoded(value)?;
        let node = host.node.parse().map_err(|error: NameError| error.to_string())?;
        let at = UNIX_EPOCH.checked_add(Duration::from_secs(host.removed_at));
        self.removed.insert(node, at.ok_or("the time of its removal is none")?);
        Ok(host)
    }

    /// Whether any server has a watch stream of this host.
    pub fn is_connected(&self, node: &str) -> bool {
        self.connections.contains_key(node) || self.servers.has(node)
    }

    /// Takes note of whether a host is connected, if that is news. Watchers are not told that one has renewed its
    /// certificate.
    pub fn note_connected(&mut self, node: &str) {
        let connected = self.is_connected(node);
        if connected {
            self.away.remove(node);
            self.lost.remove(node);
        }
        if let Some(host) = self.hosts.get_mut(node)
            && (host.connected != connected || connected && host.lost)
        {
            (host.connected, host.last_seen) = (connected, unix_seconds(SystemTime::now()));
            host.lost = self.lost.contains(node);
            self.moved.insert(node.to_owned());
        }
    }

    /// Takes the services of hosts for dead that have been without a connection for too long.
    pub fn lose_absent(&mut self, now: Instant) {
        for (node, host) in self.hosts.iter_mut().filter(|(_, host)| !(host.connected || host.lost)) {
            let until = *self.away.entry(node.clone()).or_insert(now + RECONNECT_TIME);
            if until <= now {
                host.lost = true;
                self.lost.insert(node.clone());
                self.moved.insert(node.clone());
            }
        }
        // Those who are connected have used up what they were given.
        let hosts = &self.hosts;
        self.away.retain(|node, until| now < *until || hosts.get(node).is_some_and(|host| !host.connected));
    }

    /// Who came or left since this was last asked.
    pub fn take_moved(&mut self) -> Option<Event> {
        let moved = std::mem::take(&mut self.moved);
        let hosts = moved.iter().filter_map(|node| self.hosts.get(node)).map(|host| v1::Presence {
            node: host.node.clone(),
            last_seen: host.last_seen,
            connected: host.connected,
            lost: host.lost,
        });
        let hosts: Vec<_> = hosts.collect();
        (!hosts.is_empty()).then_some(Event::Presences(v1::Presences { hosts }))
    }

    /// What watchers are told of a change among the servers.
    fn told_of(&mut self, changed: Changed) -> Option<Event> {
        let node = match changed {
            Changed::List => return Some(Event::Servers(self.servers.list())),
            Changed::Host(node) => node,
            Changed::Nothing => return None,
        };
        self.note_connected(&node);
        None
    }

    fn note_departure(&mut self, key: &str, changed: &Changed) {
        let departed = match changed {
            Changed::Host(node) if !self.is_connected(node) => node.parse().ok().map(Departed::Host),
            Changed::List => {
                key.strip_prefix(super::records::RUNNING).map(|name| Departed::Server(name.to_owned()))
            }
            _ => None,
        };
        self.departed.extend(departed);
    }

    fn put_host(&mut self, node: &str, value: &[u8]) -> Option<v1::Host> {
        let mut host = v1::Host::decode(value)
            .inspect_err(|error| error!(node, %error, "a record of the catalog is damaged and left out"))
            .ok()?;
        host.connected = self.is_connected(node);
        host.lost = self.lost.contains(node);
        let before = self.hosts.insert(node.to_owned(), host.clone());
        // A host that leaves is told at once, and again when the store has when that was.
        if let Some(before) = before
            && before == (v1::Host { last_seen: before.last_seen, ..host.clone() })
        {
            if before != host {
                self.moved.insert(node.to_owned());
            }
            return None;
        }
        Some(host)
    }
}

fn decoded<M: Message + Default>(value: &[u8]) -> Result<M, String> {
    M::decode(value).map_err(|error| error.to_string())
}
