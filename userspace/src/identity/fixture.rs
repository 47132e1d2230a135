//! Identities for unit tests.

use std::time::{Duration, SystemTime};

use super::{
    Authority, HostKey, Identity, NodeName, SpiffeId, Subject,
    authority::{DEFAULT_LIFETIME, Issue, VerifiedRequest},
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

/// An identity that a host got at some time.
pub fn issue_to(authority: &Authority, subject: Subject, host: &NodeName, made: SystemTime) -> Identity {
    let key = HostKey::generate().unwrap();
    let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
    let id = SpiffeId { trust_domain: authority.trust_domain().clone(), subject };
    let issue = Issue { holder: Some(host), made, lifetime: DEFAULT_LIFETIME };
    let leaf = authority.sign_as(&request, &id, &issue).unwrap();
    Identity::new(&key, vec![leaf], vec![authority.root().clone()]).unwrap()
}

/// An identity of any kind, for any time.
pub fn issue(authority: &Authority, subject: Subject, lifetime: Duration) -> Identity {
    let key = HostKey::generate().unwrap();
    let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
    let trust_domain = authority.trust_domain().clone();
    let leaf = authority.sign(&request, &SpiffeId { trust_domain, subject }, lifetime).unwrap();
    Identity::new(&key, vec![leaf], vec![authority.root().clone()]).unwrap()
}
