//! Taking a host out of the mesh.
//!
//! Its record, its place in the catalog and its share in services go in one transaction, in which `removed/NODE` comes:
//! from then on no agent and no server accepts a certificate of the membership that ends; each certificate says which it
//! is of. Addresses that it claimed are anybody's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

use super::policy::{PolicyChangeError, PolicyRecords};
use super::records::{HOSTS, NODES, PLAINTEXT, REMOVED, SERVICES};
use super::rotation::CONFIRMED;
use super::view::View;
use crate::api::{unix_seconds, v1};
use crate::identity::NodeName;
use crate::policy::Service;
use crate::store::Change;

/// No certificate lives longer than 365 days.
const MEMORY: Duration = Duration::from_secs(366 * 24 * 3600);

impl PolicyRecords {
    /// Removes a host, and answers when that was.
    ///
    /// # Errors
    /// There is no such host, or the store fails.
    pub async fn remove_host(&self, node: &str) -> Result<v1::RemovedHost, PolicyChangeError> {
        let node: NodeName = node.parse()?;
        self.change(|view, _| {
            if !view.hosts.contains_key(node.as_str()) {
                return Err(PolicyChangeError::NoSuchHost(node.clone()));
            }
            let now = SystemTime::now();
            let removed_at = unix_seconds(after_the_last(view.removed.at(&node), now));
            let removed = v1::RemovedHost { node: node.to_string(), removed_at };
            let mut changes = vec![
                Change::Delete(format!("{NODES}{node}")),
                Change::Delete(format!("{HOSTS}{node}")),
                Change::Delete(format!("{CONFIRMED}{node}")),
                Change::Delete(format!("{PLAINTEXT}{node}")),
                Change::Put(format!("{REMOVED}{node}"), removed.encode_to_vec()),
            ];
            changes.extend(services_without(view, &node));
            changes.extend(forgotten(view, now, &node));
            Ok((changes, removed))
        })
        .await
    }
}

/// A service that nobody serves any more keeps its name and its rules.
fn services_without(view: &View, node: &NodeName) -> Vec<Change> {
    let services = view.policy.services().values().filter(|service| service.hosts.contains(node));
    let without = services.map(|service| {
        let mut service = Service::clone(service);
        service.hosts.remove(node);
        Change::Put(format!("{SERVICES}{}", service.name), v1::Service::from(&service).encode_to_vec())
    });
    without.collect()
}

/// Each removal of a host is later than the one before, also where a clock was set back: that tells its memberships
/// apart.
fn after_the_last(removed: Option<SystemTime>, now: SystemTime) -> SystemTime {
    removed.map_or(now, |last| now.max(last + Duration::from_secs(1)))
}

/// Removals so long ago that no certificate from before is left, but for that of `node`, which is removed again.
fn forgotten(view: &View, now: SystemTime, node: &NodeName) -> Vec<Change> {
    let oldest = now.checked_sub(MEMORY).unwrap_or(UNIX_EPOCH);
    let old = view.removed.iter().filter(|(other, at)| *at < oldest && *other != node);
    old.map(|(node, _)| Change::Delete(format!("{REMOVED}{node}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_is_later_than_the_one_before_whatever_the_clock_says() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        assert_eq!(after_the_last(None, now), now);
        assert_eq!(after_the_last(Some(now - hour), now), now);
        for last in [now, now + hour] {
            assert!(after_the_last(Some(last), now) > last);
        }
    }

    #[test]
    fn old_removals_are_forgotten_but_not_that_of_a_host_that_is_removed_again() {
        let (now, mut view) = (SystemTime::now(), View::default());
        for (node, age) in [("again", MEMORY * 2), ("old", MEMORY * 2), ("new", MEMORY / 2)] {
            view.removed.insert(node.parse().unwrap(), now - age);
        }
        let forgotten = forgotten(&view, now, &"again".parse().unwrap());
        assert_eq!(forgotten, [Change::Delete(format!("{REMOVED}old"))]);
    }
}
