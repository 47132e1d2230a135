//! Ends connections in clear that were there before their service became strict, where that is wanted
//! (`--existing reset`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use tracing::{debug, info, warn};

use crate::{
    bpf::wait_for_programs,
    catalog::Listener,
    discovery::{self, Connection, DiscoveryError, ExemptPorts, Resets},
    identity::NodeName,
    policy::{Existing, Mode, Network, Policy},
};

/// Ports of strict services, with whom they let in all the same.
type Strict = BTreeMap<u16, BTreeSet<Network>>;

/// Remembers what was looked at: once is enough, because the kernel half lets nobody in meanwhile.
#[derive(Debug, Default)]
pub struct Resetter {
    done: Strict,
}

impl Resetter {
    /// To be called when the kernel half refuses what `policy` says. Only ports that something of `listeners` listens on
    /// count: the connections that this host makes have local ports, too.
    pub fn follow(
        &mut self,
        policy: &Policy,
        node: &NodeName,
        exempt: &ExemptPorts,
        listeners: &BTreeSet<Listener>,
        own: &BTreeSet<IpAddr>,
    ) {
        let wanted = strict(policy, node, exempt, listeners);
        let new = wanted.iter().filter(|(port, networks)| self.done.get(port) != Some(networks));
        let new: Strict = new.map(|(port, networks)| (*port, networks.clone())).collect();
        self.done = wanted;
        if new.is_empty() {
            return;
        }
        let own = own.clone();
        tokio::task::spawn_blocking(move || {
            // A SYN that was let in just before has become a connection, or one in the making, by then.
            wait_for_programs();
            tell(&new, reset(&new, &own));
        });
    }
}

fn strict(policy: &Policy, node: &NodeName, exempt: &ExemptPorts, listeners: &BTreeSet<Listener>) -> Strict {
    let ports = listeners.iter().map(|listener| listener.address.port());
    let wanted = ports.filter(|port| {
        !exempt.contains(*port)
            && policy.mode_at(node, *port) == Mode::Strict
            && policy.existing_at(node, *port) == Existing::Reset
    });
    let exceptions = |port| policy.service_at(node, port).map(|service| service.exceptions.clone());
    wanted.map(|port| (port, exceptions(port).unwrap_or_default())).collect()
}

fn reset(strict: &Strict, own: &BTreeSet<IpAddr>) -> Result<Resets, DiscoveryError> {
    let mut found = discovery::connections(&strict.keys().copied().collect())?;
    found.retain(|connection| is_refused(connection.local, connection.remote, strict, own));
    for Connection { local, remote, .. } in &found {
        debug!(%local, %remote, "resetting a connection in clear to a strict service");
    }
    discovery::reset(&found)
}

/// Those of the agent for clients of the mesh come from this host, too.
fn is_refused(local: SocketAddr, remote: SocketAddr, strict: &Strict, own: &BTreeSet<IpAddr>) -> bool {
    let ip = remote.ip();
    let is_own = ip.is_loopback() || ip == local.ip() || own.contains(&ip);
    let is_excepted =
        |networks: &BTreeSet<Network>| networks.iter().any(|network| network.covers(&Network::of(ip)));
    !is_own && strict.get(&local.port()).is_some_and(|networks| !is_excepted(networks))
}

fn tell(strict: &Strict, resets: Result<Resets, DiscoveryError>) {
    let ports: Vec<_> = strict.keys().collect();
    match resets {
        Ok(Resets { reset, ended }) => {
            info!(?ports, reset, ended, "connections in clear to strict services reset");
        }
        Err(error) => warn!(
            ?ports,
            "connections in clear to strict services go on until they end, restart the services to end them: {error}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_half_would_refuse_is_reset() {
        let strict: Strict = [(8181, BTreeSet::from(["192.0.2.0/24".parse().expect("a network")]))].into();
        let own = BTreeSet::from([IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])]);
        let is_refused = |local: &str, remote: &str| {
            let address = |text: &str| text.parse().expect("an address");
            is_refused(address(local), address(remote), &strict, &own)
        };
        assert!(is_refused("10.0.0.1:8181", "10.0.0.9:40000"));
        for (local, remote) in [
            ("127.0.0.1:8181", "127.0.0.1:40000"),
            ("10.0.0.1:8181", "127.0.0.1:40000"),
            ("10.0.0.1:8181", "10.0.0.2:40000"),
            ("10.0.0.1:8181", "192.0.2.7:40000"),
            ("10.0.0.1:40000", "10.0.0.9:8181"),
        ] {
            assert!(!is_refused(local, remote), "{local} {remote}");
        }
    }
}
