//! The part of `murmesh status` that says in plain words what state host and mesh are in, and what to do next.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::output::relative;
use crate::api::v1;
use crate::catalog::Catalog;
use crate::policy::Mode;

/// What the daemon does for the mesh at this moment, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Connections with other hosts of the mesh are encrypted, as was just tried.
    Protected,
    /// They are, but some others were seen in clear.
    Partly,
    /// They may not be.
    NotProtected,
    /// It has no connections to protect: a server.
    DoesNotApply,
}

/// With other hosts of the mesh.
fn in_clear(encryption: &v1::Encryption) -> u64 {
    encryption.plaintext_to_mesh + encryption.plaintext_from_mesh
}

impl Protection {
    /// Of the host of an agent with these `problems` of its interception or its certificate.
    pub fn of(status: &v1::StatusResponse, broken: bool) -> Self {
        let in_clear = status
            .encryption
            .as_ref()
            .is_some_and(|encryption| encryption.plaintext_to_mesh + encryption.plaintext_from_mesh > 0);
        match status.role.as_str() {
            "server" => Self::DoesNotApply,
            _ if broken || status.catalog_revision == 0 => Self::NotProtected,
            _ if in_clear => Self::Partly,
            _ => Self::Protected,
        }
    }

    /// As JSON has it; `None` where it does not apply.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Protected => Some("protected"),
            Self::Partly => Some("partly"),
            Self::NotProtected => Some("not protected"),
            Self::DoesNotApply => None,
        }
    }

    /// For the first line of a page.
    pub fn sentence(self, status: &v1::StatusResponse, first_problem: Option<&String>) -> String {
        let node = &status.node;
        match self {
            Self::Protected if status.role == "sidecar" => format!(
                "{node} is PROTECTED where programs dial the sidecar: what it carries is encrypted, as far as was just tried"
            ),
            Self::Protected => format!(
                "{node} is PROTECTED: the hooks are in place, a test connection went through them just now, and connections \
                 with other hosts of the mesh are encrypted"
            ),
            Self::Partly => format!(
                "{node} is PROTECTED, but {} connections with hosts of the mesh went in clear, to exempt ports such as SSH \
                 or otherwise; `murmesh observe --verdict plaintext` shows the last",
                status.encryption.as_ref().map_or(0, in_clear)
            ),
            Self::NotProtected => match first_problem {
                Some(problem) => format!("{node} is NOT PROTECTED: {problem}"),
                None => format!("{node} is NOT PROTECTED YET: no server has told what the mesh is"),
            },
            Self::DoesNotApply => format!("{node} serves the mesh {}", status.trust_domain),
        }
    }
}

/// Servers, hosts and services, as this daemon knows them.
pub fn lines(catalog: &Catalog, now: SystemTime) -> Vec<(&'static str, String)> {
    let servers = catalog.servers.iter().map(|server| {
        let state = match (server.leader, server.connected) {
            (true, _) => "leads".to_owned(),
            (false, true) => "runs".to_owned(),
            (false, false) => away(server.last_seen, now),
        };
        format!("{} ({state})", server.node)
    });
    let servers: Vec<_> = servers.collect();
    let mut lines = Vec::new();
    if !servers.is_empty() {
        lines.push(("servers", servers.join(", ")));
    }
    let connected = catalog.hosts.values().filter(|host| host.connected).count();
    lines.push(("hosts", format!("{} in the mesh, {connected} connected", catalog.hosts.len())));
    let services = services(catalog);
    if services.is_empty() {
        lines.push(("services", format!("{}, none has a name", listeners(catalog))));
    } else {
        lines.push(("services", format!("{}, and by name:", listeners(catalog))));
        lines.extend(services.into_iter().map(|service| ("", service.line())));
    }
    lines
}

fn listeners(catalog: &Catalog) -> String {
    let count: usize = catalog.hosts.values().map(|host| host.report.listeners.len()).sum();
    if count == 1 { "1 listener".to_owned() } else { format!("{count} listeners") }
}

fn away(last_seen: Option<SystemTime>, now: SystemTime) -> String {
    last_seen.map_or("never seen".to_owned(), |seen| format!("AWAY, last seen {}", relative(seen, now)))
}

/// A named service.
struct Named {
    name: String,
    mode: Mode,
    well: usize,
    /// Instances that are not, with why.
    unwell: BTreeMap<String, String>,
}

impl Named {
    fn line(&self) -> String {
        let all = self.well + self.unwell.len();
        let unwell: Vec<_> = self.unwell.iter().map(|(node, why)| format!("; {node}: {why}")).collect();
        format!("{}, {}: {} of {all} instances healthy{}", self.name, self.mode, self.well, unwell.concat())
    }
}

fn services(catalog: &Catalog) -> Vec<Named> {
    let named = catalog.policy.services().values().map(|service| {
        let mut named = Named {
            name: service.name.to_string(),
            mode: service.mode.unwrap_or(catalog.policy.defaults.mode),
            well: 0,
            unwell: BTreeMap::new(),
        };
        for (node, _, unavailable) in catalog.instances(service) {
            match unavailable {
                None => named.well += 1,
                Some(why) => _ = named.unwell.insert(node.to_string(), why.name().to_owned()),
            }
        }
        named
    });
    named.collect()
}

/// What to look at, each with the next command. None of it keeps connections from being protected.
pub fn warnings(status: &v1::StatusResponse, catalog: Option<&Catalog>, now: SystemTime) -> Vec<String> {
    let mut warnings = Vec::new();
    if !status.contested_addresses.is_empty() {
        let list = status.contested_addresses.join(", ");
        warnings.push(format!("another host claimed {list} first; see `murmesh check`"));
    }
    for service in status.interception.iter().flat_map(|interception| &interception.unheld_services) {
        warnings.push(format!("nothing listens for the strict service {service}; see `murmesh check`"));
    }
    let lost = status.traffic.as_ref().map_or(0, |traffic| traffic.log_lines_lost);
    if lost > 0 {
        warnings.push(format!("{lost} lines of the log were dropped: nobody reads them fast enough"));
    }
    let Some(catalog) = catalog else { return warnings };
    for service in services(catalog).iter().filter(|service| service.well == 0) {
        let name = &service.name;
        warnings.push(format!(
            "nobody serves {name}: connections to it are refused; `murmesh services` tells why"
        ));
    }
    let lost: Vec<_> =
        catalog.hosts.values().filter(|host| host.lost).map(|host| host.node.to_string()).collect();
    if !lost.is_empty() {
        let list = lost.join(", ");
        warnings.push(format!(
            "gone: {list}; `murmesh members` tells since when, `murmesh host remove` is for good"
        ));
    }
    for server in catalog.servers.iter().filter(|server| !server.connected) {
        let away = away(server.last_seen, now);
        warnings.push(format!("server {} is {away}; start it: `murmesh server` there", server.node));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        catalog::{Host, Listener, Report, Server},
        policy::{Policy, Service},
    };

    fn catalog() -> Catalog {
        let listener = Listener { address: ([0, 0, 0, 0], 80).into(), ipv6_only: false, workload: None };
        let report = Report { listeners: vec![listener], tunnel_port: 9191, ..Report::default() };
        let host = |node: &str, connected: bool| {
            let node: crate::identity::NodeName = node.parse().expect("a name");
            let (report, lost) = (report.clone(), !connected);
            (node.clone(), Arc::new(Host { node, report, last_seen: None, connected, lost }))
        };
        let mut policy = Policy::default();
        let nodes = ["a", "b"].map(|node| node.parse().expect("a name"));
        policy.put_service(Service::new("shop".parse().expect("a name"), nodes, 80));
        let server = |node: &str, connected, leader| Server {
            node: node.parse().expect("a name"),
            addresses: Vec::new(),
            version: String::new(),
            last_seen: None,
            connected,
            leader,
        };
        Catalog {
            revision: 1,
            hosts: [host("a", true), host("b", false)].into(),
            policy: policy.into(),
            servers: [server("one", true, true), server("two", false, false)].into(),
            ..Catalog::default()
        }
    }

    fn agent() -> v1::StatusResponse {
        v1::StatusResponse {
            role: "agent".to_owned(),
            node: "a".to_owned(),
            catalog_revision: 1,
            ..v1::StatusResponse::default()
        }
    }

    #[test]
    fn servers_hosts_and_services_are_told_with_their_health() {
        let lines = lines(&catalog(), SystemTime::now());
        assert_eq!(
            lines,
            [
                ("servers", "one (leads), two (never seen)".to_owned()),
                ("hosts", "2 in the mesh, 1 connected".to_owned()),
                ("services", "2 listeners, and by name:".to_owned()),
                ("", "shop, permissive: 1 of 2 instances healthy; b: lost".to_owned()),
            ]
        );
        let warnings = warnings(&agent(), Some(&catalog()), SystemTime::now());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with("gone: b;") && warnings[1].starts_with("server two is never seen"));
    }

    #[test]
    fn protected_is_only_what_was_found_to_be() {
        let of = |status: &v1::StatusResponse, broken| Protection::of(status, broken);
        assert_eq!(of(&agent(), false), Protection::Protected);
        assert_eq!(of(&agent(), true), Protection::NotProtected);
        let without_catalog = v1::StatusResponse { catalog_revision: 0, ..agent() };
        assert_eq!(of(&without_catalog, false), Protection::NotProtected);
        let encryption = v1::Encryption { plaintext_from_mesh: 1, ..v1::Encryption::default() };
        let in_clear = v1::StatusResponse { encryption: Some(encryption), ..agent() };
        assert_eq!(of(&in_clear, false), Protection::Partly);
        let server = v1::StatusResponse { role: "server".to_owned(), ..agent() };
        assert_eq!(of(&server, false).name(), None);
    }
}
