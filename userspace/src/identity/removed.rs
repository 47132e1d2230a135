//! Hosts that were removed from the mesh, and which of their certificates are refused for that.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{NodeName, PeerIdentity};

/// When each was removed last, in whole seconds. A host that has joined again has certificates that say so, which are
/// accepted. What is compared is said by one record of the store: the clocks of those who sign and verify do not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed(BTreeMap<NodeName, SystemTime>);

impl Removed {
    /// Refuses every certificate that `node` has from before it was removed, `at` that time.
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
        !self.0.is_empty() && peer.host().and_then(|host| self.at(host)).is_some_and(|at| is_before(peer, at))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, SystemTime)> {
        self.0.iter().map(|(node, at)| (node, *at))
    }
}

/// Servers of an earlier version sign without what tells memberships apart.
fn is_before(peer: &PeerIdentity, removed: SystemTime) -> bool {
    peer.joined_after.map_or(peer.made <= removed, |joined_after| joined_after < removed)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::authority::{DEFAULT_LIFETIME, Issue};
    use super::super::{Subject, fixture, peer_identity};
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_removed_host_had_is_refused_and_what_it_gets_later_is_not_whatever_the_clocks_say() {
        let (authority, now) = (fixture::authority(), SystemTime::now());
        let (gone, other): (NodeName, NodeName) = ("gone".parse().unwrap(), "other".parse().unwrap());
        let service = Subject::Service("web".parse().unwrap());
        let workload = Subject::Workload(gone.clone(), "web.service".parse().unwrap());
        let subjects = [Subject::Host(gone.clone()), workload, service];
        let at = UNIX_EPOCH + Duration::from_secs(1_763_000_000);
        let mut removed = Removed::default();
        removed.insert(gone.clone(), at);
        let issue = |subject: &Subject, host: &NodeName, joined_after: SystemTime, made: SystemTime| {
            let issue = Issue {
                holder: Some(host),
                joined_after: Some(joined_after),
                made,
                lifetime: DEFAULT_LIFETIME,
            };
            peer_identity(&fixture::issue_as(&authority, subject.clone(), &issue).chain).unwrap()
        };
        for subject in &subjects {
            for made in [at - MINUTE, at, now - MINUTE, now + MINUTE] {
                for before in [UNIX_EPOCH, at - MINUTE, at - Duration::from_secs(1)] {
                    let peer = issue(subject, &gone, before, made);
                    assert!(removed.refuses(&peer), "{subject}");
                    assert!(!Removed::default().refuses(&peer), "{subject}");
                }
                assert!(!removed.refuses(&issue(subject, &gone, at, made)), "{subject}");
            }
        }
        let elsewhere = issue(&subjects[2], &other, UNIX_EPOCH, now);
        assert!(!removed.refuses(&elsewhere), "the same service of another host");
        let server = issue(&Subject::Server(gone.clone()), &gone, UNIX_EPOCH, now);
        assert!(!removed.refuses(&server), "a server of that name");
    }

    #[test]
    fn what_does_not_say_its_membership_is_judged_by_its_date() {
        let (authority, now) = (fixture::authority(), SystemTime::now());
        let gone: NodeName = "gone".parse().unwrap();
        let mut removed = Removed::default();
        removed.insert(gone.clone(), now);
        for (made, is_refused) in [(now - MINUTE, true), (now, true), (now + MINUTE, false)] {
            let identity = fixture::issue_to(&authority, Subject::Host(gone.clone()), &gone, made);
            assert_eq!(removed.refuses(&peer_identity(&identity.chain).unwrap()), is_refused);
        }
    }
}
