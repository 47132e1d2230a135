//! A map of the kernel half that takes nothing for a while.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use murmesh_lab::{Host, Lab, Topology, add_endpoints};

use crate::support::{Daemons, greet, json, skipped, strings, wait_for_endpoint, wait_until};

const PORT: u16 = 8581;

/// More than the map has room for: so many ports of each of two addresses that are in no catalog.
fn strangers() -> impl Iterator<Item = SocketAddrV4> {
    let address = |number| Ipv4Addr::new(203, 0, 113, number);
    (1..=2).flat_map(move |number| (1..=u16::MAX).map(move |port| SocketAddrV4::new(address(number), port)))
}

#[test]
fn a_map_that_somebody_fills_is_shown_and_put_right_and_what_did_not_fit_is_there() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    ensure_full(client)?;
    let _listener = greet(service, PORT)?;
    let is_red = || Ok(!strings(&json(client, "status")?["problems"]).is_empty());
    // It may be right again already.
    wait_until("status shows that the kernel half is not as it should be", || {
        ensure_full(client)?;
        is_red()
    })?;
    wait_for_endpoint(client, service, PORT)?;
    daemons.ask_through_mesh(client, service, PORT)?;
    wait_until("status is green again", || Ok(!is_red()?))
}

fn ensure_full(host: &Host) -> Result<()> {
    ensure!(add_endpoints(host, strangers()).is_err(), "the map has room for all");
    Ok(())
}
