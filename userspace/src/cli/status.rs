//! `murmesh status`. JSON: `{healthy, protection, problems, warnings, role, node, version, trust_domain, spiffe_id,
//! certificate_expires_at, catalog_revision, saved_revision, first_certificate_ends_at, endpoints,
//! contested_addresses, servers, connected_server, interception, traffic, encryption, older_agents, sandbox, refused}`.
//! `older_agents` are `[{pid, version, streams}]`, those that were taken over and still carry connections. `interception`
//! is `{cgroup, bpf_dir, attached, missing, canary_error, map_problems, unheld_services, faults}`, `traffic` has the
//! counters of the running agent, and `encryption` what was and was not encrypted; each is null where it does not apply.
//! `sandbox` is what is left to the daemon, `{uid, capabilities, no_new_privileges, system_calls_filtered, core_dumps,
//! files, descriptors}`. `refused` is how many connections to the daemon's port for others were refused, by reason.
//! `protection` is "protected", "partly" or "not protected", and null of a server.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::encryption::{self, Encryption};
use super::output::{self, Format, relative, rfc3339};
use super::overview::{self, Protection};
use super::{ReadOptions, daemon};
use crate::api::{time_from_unix, v1};
use crate::catalog::Catalog;
use crate::local::{ANY_SOCKET, connect};

/// Arguments of `murmesh status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    read: ReadOptions,
}

#[derive(Serialize)]
struct Status<'a> {
    healthy: bool,
    protection: Option<&'static str>,
    problems: &'a [String],
    warnings: &'a [String],
    role: &'a str,
    node: &'a str,
    version: &'a str,
    trust_domain: &'a str,
    spiffe_id: &'a str,
    certificate_expires_at: Option<String>,
    catalog_revision: u64,
    saved_revision: u64,
    first_certificate_ends_at: Option<String>,
    endpoints: u64,
    contested_addresses: &'a [String],
    servers: &'a [String],
    connected_server: Option<&'a str>,
    interception: Option<Interception<'a>>,
    traffic: Option<Traffic>,
    encryption: Option<Encryption<'a>>,
    older_agents: Vec<OlderAgent<'a>>,
    sandbox: Option<Sandbox<'a>>,
    refused: BTreeMap<&'a str, u64>,
}

/// One that was taken over, and still carries connections.
#[derive(Serialize)]
struct OlderAgent<'a> {
    pid: i32,
    version: &'a str,
    streams: u64,
}

/// What is left to the daemon.
#[derive(Serialize)]
struct Sandbox<'a> {
    uid: u32,
    capabilities: &'a [String],
    no_new_privileges: bool,
    system_calls_filtered: bool,
    core_dumps: bool,
    files: &'a str,
    descriptors: u64,
}

#[derive(Serialize)]
struct Interception<'a> {
    cgroup: &'a str,
    bpf_dir: &'a str,
    attached: &'a [String],
    missing: &'a [String],
    canary_error: Option<&'a str>,
    map_problems: &'a [String],
    unheld_services: &'a [String],
    faults: &'a [String],
}

#[derive(Serialize)]
struct Traffic {
    streams_active: u64,
    streams_total: u64,
    streams_failed: u64,
    bytes_sent: u64,
    bytes_received: u64,
    tunnels_idle: u64,
    tunnel_handshakes: u64,
    missing_records: u64,
    redirected: u64,
    log_lines_lost: u64,
}

impl<'a> From<&'a v1::OlderAgent> for OlderAgent<'a> {
    fn from(agent: &'a v1::OlderAgent) -> Self {
        Self { pid: agent.pid, version: &agent.version, streams: agent.streams }
    }
}

/// Prints how the daemon is doing; fails when something is wrong.
///
/// # Errors
/// When no daemon answers.
pub fn run(arguments: StatusArgs) -> anyhow::Result<ExitCode> {
    let (status, mesh) = daemon::block_on(async {
        let mut daemon = connect(&arguments.read.run_directory.run_dir, ANY_SOCKET, "murmesh daemon").await?;
        let status = daemon.status(v1::StatusRequest {}).await.map_err(local_error)?.into_inner();
        Ok((status, daemon.members(v1::MembersRequest {}).await.map_err(local_error)?.into_inner()))
    })?;
    let now = SystemTime::now();
    let catalog = Catalog::try_from(mesh)?;
    let problems = problems(&status, now);
    let warnings = overview::warnings(&status, Some(&catalog), now);
    match arguments.read.output {
        Format::Json => output::print_json(&Status::new(&status, &problems, &warnings))?,
        Format::Table => output::print(&page(&status, &catalog, &problems, &warnings, now))?,
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A daemon's refusal as the command line shows it: its words alone.
#[expect(clippy::needless_pass_by_value, reason = "used as the function of map_err")]
pub(super) fn local_error(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("the daemon answered: {}", status.message())
}

/// Everything that is wrong, in words.
pub(super) fn problems(status: &v1::StatusResponse, now: SystemTime) -> Vec<String> {
    let mut problems = protection_problems(status, now);
    if status.role == "server" {
        if !status.server_error.is_empty() {
            problems.push(format!(
                "{}: hosts are sent to other servers, and nothing can be changed here; check that etcd runs and has a \
                 quorum",
                status.server_error
            ));
        }
    } else if status.connected_server.is_empty() {
        let reason = if status.server_error.is_empty() { "not connected yet" } else { &status.server_error };
        problems.push(format!(
            "no server answers, the catalog may be old: {reason}; {}",
            countdown(status.first_end, now)
        ));
    } else if !status.server_error.is_empty() {
        problems.push(format!("other hosts may not know what this one serves: {}", status.server_error));
    }
    problems
}

/// Those for which connections may go in clear, or not at all.
fn protection_problems(status: &v1::StatusResponse, now: SystemTime) -> Vec<String> {
    let mut problems = Vec::new();
    if time_from_unix(status.certificate_expires_at).is_none_or(|end| end <= now) {
        problems.push(if status.role == "server" {
            "the server's certificate has expired: no host accepts it; its log says why it has no other"
                .to_owned()
        } else {
            "the certificate has expired: no connection can be carried".to_owned()
        });
    }
    match &status.interception {
        Some(interception) => problems.extend(interception_problems(interception)),
        None if status.role == "agent" => problems.push("connections are not intercepted".to_owned()),
        None => {}
    }
    problems
}

fn protection(status: &v1::StatusResponse, now: SystemTime) -> Protection {
    Protection::of(status, !protection_problems(status, now).is_empty())
}

/// How long connections can be carried without a server.
fn countdown(first_end: u64, now: SystemTime) -> String {
    match time_from_unix(first_end) {
        Some(end) if end > now => {
            format!("connections go on until the first certificate ends, {} ({})", relative(end, now), rfc3339(end))
        }
        _ => "certificates have ended: connections are refused, and strict services stay closed, until a server answers"
            .to_owned(),
    }
}

fn interception_problems(interception: &v1::Interception) -> Vec<String> {
    let mut problems = Vec::new();
    if !interception.missing.is_empty() {
        let hooks = interception.missing.join(", ");
        problems.push(format!("hooks are not attached to {}: {hooks}", interception.cgroup));
    }
    if !interception.canary_error.is_empty() {
        problems.push(format!("a test connection was not intercepted: {}", interception.canary_error));
    }
    problems.extend(interception.map_problems.iter().cloned());
    let fault =
        |fault| format!("the kernel half is not as the agent made it, and is being repaired: {fault}");
    problems.extend(interception.faults.iter().map(fault));
    problems
}

fn page(
    status: &v1::StatusResponse,
    catalog: &Catalog,
    problems: &[String],
    warnings: &[String],
    now: SystemTime,
) -> String {
    let expiry = time_from_unix(status.certificate_expires_at);
    let expiry = expiry.map_or("none".to_owned(), |end| format!("{} ({})", relative(end, now), rfc3339(end)));
    let mut lines = vec![
        ("role", format!("{} {} (version {})", status.role, status.node, status.version)),
        ("identity", status.spiffe_id.clone()),
        ("certificate ends", expiry + &first_end(status, now)),
        ("catalog", format!("revision {}", status.catalog_revision)),
    ];
    if status.role == "server" {
        lines.push(("advertised at", status.servers.join(" ")));
    } else {
        let connected = if status.connected_server.is_empty() { "none" } else { &status.connected_server };
        lines.push(("server", format!("{connected} (of {})", status.servers.join(" "))));
        lines.push(("kept on disk", format!("catalog revision {}", status.saved_revision)));
        lines.push(("endpoints", format!("{} addresses lead through the mesh", status.endpoints)));
    }
    lines.extend(overview::lines(catalog, now));
    if let Some(interception) = &status.interception {
        let (attached, cgroup) = (interception.attached.join(" "), &interception.cgroup);
        lines.push(("interception", format!("{attached} at {cgroup}")));
    }
    for older in &status.older_agents {
        let v1::OlderAgent { pid, version, streams } = older;
        lines.push(("older agent", format!("pid {pid} (version {version}) drains {streams} connections")));
    }
    if let Some(traffic) = &status.traffic {
        lines.extend(traffic_lines(traffic));
    }
    if !status.refused.is_empty() {
        let refused = status.refused.iter().map(|refused| format!("{} {}", refused.count, refused.reason));
        lines.push(("refused", refused.collect::<Vec<_>>().join(", ")));
    }
    if let Some(encryption) = &status.encryption {
        lines.extend(encryption::lines(encryption, now));
    }
    let first = protection_problems(status, now);
    let mut page = protection(status, now).sentence(status, first.first()) + "\n\n";
    for (name, value) in lines {
        let _ = writeln!(page, "{name:<17}{value}");
    }
    for warning in warnings {
        let _ = writeln!(page, "WARNING: {warning}");
    }
    match problems {
        [] => page.push_str("all is well\n"),
        problems => problems.iter().for_each(|problem| {
            let _ = writeln!(page, "PROBLEM: {problem}");
        }),
    }
    page
}

/// Of workloads and services: none ends before it should be renewed, but it is them that connections need.
fn first_end(status: &v1::StatusResponse, now: SystemTime) -> String {
    let sooner =
        time_from_unix(status.first_end).filter(|_| status.first_end < status.certificate_expires_at);
    sooner.map_or_else(String::new, |end| format!("; the first of those in use {}", relative(end, now)))
}

fn traffic_lines(traffic: &v1::Traffic) -> [(&'static str, String); 3] {
    [
        (
            "connections",
            format!(
                "{} open, {} carried, {} failed, {} redirected, {} reset without a record",
                traffic.streams_active,
                traffic.streams_total,
                traffic.streams_failed,
                traffic.redirected,
                traffic.missing_records
            ),
        ),
        ("bytes", format!("{} sent, {} received", traffic.bytes_sent, traffic.bytes_received)),
        ("tunnels", format!("{} idle, {} handshakes", traffic.tunnels_idle, traffic.tunnel_handshakes)),
    ]
}

impl<'a> Status<'a> {
    fn new(status: &'a v1::StatusResponse, problems: &'a [String], warnings: &'a [String]) -> Self {
        let some = |text: &'a str| Some(text).filter(|text| !text.is_empty());
        Self {
            healthy: problems.is_empty(),
            protection: protection(status, SystemTime::now()).name(),
            problems,
            warnings,
            role: &status.role,
            node: &status.node,
            version: &status.version,
            trust_domain: &status.trust_domain,
            spiffe_id: &status.spiffe_id,
            certificate_expires_at: time_from_unix(status.certificate_expires_at).map(rfc3339),
            catalog_revision: status.catalog_revision,
            saved_revision: status.saved_revision,
            first_certificate_ends_at: time_from_unix(status.first_end).map(rfc3339),
            endpoints: status.endpoints,
            contested_addresses: &status.contested_addresses,
            servers: &status.servers,
            connected_server: some(&status.connected_server),
            interception: status.interception.as_ref().map(|found| Interception {
                cgroup: &found.cgroup,
                bpf_dir: &found.bpf_dir,
                attached: &found.attached,
                missing: &found.missing,
                canary_error: some(&found.canary_error),
                map_problems: &found.map_problems,
                unheld_services: &found.unheld_services,
                faults: &found.faults,
            }),
            traffic: status.traffic.as_ref().map(Traffic::from),
            encryption: status.encryption.as_ref().map(Encryption::from),
            older_agents: status.older_agents.iter().map(OlderAgent::from).collect(),
            sandbox: status.sandbox.as_ref().map(Sandbox::from),
            refused: status.refused.iter().map(|refused| (refused.reason.as_str(), refused.count)).collect(),
        }
    }
}

impl<'a> From<&'a v1::Sandbox> for Sandbox<'a> {
    fn from(left: &'a v1::Sandbox) -> Self {
        Self {
            uid: left.uid,
            capabilities: &left.capabilities,
            no_new_privileges: left.no_new_privileges,
            system_calls_filtered: left.system_calls_filtered,
            core_dumps: left.core_dumps,
            files: &left.files,
            descriptors: left.descriptors,
        }
    }
}

impl From<&v1::Traffic> for Traffic {
    fn from(traffic: &v1::Traffic) -> Self {
        Self {
            streams_active: traffic.streams_active,
            streams_total: traffic.streams_total,
            streams_failed: traffic.streams_failed,
            bytes_sent: traffic.bytes_sent,
            bytes_received: traffic.bytes_received,
            tunnels_idle: traffic.tunnels_idle,
            tunnel_handshakes: traffic.tunnel_handshakes,
            missing_records: traffic.missing_records,
            redirected: traffic.redirected,
            log_lines_lost: traffic.log_lines_lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::unix_seconds;
    use std::time::Duration;

    fn agent() -> v1::StatusResponse {
        v1::StatusResponse {
            role: "agent".to_owned(),
            connected_server: "10.0.0.1:9190".to_owned(),
            certificate_expires_at: unix_seconds(SystemTime::now() + Duration::from_secs(60)),
            interception: Some(v1::Interception::default()),
            ..v1::StatusResponse::default()
        }
    }

    #[test]
    fn a_working_agent_has_no_problem() {
        assert_eq!(problems(&agent(), SystemTime::now()), Vec::<String>::new());
    }

    #[test]
    fn a_contested_address_is_a_warning_and_no_problem() {
        let status = v1::StatusResponse { contested_addresses: vec!["172.17.0.1".to_owned()], ..agent() };
        let now = SystemTime::now();
        let (catalog, warnings) = (Catalog::default(), overview::warnings(&status, None, now));
        let page = page(&status, &catalog, &problems(&status, now), &warnings, now);
        assert!(
            page.ends_with(
                "WARNING: another host claimed 172.17.0.1 first; see `murmesh check`\nall is well\n"
            )
        );
    }

    #[test]
    fn a_server_with_an_ended_certificate_has_a_problem() {
        let (now, role) = (SystemTime::now(), "server".to_owned());
        let well = v1::StatusResponse { role, connected_server: String::new(), ..agent() };
        assert_eq!(problems(&well, now), Vec::<String>::new());
        let ended = problems(&well, now + Duration::from_secs(61));
        assert!(
            ended.len() == 1 && ended[0].starts_with("the server's certificate has expired"),
            "{ended:?}"
        );
    }

    #[test]
    fn each_failure_is_a_problem() {
        let now = SystemTime::now();
        let one = |status: v1::StatusResponse| problems(&status, now).len();
        assert_eq!(one(v1::StatusResponse { connected_server: String::new(), ..agent() }), 1);
        assert_eq!(one(v1::StatusResponse { server_error: "too many".to_owned(), ..agent() }), 1);
        assert_eq!(one(v1::StatusResponse { certificate_expires_at: 1, ..agent() }), 1);
        assert_eq!(one(v1::StatusResponse { interception: None, ..agent() }), 1);
        let broken = v1::Interception {
            missing: vec!["connect4".to_owned()],
            canary_error: "refused".to_owned(),
            faults: vec!["map PORTS was changed".to_owned()],
            ..v1::Interception::default()
        };
        assert_eq!(one(v1::StatusResponse { interception: Some(broken), ..agent() }), 3);
    }
}
