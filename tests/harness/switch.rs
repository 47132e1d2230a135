//! The network of a lab: one namespace per host, and one for the bridge that joins them.

use std::fs;

use anyhow::{Context as _, Result};

use crate::namespace::{inside, ip_batch, open};
use crate::record::{HostRecord, Record};

/// The interface of a host.
pub(crate) const INTERFACE: &str = "eth0";

/// Makes namespaces, bridge, cables and addresses. The root namespace gets no interface, address or route.
pub(crate) fn create(record: &Record) -> Result<()> {
    let switch = record.switch_namespace();
    let namespaces = record.hosts.iter().map(|host| host.namespace.as_str()).chain([switch.as_str()]);
    ip_batch(None, &namespaces.clone().map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
    for name in namespaces {
        without_address_detection(name)?;
    }

    // Snooping would drop neighbour discovery until a querier is heard, and a lab has none.
    let mut lines =
        vec!["link add br0 type bridge mcast_snooping 0".to_owned(), "link set br0 up".to_owned()];
    for HostRecord { name, namespace, .. } in &record.hosts {
        lines.push(format!("link add {name} type veth peer name {INTERFACE} netns {namespace}"));
        lines.push(format!("link set {name} master br0 up"));
    }
    ip_batch(Some(&switch), &lines)?;
    record.hosts.iter().try_for_each(connect)
}

fn connect(host: &HostRecord) -> Result<()> {
    let lines = [
        "link set lo up".to_owned(),
        format!("link set {INTERFACE} up"),
        format!("addr add {}/24 dev {INTERFACE}", host.ipv4),
        format!("addr add {}/64 dev {INTERFACE} nodad", host.ipv6),
    ];
    ip_batch(Some(&host.namespace), &lines)
}

/// An address is usable at once, where duplicate address detection would hold it back for a second.
fn without_address_detection(name: &str) -> Result<()> {
    let namespace = open(name)?;
    inside(&namespace, || {
        fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")
            .context("turning duplicate address detection off")
    })
}
