//! The changes from what the maps hold to what they must hold, in an order in which every connection meanwhile gets
//! the verdict from before or the one from after, or is refused (or left to the agent) as if its source were unknown.

use std::collections::HashMap;
use std::hash::Hash;

use murmesh_common::{
    self as kernel, CLASS_CHANGES, DenialKey, Endpoint, PolicyState, SocketAddress, UserKey, VerdictKey,
    WorkloadEntry,
};

use super::{CLOSED, NetworkEntry, Tables};

/// One write to a map; `None` removes the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Of `ENDPOINTS`.
    Endpoint(SocketAddress, Option<Endpoint>),
    /// Of `WORKLOADS`.
    Workload(u64, Option<WorkloadEntry>),
    /// Of `USERS`.
    User(UserKey, Option<kernel::SourceClass>),
    /// Of `VERDICTS`.
    Verdict(VerdictKey, Option<kernel::Verdict>),
    /// Of `EGRESS`.
    Egress(NetworkEntry, Option<kernel::Destination>),
    /// Of `PORTS`.
    Port(u16, Option<u32>),
    /// Of `EXCEPTIONS`.
    Exception(NetworkEntry, Option<u32>),
    /// Of `ADDRESSES`.
    Address([u32; 4], Option<u32>),
    /// Of `DENIALS`.
    Denial(DenialKey, Option<u32>),
    /// Of `POLICY`.
    State(PolicyState),
    /// None: waits until no program runs any more that has read an entry from before.
    Wait,
}

/// Takes away the endpoints that are no longer wanted. Apart from the other changes, because the agent keeps its own
/// routes to them until it is done. What is refused from now on because there is no room for it is refused before it
/// is taken away.
pub fn removals(present: &Tables, wanted: &Tables) -> Vec<Change> {
    let gone = present.endpoints.keys().filter(|address| !wanted.endpoints.contains_key(address));
    let gone: Vec<_> = gone.map(|address| Change::Endpoint(*address, None)).collect();
    let refused = wanted.egress.iter().filter(|(_, destination)| **destination == CLOSED);
    if gone.is_empty() || refused.clone().next().is_none() {
        return gone;
    }
    let new = refused.filter(|(entry, destination)| present.egress.get(entry) != Some(destination));
    let new = new.map(|(entry, destination)| Change::Egress(*entry, Some(*destination)));
    let state = PolicyState { egress: 1, ..present.state };
    let state = (present.state != state).then_some(Change::State(state));
    new.chain(state).chain(gone).collect()
}

/// Everything but [`removals`].
///
/// Sources that get another number are first marked as such; then come the verdicts of the new numbers, then the
/// destinations, and when nobody can have seen the old ones, the sources and the end of the old verdicts.
pub fn changes(present: &Tables, wanted: &Tables) -> Vec<Change> {
    let mut changes = Vec::new();
    let (workloads, come_or_gone) = altered(&present.workloads, &wanted.workloads)
        .partition::<Vec<_>, _>(|(cgroup, entry)| entry.is_some() && present.workloads.contains_key(cgroup));
    let users: Vec<_> = altered(&present.users, &wanted.users).collect();
    let marked = WorkloadEntry { class: CLASS_CHANGES, ..WorkloadEntry::default() };
    changes.extend(workloads.iter().map(|(cgroup, _)| Change::Workload(*cgroup, Some(marked))));
    changes.extend(users.iter().map(|(uid, _)| Change::User(*uid, Some(CLASS_CHANGES))));

    let (mut put, removed) =
        altered(&present.verdicts, &wanted.verdicts).partition::<Vec<_>, _>(|(_, verdict)| verdict.is_some());
    put.sort_by_key(|(_, verdict)| verdict.is_some_and(|verdict| verdict.denied == 0));
    changes.extend(put.into_iter().map(|(key, verdict)| Change::Verdict(key, verdict)));
    let endpoints = altered(&present.endpoints, &wanted.endpoints).filter(|(_, endpoint)| endpoint.is_some());
    changes.extend(endpoints.map(|(address, endpoint)| Change::Endpoint(address, endpoint)));
    changes.extend(egress(present, wanted));
    changes.extend(modes(present, wanted));
    if !(workloads.is_empty() && users.is_empty() && removed.is_empty()) {
        changes.push(Change::Wait);
    }
    changes.extend(users.into_iter().map(|(uid, class)| Change::User(uid, class)));
    let (gone, come) = come_or_gone.into_iter().partition::<Vec<_>, _>(|(_, entry)| entry.is_none());
    let workloads = gone.into_iter().chain(workloads).chain(come);
    changes.extend(workloads.map(|(cgroup, entry)| Change::Workload(cgroup, entry)));
    changes.extend(removed.into_iter().map(|(key, verdict)| Change::Verdict(key, verdict)));
    changes
}

/// The longest prefixes come first and the shortest go first, so that no address is ever left to one that was, or
/// will be, hidden by another. An entry for a port hides all that are for any.
fn egress(present: &Tables, wanted: &Tables) -> impl Iterator<Item = Change> {
    let (mut put, mut removed) = altered(&present.egress, &wanted.egress)
        .partition::<Vec<_>, _>(|(_, destination)| destination.is_some());
    let narrowness = |entry: &NetworkEntry| (entry.1.port != 0, entry.0);
    put.sort_by_key(|(entry, _)| std::cmp::Reverse(narrowness(entry)));
    removed.sort_by_key(|(entry, _)| narrowness(entry));
    put.into_iter().chain(removed).map(|(entry, destination)| Change::Egress(entry, destination))
}

/// What lets connections in comes before what refuses them by default, and goes after it. What is said of a group of hosts
/// never changes: it is there before the first host is in the group, and until the last has left it.
fn modes(present: &Tables, wanted: &Tables) -> Vec<Change> {
    let addresses = altered(&present.addresses, &wanted.addresses);
    let addresses = addresses.map(|(address, owner)| Change::Address(address, owner));
    let exceptions = altered(&present.exceptions, &wanted.exceptions);
    let (new, gone) = exceptions.partition::<Vec<_>, _>(|(_, value)| value.is_some());
    let exception = |(entry, value)| Change::Exception(entry, value);
    let ports = altered(&present.ports, &wanted.ports);
    let (put, removed) = ports.partition::<Vec<_>, _>(|(_, value)| value.is_some());
    let port = |(port, value)| Change::Port(port, value);
    let state = (present.state != wanted.state).then_some(Change::State(wanted.state));
    let denials = altered(&present.denials, &wanted.denials);
    let (told, forgotten) = denials.partition::<Vec<_>, _>(|(_, value)| value.is_some());
    let denial = |(key, value)| Change::Denial(key, value);
    let before = told
        .into_iter()
        .map(denial)
        .chain(addresses)
        .chain(new.into_iter().map(exception))
        .chain(put.into_iter().map(port));
    let after = removed.into_iter().map(port).chain(gone.into_iter().map(exception));
    let after = after.chain(forgotten.into_iter().map(denial));
    before.chain(state).chain(after).collect()
}

fn altered<K: Copy + Eq + Hash, V: Copy + PartialEq>(
    present: &HashMap<K, V>,
    wanted: &HashMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> {
    let removed = present.keys().filter(|key| !wanted.contains_key(key)).map(|key| (*key, None));
    let put = wanted.iter().filter(|(key, value)| present.get(key) != Some(value));
    removed.chain(put.map(|(key, value)| (*key, Some(*value))))
}

impl Tables {
    /// Carries out one change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Endpoint(address, value) => put(&mut self.endpoints, address, value),
            Change::Workload(cgroup, value) => put(&mut self.workloads, cgroup, value),
            Change::User(uid, value) => put(&mut self.users, uid, value),
            Change::Verdict(key, value) => put(&mut self.verdicts, key, value),
            Change::Egress(entry, value) => put(&mut self.egress, entry, value),
            Change::Port(port, value) => put(&mut self.ports, port, value),
            Change::Exception(entry, value) => put(&mut self.exceptions, entry, value),
            Change::Address(address, value) => put(&mut self.addresses, address, value),
            Change::Denial(key, value) => put(&mut self.denials, key, value),
            Change::State(state) => self.state = state,
            Change::Wait => {}
        }
    }
}

fn put<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
