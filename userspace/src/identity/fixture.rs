//! Identities for unit tests.

use std::time::Duration;

use super::{
    Authority, HostKey, Identity, SpiffeId, Subject,
    authority::{DEFAULT_LIFETIME, VerifiedRequest},
};

/// The authority of a new mesh, which always has the same name.
pub fn authority() -> Authority {
    Authority::create("mesh.test".parse().unwrap()).unwrap()
}

/// The identity of a host.
pub fn host(authority: &Authority, node: &str) -> Identity {
    issue(authority, Subject::Host(node.parse().unwrap()), DEFAULT_LIFETIME)
}

/// The identity of a server.
pub fn server(authority: &Authority, node: &str) -> Identity {
    issue(authority, Subject::Server(node.parse().unwrap()), DEFAULT_LIFETIME)
}

/// An identity of any kind, for any time.
pub fn issue(authority: &Authority, subject: Subject, lifetime: Duration) -> Identity {
    let key = HostKey::generate().unwrap();
    let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
    let trust_domain = authority.trust_domain().clone();
    let leaf = authority.sign(&request, &SpiffeId { trust_domain, subject }, lifetime).unwrap();
    Identity::new(&key, vec![leaf], vec![authority.root().clone()]).unwrap()
}
