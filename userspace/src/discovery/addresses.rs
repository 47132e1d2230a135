//! The addresses of this host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

use super::DiscoveryError;

/// Lists the addresses of the calling thread's network namespace that others may dial: on an interface that
/// is up, and not loopback, link-local, multicast or unspecified. An address that sits on the loopback
/// interface but is not a loopback address counts: routed addresses are often put there.
///
/// # Errors
/// [`DiscoveryError::Addresses`].
pub fn host_addresses() -> Result<BTreeSet<IpAddr>, DiscoveryError> {
    addresses(others_may_dial)
}

/// Lists those that are link-local, and up.
///
/// # Errors
/// [`DiscoveryError::Addresses`].
pub fn link_local_addresses() -> Result<BTreeSet<IpAddr>, DiscoveryError> {
    addresses(is_link_local)
}

fn addresses(wanted: fn(&IpAddr) -> bool) -> Result<BTreeSet<IpAddr>, DiscoveryError> {
    let addresses = getifaddrs().map_err(|errno| DiscoveryError::Addresses(errno.into()))?;
    Ok(addresses.filter_map(|address| ip_when_up(&address)).filter(wanted).collect())
}

fn ip_when_up(interface: &InterfaceAddress) -> Option<IpAddr> {
    if !interface.flags.contains(InterfaceFlags::IFF_UP) {
        return None;
    }
    let address = interface.address?;
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn others_may_dial(ip: &IpAddr) -> bool {
    !(is_link_local(ip) || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_hosts_pass() {
        let may = |text: &str| others_may_dial(&text.parse().expect("an address"));
        assert!(["10.99.0.2", "192.0.2.1", "2001:db8::1", "fd99::2"].into_iter().all(may));
        assert!(!["127.0.0.1", "127.1.2.3", "169.254.9.9", "224.0.0.1", "0.0.0.0"].into_iter().any(may));
        assert!(!["::1", "fe80::1", "ff02::1", "::"].into_iter().any(may));
    }

    #[test]
    fn what_the_system_lists_is_filtered() {
        let addresses = host_addresses().expect("getifaddrs");
        assert!(addresses.iter().all(others_may_dial), "{addresses:?}");
    }
}
