//! Patterns as people write them. There is one grammar, for the command line, the store and the API alike.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{Component, DestinationPattern, IdentityPattern, Network, Outside, Protocol};
use crate::identity::{NameError, NodeName, ServiceName, TrustDomain, excerpt};

/// Why a pattern is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// None of the forms.
    #[error(
        "{0:?} names nobody: write *, host/NODE, host/NODE/WORKLOAD, host/*/WORKLOAD, service/NAME, service/*, or the plain name of a host or service; a destination may end in :PORT, or be a network such as 10.0.0.0/8:443"
    )]
    Form(String),
    /// A '*' beside other characters.
    #[error(
        "{0:?}: '*' stands for a whole component, as in host/*/nginx.service; it cannot be part of a name"
    )]
    PartialWildcard(String),
    /// A component that is no name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A plain name that nobody has.
    #[error(
        "no host and no service is called {0:?}; write host/{0} or service/{0} for one that is yet to come"
    )]
    UnknownName(String),
    /// An id of another mesh.
    #[error("{id:?} is not of this mesh, whose identities begin with spiffe://{trust_domain}/")]
    OtherTrustDomain {
        /// What was written.
        id: String,
        /// The mesh's own.
        trust_domain: TrustDomain,
    },
    /// Not a port.
    #[error("{0:?} is not a port: write a number from 1 to 65535 after the last ':'")]
    Port(String),
    /// Not a network.
    #[error(
        "{0:?} is not a network: write ADDRESS/LENGTH, with :PORT and /tcp or /udp after it if wanted, such as 10.0.0.0/8:443, [2001:db8::/32]:53/udp"
    )]
    Network(String),
    /// Bits behind the prefix.
    #[error(
        "{written:?} has bits set behind its prefix: write {network}, or leave out the length for the one address"
    )]
    HostBits {
        /// What was written.
        written: String,
        /// The network that it is in.
        network: Network,
    },
    /// A network or port where a source is wanted.
    #[error(
        "{0:?} cannot be a source: connections are told apart by who makes them; write host/NODE, host/NODE/WORKLOAD or service/NAME"
    )]
    Source(String),
    /// A protocol behind something in the mesh.
    #[error("{0:?}: the mesh carries TCP only; /tcp and /udp are for networks outside of it")]
    Protocol(String),
}

/// What plain names stand for.
#[derive(Debug, Clone)]
pub struct Names {
    /// The mesh.
    pub trust_domain: TrustDomain,
    /// Every host that has joined.
    pub hosts: BTreeSet<NodeName>,
    /// Every named service.
    pub services: BTreeSet<ServiceName>,
}

impl IdentityPattern {
    /// Reads a source: as [`str::parse`], or a SPIFFE id, or a plain name. A plain name is that of a service if there
    /// is one, else that of a host with everything on it.
    ///
    /// # Errors
    /// A [`PatternError`] that says what to write instead.
    pub fn parse_source(text: &str, names: &Names) -> Result<Self, PatternError> {
        if is_network(text) || text.contains(':') && !text.starts_with("spiffe://") {
            return Err(PatternError::Source(excerpt(text)));
        }
        names.identity(names.path(text)?)
    }
}

impl DestinationPattern {
    /// Reads a destination: as [`str::parse`], or with a SPIFFE id or a plain name before the port. A plain name is
    /// that of a service if there is one, else that of a host with everything on it.
    ///
    /// # Errors
    /// A [`PatternError`] that says what to write instead.
    pub fn parse(text: &str, names: &Names) -> Result<Self, PatternError> {
        if is_network(text) {
            return Ok(Self::Outside(text.parse()?));
        }
        in_mesh(names.path(text)?, |identity| names.identity(identity))
    }
}

impl Names {
    /// The path of a SPIFFE id of this mesh; anything else as it is.
    fn path<'a>(&self, text: &'a str) -> Result<&'a str, PatternError> {
        let Some(rest) = text.strip_prefix("spiffe://") else { return Ok(text) };
        match rest.split_once('/') {
            Some((trust_domain, path)) if trust_domain == self.trust_domain.as_str() => Ok(path),
            _ => Err(PatternError::OtherTrustDomain {
                id: excerpt(text),
                trust_domain: self.trust_domain.clone(),
            }),
        }
    }

    fn identity(&self, text: &str) -> Result<IdentityPattern, PatternError> {
        if text.contains(['/', '*']) || text.is_empty() {
            return text.parse();
        }
        if let Some(name) = text.parse().ok().filter(|name| self.services.contains(name)) {
            return Ok(IdentityPattern::Service(Component::Exactly(name)));
        }
        match text.parse().ok().filter(|node| self.hosts.contains(node)) {
            Some(node) => Ok(IdentityPattern::Workload(Component::Exactly(node), Component::Any)),
            None if text.parse::<NodeName>().is_ok() => Err(PatternError::UnknownName(text.to_owned())),
            None => Err(PatternError::Form(excerpt(text))),
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = PatternError;

    /// `*`, `host/NODE`, `host/NODE/WORKLOAD` or `service/NAME`.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let components: Vec<&str> = text.split('/').collect();
        match components.as_slice() {
            ["*"] => Ok(Self::Any),
            ["host", node] => Ok(Self::Workload(component(node)?, Component::Any)),
            ["host", node, workload] => Ok(Self::Workload(component(node)?, component(workload)?)),
            ["service", name] => Ok(Self::Service(component(name)?)),
            _ if text.contains('*') => Err(PatternError::PartialWildcard(excerpt(text))),
            _ => Err(PatternError::Form(excerpt(text))),
        }
    }
}

impl FromStr for DestinationPattern {
    type Err = PatternError;

    /// An [`IdentityPattern`] with `:PORT` if wanted, or what [`Outside`] is read from.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        if is_network(text) { Ok(Self::Outside(text.parse()?)) } else { in_mesh(text, str::parse) }
    }
}

impl FromStr for Outside {
    type Err = PatternError;

    /// `NETWORK`, with `:PORT` and `/tcp` or `/udp` after it if wanted; for IPv6 with a port `[NETWORK]:PORT`.
    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (rest, protocol) = split_protocol(text);
        let (network, port) = match rest.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((network, ""))) => (network, None),
            Some(Some((network, port))) => (network, Some(port.strip_prefix(':').unwrap_or_default())),
            Some(None) => return Err(PatternError::Network(excerpt(text))),
            None if starts_with_ipv4(rest) => match rest.split_once(':') {
                Some((network, port)) => (network, Some(port)),
                None => (rest, None),
            },
            None => (rest, None),
        };
        Ok(Self { network: network.parse()?, port: port.map(parse_port).transpose()?, protocol })
    }
}

fn in_mesh(
    text: &str,
    identity: impl FnOnce(&str) -> Result<IdentityPattern, PatternError>,
) -> Result<DestinationPattern, PatternError> {
    let (identity_text, port) = match text.rsplit_once(':') {
        Some((_, port)) if split_protocol(port).1.is_some() => {
            return Err(PatternError::Protocol(excerpt(text)));
        }
        Some((identity, port)) => (identity, Some(parse_port(port)?)),
        None => (text, None),
    };
    Ok(DestinationPattern::Mesh { identity: identity(identity_text)?, port })
}

fn split_protocol(text: &str) -> (&str, Option<Protocol>) {
    match text.rsplit_once('/') {
        Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
        Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
        _ => (text, None),
    }
}

fn parse_port(text: &str) -> Result<u16, PatternError> {
    let port = text.parse().ok().filter(|port| *port != 0 && !text.starts_with('+'));
    port.ok_or_else(|| PatternError::Port(excerpt(text)))
}

fn component<T: FromStr<Err = NameError>>(text: &str) -> Result<Component<T>, PatternError> {
    match text {
        "*" => Ok(Component::Any),
        text if text.contains('*') => Err(PatternError::PartialWildcard(excerpt(text))),
        text => Ok(Component::Exactly(text.parse()?)),
    }
}

fn is_network(text: &str) -> bool {
    let address = text.split('/').next().unwrap_or_default();
    text.starts_with('[') || starts_with_ipv4(text) || address.parse::<Ipv6Addr>().is_ok()
}

fn starts_with_ipv4(text: &str) -> bool {
    text.split(['/', ':']).next().is_some_and(|address| address.parse::<Ipv4Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            trust_domain: "mesh.test".parse().unwrap(),
            hosts: ["fcs00", "web"].map(|name| name.parse().unwrap()).into(),
            services: ["fortune", "web"].map(|name| name.parse().unwrap()).into(),
        }
    }

    #[test]
    fn short_forms_stand_for_what_they_name() {
        for (written, meant) in [
            ("*", "*"),
            ("fcs00", "host/fcs00/*"),
            ("fcs00:8181", "host/fcs00/*:8181"),
            ("fortune", "service/fortune"),
            ("web", "service/web"),
            ("host/web", "host/web/*"),
            ("host/*", "host/*/*"),
            ("host/*/nginx.service:80", "host/*/nginx.service:80"),
            ("spiffe://mesh.test/service/web:80", "service/web:80"),
            ("*:5432", "*:5432"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1:443", "192.0.2.1/32:443"),
            ("10.0.0.0/8:53/udp", "10.0.0.0/8:53/udp"),
            ("10.0.0.0/8/tcp", "10.0.0.0/8/tcp"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:db8::/32/udp", "2001:db8::/32/udp"),
            ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
            ("[::1]", "::1/128"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ] {
            let pattern = DestinationPattern::parse(written, &names());
            assert_eq!(pattern.as_ref().map(ToString::to_string).as_deref(), Ok(meant), "{written}");
            assert_eq!(meant.parse(), pattern, "{meant} is not read as it is written");
        }
    }

    #[test]
    fn what_is_not_a_pattern_is_refused_with_what_to_write() {
        for (written, hint) in [
            ("", "host/NODE"),
            ("nobody", "host/nobody or service/nobody"),
            ("Web", "host/NODE"),
            ("host/web*", "whole component"),
            ("ho*t/web", "whole component"),
            ("host/a/b/c", "host/NODE"),
            ("host//x", "--node"),
            ("service/web/x", "host/NODE"),
            ("server/murmesh00", "host/NODE"),
            ("host/web/getty@tty1.service", "_40"),
            ("spiffe://other/service/web", "spiffe://mesh.test/"),
            ("web:0", "65535"),
            ("web:", "65535"),
            ("web:+80", "65535"),
            ("web:80/udp", "TCP only"),
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.0/40", "10.0.0.0/8:443"),
            ("10.0.0.0/8:x", "65535"),
            ("[2001:db8::/32", "[2001:db8::/32]:53/udp"),
            ("[2001:db8::/32]443", "65535"),
        ] {
            let error = DestinationPattern::parse(written, &names()).unwrap_err().to_string();
            assert!(error.contains(hint), "{written}: {error}");
        }
    }

    #[test]
    fn a_source_is_an_identity() {
        let source = |text| IdentityPattern::parse_source(text, &names());
        assert_eq!(source("fcs00").unwrap().to_string(), "host/fcs00/*");
        assert_eq!(source("spiffe://mesh.test/host/fcs00").unwrap().to_string(), "host/fcs00/*");
        for wrong in ["10.0.0.0/8", "fcs00:80", "::/0", "[::]"] {
            assert!(matches!(source(wrong), Err(PatternError::Source(_))), "{wrong}");
        }
    }
}
