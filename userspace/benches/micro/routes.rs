//! From the catalog to routes, and routes as every connection asks for them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use divan::{Bencher, black_box};
use murmesh::{
    catalog::{Catalog, Host, Listener, Report},
    discovery::ExemptPorts,
    proxy::{Here, Routes, instances::Loads},
};

/// Endpoints in the mesh.
const ENDPOINTS: [u32; 2] = [1_000, 100_000];

/// Listeners of each host, on all of its one address.
const LISTENERS: u32 = 100;

const FIRST_PORT: u16 = 10_000;

/// A prime: steps of this length through the endpoints meet each of them once.
const STEP: u32 = 7_919;

#[divan::bench(args = ENDPOINTS, sample_count = 20)]
fn catalog_endpoints(bencher: Bencher<'_, '_>, endpoints: u32) {
    let catalog = catalog(endpoints);
    bencher.bench(|| black_box(&catalog).endpoints());
}

#[divan::bench(args = ENDPOINTS, sample_count = 20)]
fn routes_of_catalog(bencher: Bencher<'_, '_>, endpoints: u32) {
    let catalog = catalog(endpoints);
    bencher.bench(|| routes(black_box(&catalog)));
}

#[divan::bench(args = ENDPOINTS)]
fn lookup_of_endpoint(bencher: Bencher<'_, '_>, endpoints: u32) {
    let routes = routes(&catalog(endpoints));
    let mut dialled = dialled(endpoints, FIRST_PORT).into_iter().cycle();
    bencher.bench_local(|| {
        let destination = black_box(dialled.next()).expect("one after the other, without end");
        assert!(routes.get(destination).is_some());
    });
}

#[divan::bench(args = ENDPOINTS)]
fn lookup_of_stranger(bencher: Bencher<'_, '_>, endpoints: u32) {
    let routes = routes(&catalog(endpoints));
    let mut dialled = dialled(endpoints, FIRST_PORT - LISTENERS as u16).into_iter().cycle();
    bencher.bench_local(|| {
        let destination = black_box(dialled.next()).expect("one after the other, without end");
        assert!(routes.get(destination).is_none());
    });
}

fn catalog(endpoints: u32) -> Catalog {
    let hosts = (0..endpoints / LISTENERS).map(host).map(|host| (host.node.clone(), Arc::new(host)));
    Catalog { revision: 1, hosts: hosts.collect(), ..Catalog::default() }
}

fn host(number: u32) -> Host {
    let listener = |number| Listener {
        address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), FIRST_PORT + number),
        ipv6_only: false,
        workload: None,
    };
    let report = Report {
        addresses: vec![address(number)],
        tunnel_port: 9191,
        listeners: (0..LISTENERS as u16).map(listener).collect(),
        ..Report::default()
    };
    let node = format!("host-{number}").parse().expect("a name");
    Host { node, report, last_seen: None, connected: true, lost: false }
}

/// The address of a host.
fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number).into()
}

fn routes(catalog: &Catalog) -> Routes {
    let own = BTreeSet::from([IpAddr::from(Ipv4Addr::new(10, 0, 0, 1))]);
    let (node, trust_domain) = ("here".parse().expect("a name"), "mesh.test".parse().expect("a name"));
    let exempt = ExemptPorts::default();
    let here = Here { node: &node, trust_domain: &trust_domain, addresses: &own, exempt: &exempt };
    Routes::new(catalog, &here, &mut Loads::default(), |_| own.first().copied())
}

/// Every endpoint once, or as many strangers on the same hosts, never two of one host in a row.
fn dialled(endpoints: u32, first_port: u16) -> Vec<SocketAddr> {
    let destination = |number: u32| {
        let port = first_port + (number % LISTENERS) as u16;
        SocketAddr::new(address(number / LISTENERS), port)
    };
    (0..endpoints).map(|number| destination(number * STEP % endpoints)).collect()
}
