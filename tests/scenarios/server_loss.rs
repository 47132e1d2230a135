//! The server is killed: nothing that it acknowledged is lost, and the mesh goes on.

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Lab, Process, Topology};
use serde_json::Value;

use crate::support::{
    DEADLINE, Daemons, ask, endpoints, greet, greeting, hosts, json, murmesh, skipped, text,
    wait_for_endpoint, wait_for_no_endpoint, wait_until,
};

#[test]
fn what_the_server_acknowledged_survives_kill_9_at_any_moment() -> Result<()> {
    const ROUNDS: u16 = 5;
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { services: u8::try_from(ROUNDS)?, ..Topology::default() })?;
    let (server, client) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    let mut listeners = Vec::new();
    for (round, host) in (0..ROUNDS).zip(lab.hosts().iter().filter(|host| host.name().starts_with("fcs"))) {
        // A token is killed for at once, a join right after its acknowledgement, a report as soon as others have it.
        daemons.token(host)?;
        daemons.kill_server()?;
        daemons.start_server()?;
        daemons.start_agent(host)?;
        daemons.kill_server()?;
        daemons.start_server()?;
        ensure!(
            members(&json(server, "members")?).contains(&host.name().to_owned()),
            "the join of {} is lost",
            host.name()
        );
        listeners.push(greet(host, 8000 + round)?);
        wait_until("the report is acknowledged", || {
            Ok(endpoints(server)?.contains(&format!("{}:{}", host.ipv4(), 8000 + round)))
        })?;
        daemons.kill_server()?;
        daemons.start_server()?;
        let known = endpoints(server)?;
        ensure!(
            known.contains(&format!("{}:{}", host.ipv4(), 8000 + round)),
            "the report of {} is lost: {known:?}",
            host.name()
        );
    }
    for (round, host) in (0..ROUNDS).zip(lab.hosts().iter().filter(|host| host.name().starts_with("fcs"))) {
        wait_for_endpoint(client, host, 8000 + round)?;
        ensure!(daemons.ask_through_mesh(client, host, 8000 + round)? == greeting(host));
    }
    Ok(())
}

#[test]
fn tokens_that_were_handed_out_while_the_server_was_being_killed_all_work() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology { clients: 4, ..Topology::default() })?;
    let server = lab.host("murmesh00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    let mut last = Vec::new();
    for _ in 0..4 {
        // Runs until the server is gone; the kill may come at any moment of a call.
        let loops = server.spawn("sh", ["-c", "while murmesh token create; do :; done"])?;
        loops
            .wait_for_stdout(DEADLINE, |tokens| tokens.iter().filter(|byte| **byte == b'\n').count() >= 3)?;
        daemons.kill_server()?;
        let tokens = String::from_utf8(loops.output(DEADLINE)?.stdout)?;
        last.push(tokens.lines().last().context("some were acknowledged")?.to_owned());
        daemons.start_server()?;
    }
    let clients = lab.hosts().iter().filter(|host| host.name().starts_with("fcc"));
    let agents: Result<Vec<Process>> =
        clients.zip(&last).map(|(host, token)| host.start_agent(token)).collect();
    ensure!(agents?.len() == 4 && members(&json(server, "members")?).len() == 4);
    Ok(())
}

#[test]
fn connections_go_on_without_a_server_and_agents_come_back_by_themselves() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let mut daemons = Daemons::start(&lab)?;
    let listener = greet(service, 8181)?;
    wait_for_endpoint(client, service, 8181)?;
    // A workload gets its certificate with its first connection.
    daemons.ask_through_mesh(client, service, 8181)?;
    daemons.kill_server()?;
    for _ in 0..5 {
        ensure!(daemons.ask_through_mesh(client, service, 8181)? == greeting(service));
    }
    wait_until("status is red", || Ok(json(client, "status")?["healthy"] == false))?;
    let status = murmesh(client, &["status"])?;
    ensure!(
        status.status.code() == Some(1) && text(&status.stdout).contains("no server answers"),
        "{}",
        text(&status.stdout)
    );
    // What changes while there is no server is made known when there is one.
    let _later = greet(service, 8182)?;
    listener.stop(DEADLINE)?;
    daemons.start_server()?;
    wait_until("both agents are connected", || {
        let members = json(server, "members")?;
        Ok(members
            .as_array()
            .is_some_and(|all| all.iter().all(|member| member["connected"] == Value::Bool(true))))
    })?;
    wait_for_endpoint(client, service, 8182)?;
    wait_for_no_endpoint(client, service, 8181)?;
    ensure!(daemons.ask_through_mesh(client, service, 8182)? == greeting(service));
    ensure!(ask(client, "127.0.0.1", 8181).is_err());
    Ok(())
}

fn members(list: &Value) -> Vec<String> {
    let members = hosts(list).into_iter();
    members.filter_map(|member| member["node"].as_str().map(str::to_owned)).collect()
}
