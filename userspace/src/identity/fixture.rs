//! Identities, and who has none, for unit tests.

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

/// An identity that a host got at some time, and that does not say of which of its memberships it is.
pub fn issue_to(authority: &Authority, subject: Subject, host: &NodeName, made: SystemTime) -> Identity {
    let issue = Issue { holder: Some(host), joined_after: None, made, lifetime: DEFAULT_LIFETIME };
    issue_as(authority, subject, &issue)
}

/// An identity as a server issues it.
pub fn issue_as(authority: &Authority, subject: Subject, issue: &Issue<'_>) -> Identity {
    let key = HostKey::generate().unwrap();
    let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
    let id = SpiffeId { trust_domain: authority.trust_domain().clone(), subject };
    let leaf = authority.sign_as(&request, &id, issue).unwrap();
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

/// What a client says first that speaks nothing newer than TLS 1.2 (RFC 5246 section 7.4.1.2).
#[cfg(test)]
pub fn tls12_hello() -> Vec<u8> {
    let extensions = [
        // supported_groups: x25519, secp256r1.
        vec![0, 10, 0, 6, 0, 4, 0, 29, 0, 23],
        // signature_algorithms: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256.
        vec![0, 13, 0, 6, 0, 4, 4, 3, 8, 4],
    ]
    .concat();
    let suites = [0, 4, 0xc0, 0x2b, 0xc0, 0x2f];
    let length = |bytes: &[u8]| (bytes.len() as u16).to_be_bytes();
    let hello = [&[3, 3][..], &[7; 32], &[0], &suites, &[1, 0], &length(&extensions), &extensions].concat();
    let handshake = [&[1, 0][..], &length(&hello), &hello].concat();
    [&[22, 3, 1][..], &length(&handshake), &handshake].concat()
}

/// A client that has no certificate.
#[cfg(test)]
#[derive(Debug)]
pub struct Anonymous;

#[cfg(test)]
impl rustls::client::ResolvesClientCert for Anonymous {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
