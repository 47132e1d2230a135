//! Both ends see the addresses of a plain connection, by whichever call they ask.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Mesh};
use serde::Deserialize;

const PORT: u16 = 8400;

/// What `murmesh-probe` prints for its step `names`.
#[derive(Debug, Deserialize)]
struct Names {
    accepted: Option<SocketAddr>,
    peer: SocketAddr,
    local: SocketAddr,
}

/// What the client and the service see of one connection.
struct Seen {
    client: Names,
    service: Names,
}

/// A service on `listens_on`, and a client that dials `dialled` with more `options`.
fn connection(mesh: &Mesh, listens_on: IpAddr, dialled: IpAddr, options: &[&str]) -> Result<Seen> {
    let address = SocketAddr::new(listens_on, PORT).to_string();
    let service = mesh.service()?.probe(["listen", &address, "names", "expect=x", "send=y", "end"])?;
    service.wait_for_line("listening", DEADLINE)?;
    mesh.wait_carried(&[SocketAddr::new(dialled.to_canonical(), PORT)])?;

    let destination = SocketAddr::new(dialled, PORT).to_string();
    let arguments = ["connect", &destination, "send=x", "expect=y", "names"];
    let client = mesh.client()?.probe(arguments.iter().chain(options))?.succeed(DEADLINE)?;
    let seen = Seen { client: names(&client)?, service: names(&service.succeed(DEADLINE)?)? };
    mesh.wait_not_carried(SocketAddr::new(dialled.to_canonical(), PORT))?;
    Ok(seen)
}

fn names(said: &str) -> Result<Names> {
    let line = said.lines().find(|line| line.starts_with('{')).context("no names were printed")?;
    Ok(serde_json::from_str(line)?)
}

fn mapped(host: &Host) -> IpAddr {
    host.ipv4().to_ipv6_mapped().into()
}

/// `address` as a socket of the same family as `like` shows it.
fn in_family_of(like: IpAddr, address: IpAddr) -> IpAddr {
    match (like, address) {
        (IpAddr::V6(_), IpAddr::V4(v4)) => v4.to_ipv6_mapped().into(),
        (IpAddr::V4(_), IpAddr::V6(v6)) => v6.to_canonical(),
        _ => address,
    }
}

#[test]
fn both_ends_see_real_addresses_over_every_family_and_listener_blocking_or_not() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (service, client) = (mesh.service()?, mesh.client()?);
    let [any4, any6]: [IpAddr; 2] = ["0.0.0.0".parse()?, "::".parse()?];
    let (v4, v6) = (IpAddr::from(service.ipv4()), IpAddr::from(service.ipv6()));
    let cases = [
        (any4, v4),
        (any4, mapped(service)),
        (v4, v4),
        (v4, mapped(service)),
        (any6, v4),
        (any6, mapped(service)),
        (any6, v6),
        (v6, v6),
    ];
    let mut carried = 0;
    for (listens_on, dialled) in cases {
        for options in [vec![], vec!["--nonblocking"]] {
            let seen = connection(&mesh, listens_on, dialled, &options)?;
            let client_ip =
                if dialled == v6 { IpAddr::from(client.ipv6()) } else { IpAddr::from(client.ipv4()) };
            let Names { peer, local, .. } = seen.client;
            ensure!(peer == SocketAddr::new(dialled, PORT), "{dialled}: the client's peer is {peer}");
            ensure!(local.ip() == in_family_of(dialled, client_ip), "{dialled}: the client is {local}");

            let expected = SocketAddr::new(in_family_of(listens_on, client_ip), local.port());
            let Names { accepted, peer, local } = seen.service;
            let case = format!("a listener on {listens_on}, dialled as {dialled}");
            ensure!(accepted == Some(expected), "{case}: accept says {accepted:?}, not {expected}");
            ensure!(peer == expected, "{case}: getpeername says {peer}, not {expected}");
            let own = SocketAddr::new(in_family_of(listens_on, dialled), PORT);
            ensure!(local == own, "{case}: getsockname says {local}, not {own}");
            carried += 1;
        }
    }
    mesh.ensure_carried(carried)
}

#[test]
fn a_client_keeps_the_source_address_that_it_bound() -> Result<()> {
    let Some(mesh) = Mesh::start(1, 1)? else { return Ok(()) };
    let (service, client) = (mesh.service()?, mesh.client()?);
    let cases: [(IpAddr, IpAddr); 3] = [
        (service.ipv4().into(), client.ipv4().into()),
        (service.ipv6().into(), client.ipv6().into()),
        (mapped(service), mapped(client)),
    ];
    // Another port each time: the one before is in TIME_WAIT.
    for ((dialled, bound), port) in cases.into_iter().zip(45678..) {
        let bound = SocketAddr::new(bound, port);
        let seen = connection(&mesh, "::".parse()?, dialled, &["--from", &bound.to_string()])?;
        ensure!(seen.client.local == bound, "bound {bound}, the client is {}", seen.client.local);
        let expected = SocketAddr::new(in_family_of("::".parse()?, bound.ip()), bound.port());
        ensure!(
            seen.service.accepted == Some(expected),
            "bound {bound}, accepted {:?}",
            seen.service.accepted
        );
        ensure!(seen.service.peer == expected, "bound {bound}, the service's peer is {}", seen.service.peer);
    }
    mesh.ensure_carried(3)
}
