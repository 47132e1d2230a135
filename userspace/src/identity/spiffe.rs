//! SPIFFE ids: whom a certificate is for.
//!
//! Source: the SPIFFE-ID standard, section 2.

use std::fmt;
use std::str::FromStr;

use super::name::{NameError, NodeName, ServiceName, TrustDomain, WorkloadName, excerpt};

pub(super) const SCHEME: &str = "spiffe://";

/// What an identity is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// `host/NODE`: the agent of a host.
    Host(NodeName),
    /// `server/NODE`: a server of the mesh.
    Server(NodeName),
    /// `host/NODE/WORKLOAD`: what a host vouches for by itself.
    Workload(NodeName, WorkloadName),
    /// `service/NAME`: a named service, on any of the hosts that are registered for it.
    Service(ServiceName),
}

/// `spiffe://TRUST-DOMAIN/` and the [`Subject`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// The mesh that vouches for it.
    pub trust_domain: TrustDomain,
    /// What it is for.
    pub subject: Subject,
}

impl SpiffeId {
    /// The identity of the agent of `node`.
    pub fn host(trust_domain: TrustDomain, node: NodeName) -> Self {
        Self { trust_domain, subject: Subject::Host(node) }
    }

    /// The identity of the server on `node`.
    pub fn server(trust_domain: TrustDomain, node: NodeName) -> Self {
        Self { trust_domain, subject: Subject::Server(node) }
    }

    /// The machine that holds its key; `None` for a service, which may have several.
    pub fn node(&self) -> Option<&NodeName> {
        self.subject.node()
    }
}

impl Subject {
    /// The machine that holds its key; `None` for a service, which may have several.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Self::Host(node) | Self::Server(node) | Self::Workload(node, _) => Some(node),
            Self::Service(_) => None,
        }
    }

    /// From the path of an id, without the leading '/'.
    fn parse(path: &str) -> Option<Self> {
        let mut segments = path.split('/');
        let (kind, name) = (segments.next()?, segments.next()?);
        let subject = match (kind, segments.next()) {
            ("host", None) => Self::Host(name.parse().ok()?),
            ("host", Some(workload)) => Self::Workload(name.parse().ok()?, workload.parse().ok()?),
            ("server", None) => Self::Server(name.parse().ok()?),
            ("service", None) => Self::Service(name.parse().ok()?),
            _ => return None,
        };
        segments.next().is_none().then_some(subject)
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::SpiffeId(excerpt(text));
        let rest = text.strip_prefix(SCHEME).ok_or_else(error)?;
        let (trust_domain, path) = rest.split_once('/').ok_or_else(error)?;
        let trust_domain = trust_domain.parse().map_err(|_| error())?;
        Ok(Self { trust_domain, subject: Subject::parse(path).ok_or_else(error)? })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}/{}", self.trust_domain, self.subject)
    }
}

/// The path of the id, without the leading '/'.
impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(node) => write!(formatter, "host/{node}"),
            Self::Server(node) => write!(formatter, "server/{node}"),
            Self::Workload(node, workload) => write!(formatter, "host/{node}/{workload}"),
            Self::Service(name) => write!(formatter, "service/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "spiffe://mesh/host/",
            "spiffe:///host/a",
            "spiffe://mesh/host/a/b/c",
            "spiffe://mesh/host/a/",
            "spiffe://mesh/host/a/..",
            "spiffe://mesh/host/a/b_c",
            "spiffe://mesh/host/A",
            "spiffe://mesh//a",
            "spiffe://mesh/user/a",
            "spiffe://mesh/server/a/b",
            "spiffe://mesh/service/a/b",
            "spiffe://mesh/service/",
            "SPIFFE://mesh/host/a",
            "spiffe://me:1/host/a",
            "spiffe://mesh/host/a?x",
            "spiffe://mesh/host/a%20",
            "spiffe://mesh",
            "",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?} was accepted");
        }
    }

    fn subject() -> impl Strategy<Value = Subject> {
        let label = || "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
        let node = move || label().prop_map(|text| text.parse().unwrap());
        let workload = "[ -~]{3,80}".prop_map(|unit| WorkloadName::of_unit(&unit).unwrap());
        prop_oneof![
            node().prop_map(Subject::Host),
            node().prop_map(Subject::Server),
            (node(), workload).prop_map(|(node, workload)| Subject::Workload(node, workload)),
            label().prop_map(|text| Subject::Service(text.parse().unwrap())),
        ]
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_to_itself(domain in "[a-z0-9._-]{1,255}", subject in subject()) {
            let id = SpiffeId { trust_domain: domain.parse().unwrap(), subject };
            prop_assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }

        #[test]
        fn whatever_parses_is_displayed_unchanged(
            text in "(spiffe://)?[a-z0-9/._:@-]{0,20}(/host/|/server/|/service/)?.{0,20}"
        ) {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
