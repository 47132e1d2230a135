//! A map of the kernel half that takes nothing for a while.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use murmesh_lab::{Lab, Topology, add_endpoints, remove_endpoint};

use crate::support::{Daemons, greet, json, skipped, strings, wait_for_endpoint, wait_until};

const PORT: u16 = 8581;

/// More than the map has room for: so many ports of each of two addresses that are in no catalog.
fn strangers() -> impl Iterator<Item = SocketAddrV4> {
    let address = |number| Ipv4Addr::new(203, 0, 113, number);
    (1..=2).flat_map(move |number| (1..=u16::MAX).map(move |port| SocketAddrV4::new(address(number), port)))
}

#[test]
fn what_the_kernel_does_not_take_is_shown_and_tried_again_by_itself() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    ensure!(add_endpoints(client, strangers()).is_err(), "the map is full");
    let _listener = greet(service, PORT)?;
    let is_red = || {
        let problems = strings(&json(client, "status")?["problems"]);
        Ok(problems.iter().any(|problem| problem.contains("not up to date")))
    };
    wait_until("status shows that the kernel half is not up to date", is_red)?;
    for stranger in strangers().take(8) {
        remove_endpoint(client, stranger)?;
    }
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    wait_until("status is green again", || Ok(!is_red()?))
}
