//! The hosts that were removed from the mesh, as the data path knows them.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::rules::Found;
use crate::identity::{NodeName, Removed};

/// Which hosts, and since when this agent knows.
#[derive(Debug, Default)]
pub struct Removals {
    /// As the catalog has them.
    pub hosts: Arc<Removed>,
    /// When this agent heard of each one's last removal.
    pub heard: HashMap<NodeName, Instant>,
}

impl Removals {
    /// With the hosts of `now`, which this agent has just heard of.
    pub fn followed_by(&self, now: Arc<Removed>) -> Self {
        let heard = now.iter().map(|(node, at)| {
            let is_known = self.hosts.at(node) == Some(at);
            let known = self.heard.get(node).copied().filter(|_| is_known);
            (node.clone(), known.unwrap_or_else(Instant::now))
        });
        Self { heard: heard.collect(), hosts: now }
    }

    /// Whether one of the hosts of a connection that was opened at `since` was removed after that.
    pub fn cut(&self, found: &Found, since: Instant) -> bool {
        found.hosts().into_iter().any(|node| self.heard.get(node).is_some_and(|heard| *heard >= since))
    }
}
