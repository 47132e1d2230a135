//! Names: trust domains, nodes, and the SPIFFE ids that are made of them.
//!
//! Source: the SPIFFE-ID standard, sections 2.1 (trust domain) and 2.2 (path).

use std::fmt;
use std::str::FromStr;

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID section 2.3: an id is at most 2048 bytes, of which the trust domain may take 255.
const MAX_TRUST_DOMAIN: usize = 255;
/// RFC 1035 section 2.3.4.
const MAX_LABEL: usize = 63;

/// Why a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a trust domain.
    #[error(
        "{0:?} is not a trust domain: use 1 to 255 lower-case letters, digits, '.', '-' and '_', such as mesh.example.org"
    )]
    TrustDomain(String),
    /// Not a node name.
    #[error(
        "{0:?} is not a node name: use 1 to 63 lower-case letters, digits and '-', with no '-' at either end (--node)"
    )]
    Node(String),
    /// Not a SPIFFE id of a host or a server.
    #[error(
        "{0:?} is not the identity of a host or server: expected spiffe://TRUST-DOMAIN/host/NODE or …/server/NODE"
    )]
    SpiffeId(String),
}

/// The name of a mesh: everything it certifies is below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the trust domain itself, which its root certificate bears.
    pub fn root_uri(&self) -> String {
        format!("{SCHEME}{self}")
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let valid = (1..=MAX_TRUST_DOMAIN).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError::TrustDomain(excerpt(text))) }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The name of a host in its mesh: one lower-case DNS label (RFC 1035 section 2.3.1, RFC 1123 section 2.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// The node name that this machine's host name suggests: its first label, in lower case.
    ///
    /// # Errors
    /// When the host name cannot be read or its first label is no node name.
    pub fn of_this_machine() -> Result<Self, NameError> {
        let name = nix::unistd::gethostname().unwrap_or_default();
        let name = name.to_string_lossy().to_ascii_lowercase();
        name.split('.').next().unwrap_or_default().parse()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let valid = (1..=MAX_LABEL).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
            && !text.starts_with('-')
            && !text.ends_with('-');
        if valid { Ok(Self(text.to_owned())) } else { Err(NameError::Node(excerpt(text))) }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What an identity is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The agent of a host.
    Host,
    /// A server of the mesh.
    Server,
}

impl Kind {
    fn segment(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Server => "server",
        }
    }
}

/// `spiffe://TRUST-DOMAIN/host/NODE` or `spiffe://TRUST-DOMAIN/server/NODE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// The mesh that vouches for it.
    pub trust_domain: TrustDomain,
    /// What it is for.
    pub kind: Kind,
    /// The machine that holds its key.
    pub node: NodeName,
}

impl SpiffeId {
    /// The identity of the agent of `node`.
    pub fn host(trust_domain: TrustDomain, node: NodeName) -> Self {
        Self { trust_domain, kind: Kind::Host, node }
    }

    /// The identity of the server on `node`.
    pub fn server(trust_domain: TrustDomain, node: NodeName) -> Self {
        Self { trust_domain, kind: Kind::Server, node }
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::SpiffeId(excerpt(text));
        let mut parts = text.strip_prefix(SCHEME).ok_or_else(error)?.splitn(3, '/');
        let (Some(trust_domain), Some(kind), Some(node)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(error());
        };
        let kind = match kind {
            "host" => Kind::Host,
            "server" => Kind::Server,
            _ => return Err(error()),
        };
        let trust_domain = trust_domain.parse().map_err(|_| error())?;
        let node = node.parse().map_err(|_| error())?;
        Ok(Self { trust_domain, kind, node })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}/{}/{}", self.trust_domain, self.kind.segment(), self.node)
    }
}

/// As much of a wrong name as an error message should carry.
fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
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
            "spiffe://mesh/host/a/b",
            "spiffe://mesh/host/A",
            "spiffe://mesh//a",
            "spiffe://mesh/user/a",
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

    proptest! {
        #[test]
        fn what_is_displayed_parses_to_itself(
            domain in "[a-z0-9._-]{1,255}",
            node in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
            server in any::<bool>(),
        ) {
            let (domain, node): (TrustDomain, NodeName) = (domain.parse().unwrap(), node.parse().unwrap());
            let id = if server { SpiffeId::server(domain, node) } else { SpiffeId::host(domain, node) };
            prop_assert_eq!(id.to_string().parse::<SpiffeId>().unwrap(), id);
        }

        #[test]
        fn whatever_parses_is_displayed_unchanged(text in "(spiffe://)?[a-z0-9/._:@-]{0,20}(/host/|/server/)?.{0,20}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
