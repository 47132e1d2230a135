//! Identities for unit tests.

use std::time::Duration;

use super::{
    Authority, HostKey, Identity, Kind, SpiffeId,
    authority::{DEFAULT_LIFETIME, VerifiedRequest},
};

/// The authority of a new mesh, which always has the same name.
pub fn authority() -> Authority {
    Authority::create("mesh.test".parse().unwrap()).unwrap()
}

/// The identity of a host.
pub fn host(authority: &Authority, node: &str) -> Identity {
    issue(authority, Kind::Host, node, DEFAULT_LIFETIME)
}

/// An identity of any kind, for any time.
pub fn issue(authority: &Authority, kind: Kind, node: &str, lifetime: Duration) -> Identity {
    let key = HostKey::generate().unwrap();
    let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
    let (trust_domain, node) = (authority.trust_domain().clone(), node.parse().unwrap());
    let leaf = authority.sign(&request, &SpiffeId { trust_domain, kind, node }, lifetime).unwrap();
    Identity::new(&key, vec![leaf], vec![authority.root().clone()]).unwrap()
}
