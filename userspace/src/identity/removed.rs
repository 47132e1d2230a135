//! Hosts that were removed from the mesh, and which of their certificates are refused for that.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{NodeName, PeerIdentity};

/// When each was removed. A host that has joined again has newer certificates, which are accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed(BTreeMap<NodeName, SystemTime>);

impl Removed {
    /// Refuses every certificate of `node` that was made until `at`.
    pub fn insert(&mut self, node: NodeName, at: SystemTime) {
        self.0.insert(node, at);
    }

    /// Refuses none of `node` any more.
    pub fn forget(&mut self, node: &NodeName) {
        self.0.remove(node);
    }

    /// When `node` was removed last, if it was.
    pub fn at(&self, node: &NodeName) -> Option<SystemTime> {
        self.0.get(node).copied()
    }

    /// Whether the certificate of `peer` is one that a removed host got before.
    pub fn refuses(&self, peer: &PeerIdentity) -> bool {
        // There is hardly ever one, and streams ask.
        !self.0.is_empty() && peer.host().and_then(|host| self.at(host)).is_some_and(|at| peer.made <= at)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, SystemTime)> {
        self.0.iter().map(|(node, at)| (node, *at))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Subject, fixture, peer_identity};
    use super::*;

    #[test]
    fn what_a_removed_host_had_is_refused_and_what_it_gets_later_is_not() {
        let authority = fixture::authority();
        let gone: NodeName = "gone".parse().unwrap();
        let service = Subject::Service("web".parse().unwrap());
        let workload = Subject::Workload(gone.clone(), "web.service".parse().unwrap());
        let subjects = [Subject::Host(gone.clone()), workload, service];
        let issue = |subject: &Subject, host: &NodeName, made: SystemTime| {
            peer_identity(&fixture::issue_to(&authority, subject.clone(), host, made).chain).unwrap()
        };
        let now = SystemTime::now();
        let mut removed = Removed::default();
        removed.insert(gone.clone(), now);
        for subject in &subjects {
            assert!(removed.refuses(&issue(subject, &gone, now)), "{subject}");
            assert!(!removed.refuses(&issue(subject, &gone, now + Duration::from_secs(1))), "{subject}");
            assert!(!Removed::default().refuses(&issue(subject, &gone, now)), "{subject}");
        }
        let other: NodeName = "other".parse().unwrap();
        assert!(!removed.refuses(&issue(&subjects[2], &other, now)), "the same service of another host");
        let server = Subject::Server(gone.clone());
        assert!(!removed.refuses(&issue(&server, &gone, now)), "a server of that name");
    }
}
