//! The part of `murmesh status` that says which connections were encrypted and which were not. JSON: `{share,
//! encrypted_to_mesh, encrypted_from_mesh, plaintext_to_mesh, plaintext_from_mesh, plaintext_from_outside,
//! plaintext_refused, services}`. All count TCP connections since the agent was started. `share` is that of the
//! encrypted among those with other hosts of the mesh, from 0 to 1, and null while there are none. `services` is a list
//! of `{port, name, mode, from_mesh, from_outside, last_seen}`, one for each port that was reached in clear.

use std::time::SystemTime;

use serde::Serialize;

use super::output::{relative, rfc3339};
use crate::api::{time_from_unix, v1};

/// As in JSON.
#[derive(Debug, Serialize)]
pub struct Encryption<'a> {
    share: Option<f64>,
    encrypted_to_mesh: u64,
    encrypted_from_mesh: u64,
    plaintext_to_mesh: u64,
    plaintext_from_mesh: u64,
    plaintext_from_outside: u64,
    plaintext_refused: u64,
    services: Vec<Service<'a>>,
}

#[derive(Debug, Serialize)]
struct Service<'a> {
    port: u32,
    name: Option<&'a str>,
    mode: String,
    from_mesh: u64,
    from_outside: u64,
    last_seen: Option<String>,
}

impl<'a> From<&'a v1::Encryption> for Encryption<'a> {
    fn from(encryption: &'a v1::Encryption) -> Self {
        Self {
            share: share(encryption),
            encrypted_to_mesh: encryption.encrypted_to_mesh,
            encrypted_from_mesh: encryption.encrypted_from_mesh,
            plaintext_to_mesh: encryption.plaintext_to_mesh,
            plaintext_from_mesh: encryption.plaintext_from_mesh,
            plaintext_from_outside: encryption.plaintext_from_outside,
            plaintext_refused: encryption.plaintext_refused,
            services: encryption.services.iter().map(Service::from).collect(),
        }
    }
}

impl<'a> From<&'a v1::PlaintextService> for Service<'a> {
    fn from(service: &'a v1::PlaintextService) -> Self {
        Self {
            port: service.port,
            name: Some(service.name.as_str()).filter(|name| !name.is_empty()),
            mode: mode(service),
            from_mesh: service.from_mesh,
            from_outside: service.from_outside,
            last_seen: time_from_unix(service.last_seen).map(rfc3339),
        }
    }
}

fn mode(service: &v1::PlaintextService) -> String {
    match service.mode() {
        v1::Mode::Observe => "observe",
        v1::Mode::Strict => "strict",
        v1::Mode::Permissive | v1::Mode::Unspecified => "permissive",
    }
    .to_owned()
}

/// Of the connections with other hosts of the mesh: those that were encrypted, and all.
fn with_mesh(encryption: &v1::Encryption) -> (u64, u64) {
    let encrypted = encryption.encrypted_to_mesh + encryption.encrypted_from_mesh;
    (encrypted, encrypted + encryption.plaintext_to_mesh + encryption.plaintext_from_mesh)
}

#[expect(clippy::cast_precision_loss, reason = "a share, for people")]
fn share(encryption: &v1::Encryption) -> Option<f64> {
    let (encrypted, all) = with_mesh(encryption);
    (all > 0).then(|| encrypted as f64 / all as f64)
}

/// What a page says of it.
pub fn lines(encryption: &v1::Encryption, now: SystemTime) -> Vec<(&'static str, String)> {
    let (encrypted, all) = with_mesh(encryption);
    let share = share(encryption).map_or("none yet".to_owned(), percent);
    let clear = format!(
        "{} to hosts of the mesh, {} from them, {} from elsewhere; {} refused",
        encryption.plaintext_to_mesh,
        encryption.plaintext_from_mesh,
        encryption.plaintext_from_outside,
        encryption.plaintext_refused
    );
    let mut lines = vec![
        ("encrypted", format!("{share}: {encrypted} of {all} connections with other hosts of the mesh")),
        ("NOT encrypted", clear),
    ];
    lines.extend(encryption.services.iter().map(|service| ("  in clear", line(service, now))));
    lines
}

/// Rounded down: all is only what is all.
fn percent(share: f64) -> String {
    format!("{:.1}%", (share * 1000.0).floor() / 10.0)
}

fn line(service: &v1::PlaintextService, now: SystemTime) -> String {
    let name = if service.name.is_empty() { String::new() } else { format!("{}, ", service.name) };
    let last = time_from_unix(service.last_seen).map_or("unknown".to_owned(), |time| relative(time, now));
    format!(
        "port {} ({name}{}): {} from hosts of the mesh, {} from elsewhere, the last {last}",
        service.port,
        mode(service),
        service.from_mesh,
        service.from_outside
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_encrypted_is_called_so_and_never_rounded_away() {
        let service = v1::PlaintextService {
            port: 8181,
            name: "fortune".to_owned(),
            mode: v1::Mode::Permissive.into(),
            from_outside: 2,
            ..v1::PlaintextService::default()
        };
        let encryption = v1::Encryption {
            encrypted_to_mesh: 99_999,
            plaintext_from_mesh: 1,
            services: vec![service],
            ..v1::Encryption::default()
        };
        let lines = lines(&encryption, SystemTime::now());
        assert_eq!(lines[0].1, "99.9%: 99999 of 100000 connections with other hosts of the mesh");
        assert_eq!(
            lines[1],
            ("NOT encrypted", "0 to hosts of the mesh, 1 from them, 0 from elsewhere; 0 refused".to_owned())
        );
        assert!(lines[2].1.starts_with("port 8181 (fortune, permissive): 0 from hosts of the mesh, 2 from"));
        assert_eq!(share(&v1::Encryption::default()), None);
    }
}
