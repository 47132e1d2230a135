//! The table of this host's listening sockets, kept from dumps and from the kernel half's events.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::ListeningSocket;
use crate::catalog::Listener;
use crate::identity::WorkloadName;

/// Ports that the mesh leaves alone, whoever listens on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExemptPorts(BTreeSet<u16>);

impl Default for ExemptPorts {
    /// SSH, so that no mistake here locks an operator out, and Murmesh's own: server, tunnels, metrics,
    /// redirect. The server's page is on loopback only, which needs no exemption: whoever else has its port is protected.
    fn default() -> Self {
        Self::from_iter([22, 9190, 9191, 9192, 9193, 15001])
    }
}

impl FromIterator<u16> for ExemptPorts {
    fn from_iter<Ports: IntoIterator<Item = u16>>(ports: Ports) -> Self {
        Self(ports.into_iter().collect())
    }
}

impl ExemptPorts {
    /// The usual ones and more.
    #[must_use]
    pub fn with(more: impl IntoIterator<Item = u16>) -> Self {
        let mut ports = Self::default();
        ports.0.extend(more);
        ports
    }

    /// These and more.
    #[must_use]
    pub fn and(&self, more: impl IntoIterator<Item = u16>) -> Self {
        Self(self.0.iter().copied().chain(more).collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }

    /// Whether the mesh leaves this port alone.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }
}

/// Listening sockets by cookie.
///
/// A dump takes time, and a socket may close meanwhile: what was reported closed is not brought back by a
/// dump that still has it, and is forgotten with the first dump that does not.
#[derive(Debug, Clone, Default)]
pub struct Listeners {
    listening: HashMap<u64, ListeningSocket>,
    closed: HashSet<u64>,
}

impl Listeners {
    /// Takes a dump for the truth, but for sockets that are known to be closed.
    pub fn replace(&mut self, dump: Vec<ListeningSocket>) {
        let dumped: HashSet<u64> = dump.iter().map(|socket| socket.cookie).collect();
        self.closed.retain(|cookie| dumped.contains(cookie));
        self.listening = dump
            .into_iter()
            .filter(|socket| !self.closed.contains(&socket.cookie))
            .map(|socket| (socket.cookie, socket))
            .collect();
    }

    /// The kernel half saw the socket begin to listen: the next dump has it. A socket may listen again after
    /// it was closed by `shutdown(2)`, with the same cookie.
    pub fn opened(&mut self, cookie: u64) {
        self.closed.remove(&cookie);
    }

    /// The kernel half saw the socket stop listening.
    pub fn closed(&mut self, cookie: u64) {
        self.listening.remove(&cookie);
        self.closed.insert(cookie);
    }

    /// All of them.
    pub fn sockets(&self) -> impl Iterator<Item = &ListeningSocket> {
        self.listening.values()
    }

    /// What other hosts may reach: without exempt ports, and without listeners that the agent could not reach
    /// for them. It dials over the loopback interface, so a socket bound to another interface never hears it.
    /// `workload` tells who listens.
    #[must_use]
    pub fn public(
        &self,
        exempt: &ExemptPorts,
        mut workload: impl FnMut(&ListeningSocket) -> Option<WorkloadName>,
    ) -> BTreeSet<Listener> {
        self.listening
            .values()
            .filter(|socket| socket.bound_interface.is_none())
            .filter(|socket| is_public(socket.address.ip()) && !exempt.contains(socket.address.port()))
            .map(|socket| Listener {
                address: socket.address,
                ipv6_only: socket.ipv6_only,
                workload: workload(socket),
            })
            .collect()
    }
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn socket(cookie: u64, address: &str) -> ListeningSocket {
        let address = address.parse().expect("an address");
        ListeningSocket {
            cookie,
            address,
            ipv6_only: false,
            bound_interface: None,
            inode: 0,
            cgroup: None,
            uid: 0,
        }
    }

    fn public(listeners: &Listeners) -> Vec<String> {
        let public = listeners.public(&ExemptPorts::default(), |_| None);
        public.iter().map(|listener| listener.address.to_string()).collect()
    }

    #[test]
    fn loopback_link_local_bound_and_exempt_listeners_stay_private() {
        let mut listeners = Listeners::default();
        let mut dump: Vec<_> = [
            "0.0.0.0:8181",
            "127.0.0.1:8182",
            "127.9.9.9:8183",
            "[::1]:8184",
            "[fe80::1]:8185",
            "169.254.1.1:8186",
            "0.0.0.0:22",
            "[::]:9191",
            "[fd99::2]:8187",
        ]
        .into_iter()
        .zip(1..)
        .map(|(address, cookie)| socket(cookie, address))
        .collect();
        dump.push(ListeningSocket { bound_interface: Some(2), ..socket(100, "0.0.0.0:8188") });
        listeners.replace(dump);
        assert_eq!(public(&listeners), ["0.0.0.0:8181", "[fd99::2]:8187"]);
    }

    #[test]
    fn a_port_stays_while_one_of_its_sockets_listens() {
        let mut listeners = Listeners::default();
        listeners.replace(vec![socket(1, "0.0.0.0:80"), socket(2, "0.0.0.0:80")]);
        listeners.closed(1);
        assert_eq!(public(&listeners), ["0.0.0.0:80"]);
        listeners.closed(2);
        assert!(public(&listeners).is_empty());
    }

    #[test]
    fn a_socket_may_listen_again() {
        let mut listeners = Listeners::default();
        listeners.closed(1);
        listeners.opened(1);
        listeners.replace(vec![socket(1, "0.0.0.0:80")]);
        assert_eq!(public(&listeners), ["0.0.0.0:80"]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Dump(BTreeSet<u64>),
        Closed(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![btree_set(0..8_u64, 0..8).prop_map(Step::Dump), (0..8_u64).prop_map(Step::Closed)]
    }

    proptest! {
        /// The reference keeps the whole history: a cookie is listed if the last dump has it and no dump
        /// since it was closed lacks it.
        #[test]
        fn the_table_agrees_with_the_history(steps in vec(step(), 0..30)) {
            let mut listeners = Listeners::default();
            let mut history: Vec<Step> = Vec::new();
            for step in steps {
                match &step {
                    Step::Dump(cookies) => listeners.replace(
                        cookies.iter().map(|cookie| socket(*cookie, "0.0.0.0:80")).collect()),
                    Step::Closed(cookie) => listeners.closed(*cookie),
                }
                history.push(step);
                let listed: BTreeSet<u64> = listeners.listening.keys().copied().collect();
                let expected: BTreeSet<u64> = (0..8).filter(|cookie| listed_by(&history, *cookie)).collect();
                prop_assert_eq!(listed, expected);
            }
        }
    }

    fn listed_by(history: &[Step], cookie: u64) -> bool {
        for step in history.iter().rev() {
            match step {
                // No dump lacked it after this, so its being closed still counts.
                Step::Closed(closed) if *closed == cookie => return false,
                Step::Closed(_) => {}
                Step::Dump(cookies) if !cookies.contains(&cookie) => break,
                Step::Dump(_) => {}
            }
        }
        let last = history.iter().rev().find_map(|step| match step {
            Step::Dump(cookies) => Some(cookies),
            Step::Closed(_) => None,
        });
        last.is_some_and(|cookies| cookies.contains(&cookie))
    }
}
