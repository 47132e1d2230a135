//! Join tokens: one pasteable string that lets one host into a mesh, once.
//!
//! Form: `murmesh1.` and base64url (RFC 4648 section 5, no padding) of: secret (32 bytes), SHA-256 of the
//! root certificate (32), expiry (seconds since the Unix epoch, 8, big endian), trust domain, number of
//! servers (1), servers; each text is preceded by its length in one byte. Nothing may follow.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

use super::TrustDomain;

/// What every join token begins with.
pub const PREFIX: &str = "murmesh1.";
const MAX_SERVERS: usize = 8;
/// Longer than the longest token: all lengths at their largest, in base64.
const MAX_TEXT: usize = 4096;

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error(
        "this is not a join token (those begin with {PREFIX:?}); make one with `murmesh token create` on a server"
    )]
    Prefix,
    /// It is damaged.
    #[error(
        "the join token is damaged ({0}); copy it again as one line, or make a new one with `murmesh token create`"
    )]
    Damaged(&'static str),
}

/// The address of a server as agents dial it: `host:port`, `192.0.2.1:9190` or `[2001:db8::1]:9190`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerAddress(String);

/// Not the address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a server address: expected HOST:PORT, such as 192.0.2.1:9190 or [2001:db8::1]:9190")]
pub struct ServerAddressError(String);

impl ServerAddress {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, ServerAddressError> {
        let valid_host = |host: &str| {
            let dns = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
            !host.is_empty() && host.bytes().all(dns)
        };
        let valid_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
        let valid = text.len() <= usize::from(u8::MAX)
            && match text.parse::<std::net::SocketAddr>() {
                Ok(address) => address.port() != 0,
                Err(_) => {
                    text.rsplit_once(':').is_some_and(|(host, port)| valid_host(host) && valid_port(port))
                }
            };
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(ServerAddressError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What a host needs to join: where to go, whom to trust there, and the secret that opens the door once.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The secret that the server knows by its hash.
    pub secret: Zeroizing<[u8; 32]>,
    /// SHA-256 of the root certificate (DER) of the trust domain.
    pub ca_fingerprint: [u8; 32],
    /// When the server stops accepting it; whole seconds.
    pub expires_at: SystemTime,
    /// The mesh to join.
    pub trust_domain: TrustDomain,
    /// Where its servers are; at least one and at most eight.
    pub servers: Vec<ServerAddress>,
}

impl JoinToken {
    /// The hash by which a server knows `secret`.
    pub fn secret_hash(secret: &[u8]) -> [u8; 32] {
        sha256(secret)
    }

    /// A new random secret.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn new_secret() -> Result<Zeroizing<[u8; 32]>, aws_lc_rs::error::Unspecified> {
        let mut secret = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *secret)?;
        Ok(secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "JoinToken(trust domain {}, servers {:?})", self.trust_domain, self.servers)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Zeroizing::new(Vec::with_capacity(256));
        bytes.extend_from_slice(&*self.secret);
        bytes.extend_from_slice(&self.ca_fingerprint);
        bytes.extend_from_slice(&crate::api::unix_seconds(self.expires_at).to_be_bytes());
        push_text(&mut bytes, self.trust_domain.as_str());
        let servers = &self.servers[..self.servers.len().min(MAX_SERVERS)];
        bytes.push(servers.len() as u8);
        for server in servers {
            push_text(&mut bytes, server.as_str());
        }
        write!(formatter, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if encoded.len() > MAX_TEXT {
            return Err(TokenError::Damaged("it is too long"));
        }
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes());
        let bytes =
            Zeroizing::new(bytes.map_err(|_| TokenError::Damaged("a character is wrong or missing"))?);
        let mut reader = Reader(&bytes);
        let token = Self {
            secret: reader.array()?.into(),
            ca_fingerprint: reader.array()?,
            expires_at: reader.time()?,
            trust_domain: reader.text()?,
            servers: reader.servers()?,
        };
        if reader.0.is_empty() { Ok(token) } else { Err(TokenError::Damaged("something follows it")) }
    }
}

/// Both text types are at most 255 bytes long.
fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(text.len() as u8);
    bytes.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], TokenError> {
        let (head, tail) =
            self.0.split_at_checked(length).ok_or(TokenError::Damaged("its end is missing"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn time(&mut self) -> Result<SystemTime, TokenError> {
        let seconds = Duration::from_secs(u64::from_be_bytes(self.array()?));
        UNIX_EPOCH.checked_add(seconds).ok_or(TokenError::Damaged("its expiry is out of range"))
    }

    fn length(&mut self) -> Result<usize, TokenError> {
        Ok(usize::from(self.array::<1>()?[0]))
    }

    fn text<T: FromStr>(&mut self) -> Result<T, TokenError> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or(TokenError::Damaged("a name in it is wrong"))
    }

    fn servers(&mut self) -> Result<Vec<ServerAddress>, TokenError> {
        let count = self.length()?;
        if !(1..=MAX_SERVERS).contains(&count) {
            return Err(TokenError::Damaged("it names no server or too many"));
        }
        (0..count).map(|_| self.text()).collect()
    }
}

/// SHA-256 (FIPS 180-4).
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> impl Strategy<Value = JoinToken> {
        let server = prop_oneof![
            "[a-z0-9.-]{1,40}:[1-9][0-9]{0,3}",
            any::<std::net::SocketAddr>()
                .prop_filter("a port", |a| a.port() != 0)
                .prop_map(|a| { std::net::SocketAddr::new(a.ip(), a.port()).to_string() }),
        ];
        (
            any::<[u8; 32]>(),
            any::<[u8; 32]>(),
            0..1u64 << 40,
            "[a-z0-9._-]{1,60}",
            prop::collection::vec(server, 1..=8),
        )
            .prop_map(|(secret, ca_fingerprint, expiry, domain, servers)| JoinToken {
                secret: secret.into(),
                ca_fingerprint,
                expires_at: UNIX_EPOCH + Duration::from_secs(expiry),
                trust_domain: domain.parse().unwrap(),
                servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
            })
    }

    proptest! {
        #[test]
        fn what_is_displayed_parses_to_itself(token in token()) {
            prop_assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        }

        #[test]
        fn a_cut_token_is_refused(token in token(), cut in 1usize..200) {
            let text = token.to_string();
            let kept = text.len().saturating_sub(cut);
            prop_assert!(text[..kept].parse::<JoinToken>().is_err());
        }

        #[test]
        fn no_bytes_panic_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let text = format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes));
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }

    #[test]
    fn the_secret_is_not_in_debug_output() {
        let token = JoinToken {
            secret: [7; 32].into(),
            ca_fingerprint: [1; 32],
            expires_at: UNIX_EPOCH,
            trust_domain: "mesh.test".parse().unwrap(),
            servers: vec!["10.99.0.10:9190".parse().unwrap()],
        };
        assert!(!format!("{token:?}").contains("7, 7"));
    }
}
