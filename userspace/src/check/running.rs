//! Whether the agent on this host runs, and whether connections of this very process are intercepted.

use std::time::{Duration, SystemTime};

use super::{CheckOptions, Finding};
use crate::{
    agent::canary,
    api::{time_from_unix, v1},
    cgroup,
    local::{self, AGENT_SOCKET},
};

const GROUP: &str = "agent";

/// The agent's own account, and a canary from here.
pub async fn check(options: &CheckOptions) -> Vec<Finding> {
    let mut agent = match local::connect(&options.run_dir, &[AGENT_SOCKET], "agent").await {
        Ok(agent) => agent,
        Err(error) => {
            let hint = "start one: `murmesh agent --join TOKEN`; connections of this host are NOT encrypted until then";
            return vec![Finding::warning(GROUP, "running", error.to_string(), hint)];
        }
    };
    let status = match agent.status(v1::StatusRequest {}).await {
        Ok(status) => status.into_inner(),
        Err(status) => {
            let hint = "look at the agent's log";
            return vec![Finding::failed(GROUP, "running", status.message().to_owned(), hint)];
        }
    };
    let mut findings =
        vec![Finding::fine(GROUP, "running", format!("{} of {}", status.node, status.trust_domain))];
    findings.push(server(&status));
    findings.push(certificate(&status));
    findings.extend(status.sandbox.as_ref().map(sandbox));
    if let Some(interception) = &status.interception {
        findings.push(hooks(interception));
        findings.push(own_canary(interception).await);
        findings.push(match interception.canary_error.as_str() {
            "" => Finding::fine(GROUP, "canary of the agent", "went through the hooks to the agent and back"),
            error => Finding::failed(GROUP, "canary of the agent", error, "restart the agent"),
        });
        findings.extend(interception.map_problems.iter().map(|problem| {
            let hint = "until then some connections are refused that the rules allow";
            Finding::failed(GROUP, "maps of the kernel half", problem.clone(), hint)
        }));
        findings.extend(interception.faults.iter().map(|fault| {
            let hint = "the agent repairs it within seconds if it can; its log says when it happened";
            Finding::failed(GROUP, "kernel half", fault.clone(), hint)
        }));
        findings.extend(interception.unheld_services.iter().map(|service| {
            let detail = format!("nothing on this host listens for {service}, which is strict");
            let hint = "start it; a port that is published from a container is forwarded past the kernel half, and reached in clear: publish it on 127.0.0.1 only, or stop publishing it";
            Finding::warning(GROUP, "strict services", detail, hint)
        }));
    }
    if !status.contested_addresses.is_empty() {
        findings.push(Finding::warning(
            GROUP,
            "addresses",
            format!("another host claimed {} first", status.contested_addresses.join(", ")),
            "harmless for a bridge that many hosts have, such as Docker's; else take it off one of the hosts: others do not reach this one by it through the mesh",
        ));
    }
    findings
}

fn server(status: &v1::StatusResponse) -> Finding {
    const NAME: &str = "server";
    if status.connected_server.is_empty() {
        let detail = format!("none of {} answers: {}", status.servers.join(", "), status.server_error);
        let hint = "start the server, or open the way to it; the catalog known so far stays in use";
        return Finding::failed(GROUP, NAME, detail, hint);
    }
    Finding::fine(GROUP, NAME, format!("{} (catalog {})", status.connected_server, status.catalog_revision))
}

fn certificate(status: &v1::StatusResponse) -> Finding {
    const NAME: &str = "certificate";
    let left = time_from_unix(status.certificate_expires_at)
        .and_then(|end| end.duration_since(SystemTime::now()).ok())
        .map(|left| Duration::from_secs(left.as_secs()));
    match left {
        Some(left) => Finding::fine(
            GROUP,
            NAME,
            format!("{}, valid for {}", status.spiffe_id, humantime::format_duration(left)),
        ),
        None => {
            let hint = "it is renewed as soon as a server answers; no tunnel is accepted until then";
            Finding::failed(GROUP, NAME, format!("{} has expired", status.spiffe_id), hint)
        }
    }
}

/// What it would leave to somebody who had it run his code.
fn sandbox(left: &v1::Sandbox) -> Finding {
    const NAME: &str = "sandbox";
    let capabilities =
        if left.capabilities.is_empty() { "none".to_owned() } else { left.capabilities.join(" ") };
    let calls = if left.system_calls_filtered { "filtered" } else { "all, as without the unit" };
    let detail = format!(
        "uid {}; capabilities: {capabilities}; system calls: {calls}; writes files: {}; up to {} descriptors",
        left.uid, left.files, left.descriptors
    );
    if left.core_dumps || !left.no_new_privileges {
        return Finding::warning(
            GROUP,
            NAME,
            detail,
            "it has given up less than it should: restart the agent",
        );
    }
    Finding::fine(GROUP, NAME, detail)
}

fn hooks(interception: &v1::Interception) -> Finding {
    const NAME: &str = "hooks";
    if interception.missing.is_empty() {
        return Finding::fine(
            GROUP,
            NAME,
            format!("{} attached to {}", interception.attached.join(", "), interception.cgroup),
        );
    }
    let detail = format!("{} not attached to {}", interception.missing.join(", "), interception.cgroup);
    Finding::failed(
        GROUP,
        NAME,
        detail,
        "the agent attaches them again within seconds, else restart it; until then connections may be NOT encrypted",
    )
}

/// From this process, if it is where the hooks are.
async fn own_canary(interception: &v1::Interception) -> Finding {
    const NAME: &str = "canary from here";
    let own = cgroup::root().and_then(|root| cgroup::own(&root));
    if let Ok(own) = &own
        && !own.starts_with(&interception.cgroup)
    {
        let detail =
            format!("not tried: this command runs in {}, outside of {}", own.display(), interception.cgroup);
        return Finding::warning(GROUP, NAME, detail, "run it from inside to try it");
    }
    match tokio::task::spawn_blocking(canary::probe).await {
        Ok(Ok(())) => Finding::fine(GROUP, NAME, "went through the hooks to the agent and back"),
        Ok(Err(error)) => {
            let hint = "connections from here are NOT intercepted: run it in the agent's network namespace, or restart the agent";
            Finding::failed(GROUP, NAME, error, hint)
        }
        Err(error) => Finding::failed(GROUP, NAME, error.to_string(), "look at the agent's log"),
    }
}
