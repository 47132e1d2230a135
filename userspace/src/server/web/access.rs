//! Who may see the page: whoever has opened a link that the server's local socket gave out. A link works once, and not
//! for long; the browser that opened it gets a cookie.
//!
//! Threats: other programs on this machine can connect to the page's port, and other sites that the browser shows can send
//! it there. Neither has a link or the cookie. A site that gives its own name this machine's address (DNS rebinding)
//! shows in the `Host` that the browser asks for.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;

use crate::identity::JoinToken;
use crate::identity::token::sha256;

/// For how long a link can be opened.
pub const LINK_LIFETIME: Duration = Duration::from_secs(120);
/// How long the page can be looked at with one cookie.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// The cookie's name.
pub const COOKIE: &str = "murmesh_page";
/// Links, and sessions, that there are at a time; the oldest gives way to a new one.
const MAX_KEYS: usize = 64;

/// Links that were not opened yet, and sessions.
#[derive(Debug, Default)]
pub struct Access {
    links: Keys,
    sessions: Keys,
}

/// Secrets with an end, the oldest first. Only their hashes are kept, and found by.
#[derive(Debug, Default)]
struct Keys(Mutex<Vec<([u8; 32], Instant)>>);

impl Access {
    /// The secret of a new link.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn new_link(&self) -> Result<String, aws_lc_rs::error::Unspecified> {
        self.links.add(Instant::now(), LINK_LIFETIME)
    }

    /// Takes the secret of a link, and gives that of a session; `None` if there is no such link any more.
    pub fn open(&self, link: &str) -> Option<String> {
        let now = Instant::now();
        self.links.take(link, now).then(|| self.sessions.add(now, SESSION_LIFETIME).ok()).flatten()
    }

    /// Whether one of the cookies is that of a session.
    pub fn admits(&self, cookies: &str) -> bool {
        let named = cookies.split(';').filter_map(|cookie| cookie.trim().split_once('='));
        let mut ours = named.filter(|(name, _)| *name == COOKIE);
        ours.any(|(_, secret)| self.sessions.has(secret, Instant::now()))
    }
}

impl Keys {
    fn add(&self, now: Instant, lifetime: Duration) -> Result<String, aws_lc_rs::error::Unspecified> {
        let secret = HEXLOWER.encode(&*JoinToken::new_secret()?);
        let mut keys = self.valid(now);
        if keys.len() >= MAX_KEYS {
            keys.remove(0);
        }
        keys.push((sha256(secret.as_bytes()), now + lifetime));
        Ok(secret)
    }

    fn has(&self, secret: &str, now: Instant) -> bool {
        let wanted = sha256(secret.as_bytes());
        self.valid(now).iter().any(|(key, _)| *key == wanted)
    }

    fn take(&self, secret: &str, now: Instant) -> bool {
        let wanted = sha256(secret.as_bytes());
        let mut keys = self.valid(now);
        let before = keys.len();
        keys.retain(|(key, _)| *key != wanted);
        keys.len() < before
    }

    fn valid(&self, now: Instant) -> MutexGuard<'_, Vec<([u8; 32], Instant)>> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|(_, end)| now < *end);
        keys
    }
}

/// Whether a browser that asks for `host` means this page: by its address, or as localhost. The port may be another one,
/// of a tunnel that leads here.
pub fn is_ours(host: &str, address: SocketAddr) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.ends_with(':') => name,
        _ => host,
    };
    let ip = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name).parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost")
        || ip.is_ok_and(|ip| ip == address.ip() || ip.is_loopback() && address.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_opens_one_session_once() {
        let access = Access::default();
        let link = access.new_link().unwrap();
        let session = access.open(&link).unwrap();
        assert_eq!(access.open(&link), None);
        assert!(access.admits(&format!("other=1; {COOKIE}={session}")));
        for wrong in [String::new(), format!("{COOKIE}={link}"), format!("x{COOKIE}={session}"), session] {
            assert!(!access.admits(&wrong), "{wrong}");
        }
    }

    #[test]
    fn keys_end_and_are_bounded() {
        let (keys, now) = (Keys::default(), Instant::now());
        let first = keys.add(now, LINK_LIFETIME).unwrap();
        assert!(keys.has(&first, now) && !keys.has(&first, now + LINK_LIFETIME));
        let first = keys.add(now, LINK_LIFETIME).unwrap();
        let others: Vec<_> = (0..MAX_KEYS).map(|_| keys.add(now, LINK_LIFETIME).unwrap()).collect();
        assert!(!keys.has(&first, now) && others.iter().all(|key| keys.has(key, now)));
    }

    #[test]
    fn other_names_of_this_machine_are_not_its_own() {
        let address = "127.0.0.1:9194".parse().unwrap();
        for ours in ["127.0.0.1:9194", "localhost:8000", "LOCALHOST", "[::1]:9194", "127.0.0.1", "::1"] {
            assert!(is_ours(ours, address), "{ours}");
        }
        for strange in
            ["evil.example:9194", "localhost.evil.example", "10.0.0.1:9194", "", ":9194", "localhost:x"]
        {
            assert!(!is_ours(strange, address), "{strange}");
        }
    }
}
