//! `check`, `status` and the other commands that read tell the truth, and say it by their exit status.

use anyhow::{Result, ensure};
use murmesh_lab::{Lab, Topology};
use serde_json::{Value, json as literal};

use crate::support::kernel::detach;
use crate::support::{Daemons, greet, hosts, json, murmesh, skipped, text, wait_for_endpoint, wait_until};

#[test]
fn check_and_status_are_red_while_a_hook_is_off_and_then_green_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let mut daemons = Daemons::server_only(&lab)?;
    daemons.start_agent(client)?;
    let bpf = client.bpf_directory().display().to_string();
    let cgroup = client.cgroup().display().to_string();
    let check = ["check", "--bpf-dir", &bpf, "--cgroup", &cgroup];

    let green = murmesh(client, &check)?;
    let said = text(&green.stdout);
    ensure!(
        green.status.success() && said.contains("√ hooks") && said.contains("√ canary from here"),
        "{said}"
    );
    ensure!(!said.contains('×'), "{said}");
    let page = murmesh(client, &["status"])?;
    let said = text(&page.stdout);
    ensure!(page.status.success() && said.starts_with("fcc00 is PROTECTED: "), "{said}");
    ensure!(said.contains("murmesh00 (leads)") && said.contains("1 connected"), "{said}");

    detach(client, "connect4")?;
    let red = murmesh(client, &check)?;
    let said = text(&red.stdout);
    ensure!(
        red.status.code() == Some(1) && said.contains("× kernel half: hook connect4 was taken off"),
        "{said}"
    );
    let page = murmesh(client, &["status"])?;
    let said = text(&page.stdout);
    ensure!(page.status.code() == Some(1) && said.starts_with("fcc00 is NOT PROTECTED: "), "{said}");
    wait_until("check is green again", || Ok(murmesh(client, &check)?.status.success()))?;
    let status = json(client, "status")?;
    ensure!(status["healthy"] == true && status["interception"]["faults"] == literal!([]), "{status}");
    Ok(())
}

#[test]
fn check_without_an_agent_warns_and_status_says_what_to_start() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let bpf = client.bpf_directory().display().to_string();
    let check = murmesh(client, &["check", "--bpf-dir", &bpf])?;
    let said = text(&check.stdout);
    ensure!(
        check.status.success() && said.contains("‼ running") && said.contains("murmesh agent --join"),
        "{said}"
    );
    let findings: Value =
        serde_json::from_slice(&murmesh(client, &["check", "-o", "json", "--bpf-dir", &bpf])?.stdout)?;
    for finding in findings.as_array().into_iter().flatten() {
        ensure!(keys(finding) == ["detail", "group", "hint", "name", "verdict"], "{finding}");
    }
    for command in ["status", "members", "services"] {
        let output = murmesh(client, &[command])?;
        let said = text(&output.stderr);
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{command}: {}", output.status);
        ensure!(said.contains("--run-dir") && said.contains("start one"), "{said}");
    }
    let token = murmesh(client, &["token", "create"])?;
    ensure!(
        token.status.code() == Some(1) && text(&token.stderr).contains("murmesh server"),
        "{}",
        text(&token.stderr)
    );
    Ok(())
}

#[test]
fn what_the_reading_commands_print_as_json_has_the_documented_shape() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (server, client, service) = (lab.host("murmesh00")?, lab.host("fcc00")?, lab.host("fcs00")?);
    let daemons = Daemons::start(&lab)?;
    let _listener = greet(service, 8181)?;
    wait_for_endpoint(client, service, 8181)?;
    daemons.ask_through_mesh(client, service, 8181)?;

    for host in [server, client] {
        let services = json(host, "services")?;
        let expected = literal!([{
            "host": "fcs00", "address": "0.0.0.0", "port": 8181, "ipv6_only": false, "reachable": true,
            "endpoints": ["10.99.0.20:8181"],
            "service": null, "state": "healthy", "reason": null,
        }]);
        ensure!(services == expected, "{services}");
        let members = json(host, "members")?;
        ensure!(hosts(&members).len() == 2, "{members}");
        let member = &members[1];
        let shape =
            ["addresses", "connected", "last_seen", "listeners", "node", "role", "tunnel_port", "version"];
        ensure!(keys(member) == shape, "{member}");
        let shape = ["addresses", "connected", "last_seen", "node", "role", "version"];
        ensure!(keys(&members[2]) == shape && members[2]["role"] == "leader", "{members}");
        ensure!(
            member["node"] == "fcs00" && member["connected"] == true && member["listeners"] == 1,
            "{member}"
        );
    }
    let status = json(client, "status")?;
    let shape = [
        "catalog_revision",
        "certificate_expires_at",
        "connected_server",
        "contested_addresses",
        "encryption",
        "endpoints",
        "first_certificate_ends_at",
        "healthy",
        "interception",
        "node",
        "older_agents",
        "problems",
        "protection",
        "refused",
        "role",
        "sandbox",
        "saved_revision",
        "servers",
        "spiffe_id",
        "traffic",
        "trust_domain",
        "version",
        "warnings",
    ];
    ensure!(keys(&status) == shape, "{status}");
    ensure!(status["healthy"] == true && status["role"] == "agent" && status["node"] == "fcc00", "{status}");
    ensure!(status["spiffe_id"] == "spiffe://murmesh.internal/host/fcc00", "{status}");
    ensure!(status["traffic"]["redirected"].as_u64() >= Some(1) && status["endpoints"] == 1, "{status}");
    ensure!(
        keys(&status["interception"])
            == [
                "attached",
                "bpf_dir",
                "canary_error",
                "cgroup",
                "faults",
                "map_problems",
                "missing",
                "unheld_services"
            ],
        "{status}"
    );
    let status = json(server, "status")?;
    ensure!(
        status["role"] == "server" && status["healthy"] == true && status["interception"].is_null(),
        "{status}"
    );
    Ok(())
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let wrong: [&[&str]; 7] = [
        &[],
        &["sevrer"],
        &["status", "--nonsense"],
        &["status", "-o", "yaml"],
        &["agent", "--tunnel-port", "70000"],
        &["sidecar", "--upstream", "fcs00"],
        &["agent", "--config", "/does/not/exist"],
    ];
    for arguments in wrong {
        let output = murmesh(client, arguments)?;
        ensure!(
            output.status.code() == Some(2) && !output.stderr.is_empty(),
            "{arguments:?}: {}",
            output.status
        );
    }
    for command in
        ["server", "agent", "sidecar", "token", "status", "members", "services", "check", "completions"]
    {
        ensure!(murmesh(client, &[command, "--help"])?.status.success(), "{command}");
    }
    Ok(())
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys
}
