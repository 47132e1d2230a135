//! The third act: a service with several instances, one of which is killed.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Process};
use nix::sys::signal::Signal;

use super::policy::administer;
use super::{CLIENT, DEADLINE, SERVICE, announce, fetch, quote, start_service, title};

/// Beside the one that the other acts know.
const MORE_HOSTS: [&str; 2] = ["fcs01", "fcs02"];

/// `first` runs on `fcs00`. Returns the processes that the act has started.
pub fn failover(lab: &Lab, mut first: Process) -> Result<Vec<Process>> {
    title("Three instances, and one is killed");
    let (server, client) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let mut processes = Vec::new();
    for host in MORE_HOSTS {
        let host = lab.host(host)?;
        processes.push(host.start_agent(&server.create_token()?)?);
        processes.push(start_service(host, &SERVICE, 8181)?);
        client.wait_for_service(host.name(), 8181, DEADLINE)?;
    }
    let hosts = ["fcs00", MORE_HOSTS[0], MORE_HOSTS[1]].join(",");
    administer(server, ["service", "set", "fortune", "--host", &hosts])?;

    announce(lab.host("fcs00")?, "kill -9 socat");
    first.signal(Signal::SIGKILL)?;
    first.wait(DEADLINE)?;
    let fortune = fetch(client, &CLIENT).context("after the instance that it dials was killed")?;
    println!("  The same address as ever, and nobody listens there any more. nc received:");
    quote(&fortune);
    let said = until_shown(client)?;
    println!("  murmesh services, on {}:", client.name());
    quote(&said);
    Ok(processes)
}

/// The connection may be faster than the news.
fn until_shown(client: &Host) -> Result<String> {
    let begun = Instant::now();
    loop {
        let said = client.murmesh(["services"])?;
        if said.contains("nothing listens on the port") {
            return Ok(said);
        }
        ensure!(begun.elapsed() < DEADLINE, "the dead instance is not shown: {said}");
    }
}
