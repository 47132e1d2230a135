//! Taking a host out of the mesh.
//!
//! Its record, its place in the catalog and its share in services go in one transaction, in which `removed/NODE` comes:
//! from then on no agent and no server accepts a certificate that was made for it before. Addresses that it claimed
//! are anybody's.

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
            let removed = v1::RemovedHost { node: node.to_string(), removed_at: unix_seconds(now) };
            let mut changes = vec![
                Change::Delete(format!("{NODES}{node}")),
                Change::Delete(format!("{HOSTS}{node}")),
                Change::Delete(format!("{CONFIRMED}{node}")),
                Change::Delete(format!("{PLAINTEXT}{node}")),
                Change::Put(format!("{REMOVED}{node}"), removed.encode_to_vec()),
            ];
            changes.extend(services_without(view, &node));
            changes.extend(forgotten(view, now));
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

/// Removals so long ago that no certificate from before is left.
fn forgotten(view: &View, now: SystemTime) -> Vec<Change> {
    let oldest = now.checked_sub(MEMORY).unwrap_or(UNIX_EPOCH);
    let old = view.removed.iter().filter(|(_, at)| *at < oldest);
    old.map(|(node, _)| Change::Delete(format!("{REMOVED}{node}"))).collect()
}
