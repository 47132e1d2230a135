//! What the kernel half must know to refuse, or report, plain connections from other hosts.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use murmesh_common::{Group, Owner, PortMode, SocketAddress};

use super::egress::entry;
use super::{Full, NetworkEntry, Room, Tables, View};
use crate::identity::NodeName;
use crate::policy::{Mode, Network, Outside, Protocol};

/// Size of the `ADDRESSES` map. Of addresses beyond it connections in clear count as from outside the mesh.
const MAX_ADDRESSES: usize = 65_536;

/// Fills in ports, exceptions and addresses. `groups` are those of the hosts that rules could refuse something.
pub fn put(
    tables: &mut Tables,
    view: &View<'_>,
    groups: &HashMap<&NodeName, Group>,
    room: &Room,
    full: &mut Vec<Full>,
) {
    tables.state.mode = port_mode(view.who.policy.defaults.mode) as u32;
    put_ports(tables, view);
    if tables.exceptions.len() > room.egress {
        full.push(Full {
            map: "EXCEPTIONS",
            room: room.egress,
            wanted: tables.exceptions.len(),
            consequence: "strict services let in none that are excepted",
            option: "--max-egress",
        });
        tables.exceptions.clear();
    }
    let here = view.addresses.iter().map(|address| (address, Owner::Here as u32));
    let mesh = view.mesh.iter().filter(|(address, _)| !view.addresses.contains(address));
    let group = |node: &NodeName| groups.get(node).copied().unwrap_or(0);
    let mesh = mesh.map(|(address, node)| (address, Owner::mesh(group(node))));
    let owned = here.chain(mesh).take(MAX_ADDRESSES);
    tables.addresses = owned.map(|(address, owner)| (key(*address), owner)).collect();
}

/// Exempt ports are so whatever was said of a service on one: nobody is locked out by accident.
fn put_ports(tables: &mut Tables, view: &View<'_>) {
    let mut ports = HashMap::<u16, PortMode>::new();
    for service in view.who.policy.services().values().filter(|service| service.hosts.contains(view.who.node))
    {
        let is_first =
            view.who.policy.service_at(view.who.node, service.port).is_some_and(|first| first == service);
        if !is_first || view.exempt.contains(service.port) {
            continue;
        }
        let mode = match port_mode(view.who.policy.mode_at(view.who.node, service.port)) {
            PortMode::Strict if !service.exceptions.is_empty() => PortMode::StrictWithExceptions,
            mode => mode,
        };
        ports.insert(service.port, mode);
        if mode == PortMode::StrictWithExceptions {
            tables.exceptions.extend(exceptions(service.port, &service.exceptions));
        }
    }
    ports.extend(view.exempt.iter().map(|port| (port, PortMode::Exempt)));
    let ports = ports.into_iter().map(|(port, mode)| (port.to_be(), mode as u32));
    tables.ports = ports.filter(|(_, mode)| *mode != tables.state.mode).collect();
}

fn exceptions(port: u16, networks: &BTreeSet<Network>) -> impl Iterator<Item = (NetworkEntry, u32)> {
    networks.iter().map(move |network| {
        (entry(&Outside { network: *network, port: Some(port), protocol: None }, Protocol::Tcp), 1)
    })
}

/// What is only counted and what is permitted comes in clear, and is reported.
fn port_mode(mode: Mode) -> PortMode {
    match mode {
        Mode::Observe | Mode::Permissive => PortMode::Open,
        Mode::Strict => PortMode::Strict,
    }
}

fn key(address: IpAddr) -> [u32; 4] {
    SocketAddress::from(SocketAddr::new(address, 0)).ip
}
