//! Three servers over etcd: whatever becomes of one of them, connections go on, and so do changes while two are left.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Lab, Steady, Topology};
use nix::sys::signal::Signal;

use crate::support::cluster::{Cluster, PORT, Witness};
use crate::support::{murmesh, skipped, text, wait_until};

fn lab() -> Result<Lab> {
    Lab::new(Topology { servers: 3, ..Topology::default() })
}

/// The figure that docs/operations.md states.
fn tell(fault: &str, writes: Duration, connections: usize) {
    println!(
        "{fault}: writes work again after {writes:.1?}; {connections} connections meanwhile, none failed"
    );
}

#[test]
fn the_leading_server_is_killed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.write(&cluster.servers.clone(), Instant::now())?;
    let witness = Witness::start(&cluster)?;
    let leader = cluster.leader(cluster.servers[0])?.context("one leads")?;
    cluster.kill_server(leader)?;
    let writes = cluster.write(&cluster.others(leader), Instant::now())?;
    cluster.wait_for_leader_after(leader)?;
    let connections = witness.ensure_unharmed(cluster.service)?;
    tell("kill -9 of the leading server", writes, connections);
    cluster.restart(leader)?;
    cluster.wait_until_whole()?;
    cluster.ensure_nothing_lost()
}

#[test]
fn servers_are_upgraded_one_at_a_time_under_load() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab)?;
    let witness = Witness::start(&cluster)?;
    let load = Steady::begin_at(cluster.client, SocketAddr::from((cluster.service.ipv4(), PORT)), 100)?;
    for server in cluster.servers.clone() {
        cluster.stop_server(server)?;
        // The others go on taking changes.
        cluster.write(&cluster.others(server), Instant::now())?;
        cluster.restart(server)?;
        cluster.wait_until_whole()?;
    }
    let outcome = load.end()?;
    println!("three servers, one after the other, 100 connections per second: {outcome:?}");
    outcome.ensure_all_answered()?;
    witness.ensure_unharmed(cluster.service)?;
    cluster.ensure_nothing_lost()
}

#[test]
fn the_leading_member_of_etcd_is_killed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.write(&cluster.servers.clone(), Instant::now())?;
    let witness = Witness::start(&cluster)?;
    let leader = cluster.etcd_leader()?;
    cluster.kill_etcd(leader)?;
    // The server beside it goes on with the other members.
    let writes = cluster.write(&[leader], Instant::now())?;
    let connections = witness.ensure_unharmed(cluster.service)?;
    tell("kill -9 of the leading member of etcd", writes, connections);
    cluster.restart(leader)?;
    cluster.wait_until_whole()?;
    cluster.ensure_nothing_lost()
}

#[test]
fn a_server_is_cut_off_and_comes_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.write(&cluster.servers.clone(), Instant::now())?;
    let witness = Witness::start(&cluster)?;
    let leader = cluster.leader(cluster.servers[0])?.context("one leads")?;
    cluster.lead_etcd_from(leader)?;
    leader.unplug()?;
    let writes = cluster.write(&cluster.others(leader), Instant::now())?;
    cluster.wait_for_leader_after(leader)?;
    let refused = murmesh(leader, &["allow", "fcc00", "fcs00"])?;
    ensure!(text(&refused.stderr).contains("no quorum"), "{}", text(&refused.stderr));
    let connections = witness.ensure_unharmed(cluster.service)?;
    tell("a server with its member of etcd cut off", writes, connections);
    leader.plug_in()?;
    cluster.wait_until_whole()?;
    cluster.ensure_nothing_lost()
}

/// Longer than a server takes to notice, and shorter than others take to count its hosts as lost.
const MOVED: Duration = Duration::from_secs(10);

#[test]
fn hosts_of_a_server_that_is_cut_off_from_etcd_only_go_to_another_one() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start_apart(&lab)?;
    let hosts = [cluster.service, cluster.client];
    let witness = Witness::start(&cluster)?;
    let cut = cluster.server_of(cluster.service)?.context("the agent is connected")?;
    cluster.etcd[cut.name()].signal(Signal::SIGSTOP)?;
    let fault = Instant::now();
    wait_until("hosts are connected to other servers", || {
        let servers = hosts.iter().map(|host| cluster.server_of(host)).collect::<Result<Vec<_>>>()?;
        Ok(servers.iter().all(|server| server.is_some_and(|server| server.name() != cut.name())))
    })?;
    let moved = fault.elapsed();
    ensure!(moved < MOVED, "that took {moved:.1?}");
    let status = murmesh(cut, &["status"])?;
    ensure!(
        !status.status.success() && text(&status.stdout).contains("does not reach its database"),
        "{}",
        text(&status.stdout)
    );
    let writes = cluster.write(&cluster.others(cut), fault)?;
    hosts.iter().try_for_each(|host| cluster.wait_for_written(host))?;
    wait_until("others know that the server is gone", || {
        let members = text(&murmesh(cluster.another(cut)?, &["members"])?.stdout);
        Ok(members.lines().any(|line| line.starts_with(cut.name()) && line.contains(" no ")))
    })?;
    let connections = witness.ensure_unharmed(cluster.service)?;
    println!("hosts of a server that is cut off from etcd are at others after {moved:.1?}");
    tell("a server cut off from etcd", writes, connections);
    cluster.etcd[cut.name()].signal(Signal::SIGCONT)?;
    cluster.wait_until_whole()?;
    wait_until("all is well there", || Ok(murmesh(cut, &["status"])?.status.success()))?;
    cluster.ensure_nothing_lost()
}

#[test]
fn all_servers_are_killed_with_etcd_and_come_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.write(&cluster.servers.clone(), Instant::now())?;
    let witness = Witness::start(&cluster)?;
    for host in cluster.servers.clone() {
        cluster.kill_server(host)?;
        cluster.kill_etcd(host)?;
    }
    wait_until("hosts notice", || Ok(cluster.server_of(cluster.service)?.is_none()))?;
    let status = text(&murmesh(cluster.client, &["status"])?.stdout);
    ensure!(status.contains("no server answers") && status.contains("connections go on until"), "{status}");
    witness.wait_for_more(cluster.service)?;
    let back = Instant::now();
    cluster.restart_all()?;
    let writes = cluster.write(&cluster.servers.clone(), back)?;
    cluster.wait_until_whole()?;
    let connections = witness.ensure_unharmed(cluster.service)?;
    tell("all servers killed with etcd, from their start on", writes, connections);
    cluster.ensure_nothing_lost()
}

#[test]
fn two_of_three_are_killed_and_come_back() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.write(&cluster.servers.clone(), Instant::now())?;
    let witness = Witness::start(&cluster)?;
    let [one, two, left] = cluster.servers[..] else { unreachable!("there are three") };
    for host in [one, two] {
        cluster.kill_server(host)?;
        cluster.kill_etcd(host)?;
    }
    let refused = murmesh(left, &["allow", "fcc00", "fcs00"])?;
    ensure!(
        !refused.status.success() && text(&refused.stderr).contains("no quorum"),
        "{}",
        text(&refused.stderr)
    );
    let token = murmesh(left, &["token", "create"])?;
    ensure!(!token.status.success() && text(&token.stderr).contains("no quorum"), "{}", text(&token.stderr));
    witness.wait_for_more(cluster.service)?;
    // One more member is a majority.
    let back = Instant::now();
    cluster.etcd.insert(two.name().to_owned(), two.start_etcd(&cluster.servers)?);
    let writes = cluster.write(&[left], back)?;
    let connections = witness.ensure_unharmed(cluster.service)?;
    tell("two of three killed, from the start of the second member on", writes, connections);
    cluster.restart(one)?;
    cluster.restart(two)?;
    cluster.wait_until_whole()?;
    cluster.ensure_nothing_lost()
}

#[test]
fn a_server_whose_host_was_wiped_joins_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.write(&cluster.servers.clone(), Instant::now())?;
    let witness = Witness::start(&cluster)?;
    let wiped = cluster.leader(cluster.servers[0])?.context("one leads")?;
    let other = cluster.another(wiped)?;
    let key = fs::read(other.data_directory().join("seal.key"))?;
    cluster.kill_server(wiped)?;
    cluster.kill_etcd(wiped)?;
    let fault = Instant::now();
    fs::remove_dir_all(wiped.data_directory())?;
    let writes = cluster.write(&[other], fault)?;

    // As docs/operations.md says.
    let listed = other.etcdctl(&[other], "member", &["list"])?;
    let line = listed.lines().find(|line| line.contains(wiped.name())).context("it is a member")?;
    let id = line.split(',').next().context("its id comes first")?;
    let peer = format!("--peer-urls=http://{}:2380", wiped.ipv4());
    // Members change only once the others have been connected for five seconds.
    for change in [vec!["remove", id], vec!["add", wiped.name(), &peer]] {
        wait_until("the cluster can be changed", || Ok(other.etcdctl(&[other], "member", &change).is_ok()))?;
    }
    fs::create_dir_all(wiped.data_directory())?;
    fs::write(wiped.data_directory().join("seal.key"), key)?;
    let mut etcd = wiped.etcd_command(&cluster.servers)?;
    etcd.args(["--initial-cluster-state", "existing"]);
    cluster.etcd.insert(wiped.name().to_owned(), murmesh_lab::Process::spawn(&mut etcd)?);
    wiped.wait_listening(2379, DEADLINE)?;
    cluster.restart(wiped)?;
    cluster.wait_until_whole()?;

    let connections = witness.ensure_unharmed(cluster.service)?;
    tell("a server's host wiped", writes, connections);
    // It is a full member: the cluster does without another one.
    cluster.kill_etcd(other)?;
    cluster.write(&[wiped], Instant::now())?;
    cluster.ensure_nothing_lost()
}
