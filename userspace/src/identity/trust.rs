//! The roots of a mesh as everybody knows them: whom to trust, and who signs now.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;

use super::{IdentityError, parse_certificate, tls::fingerprint};

/// SHA-256 of a root certificate.
pub type Fingerprint = [u8; 32];

/// What the servers say of the roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// All that are trusted; none before a server has said.
    pub roots: Vec<CertificateDer<'static>>,
    /// The one that signs.
    pub signing: Fingerprint,
}

/// The fingerprints of `roots`.
pub fn fingerprints(roots: &[CertificateDer<'_>]) -> Vec<Fingerprint> {
    roots.iter().map(fingerprint).collect()
}

/// Which of `roots` signed `leaf`, by the key that the certificate names; `None` if it is none of them.
///
/// # Errors
/// The leaf is no certificate.
pub fn issuer(
    leaf: &CertificateDer<'_>,
    roots: &[CertificateDer<'_>],
) -> Result<Option<Fingerprint>, IdentityError> {
    let leaf = parse_certificate(leaf)?;
    let signer = leaf.iter_extensions().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => {
            authority.key_identifier.as_ref().map(|key| key.0)
        }
        _ => None,
    });
    let is_signer = |root: &&CertificateDer<'_>| {
        parse_certificate(root).is_ok_and(|root| {
            root.iter_extensions().any(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(key) => Some(key.0) == signer,
                _ => false,
            })
        })
    };
    Ok(roots.iter().find(is_signer).map(fingerprint))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn the_issuer_is_told_from_another_root_of_the_same_mesh() {
        let (old, new) = (fixture::authority(), fixture::authority());
        let roots = [old.root().clone(), new.root().clone()];
        for authority in [&old, &new] {
            let host = fixture::host(authority, "here");
            assert_eq!(issuer(&host.chain[0], &roots).unwrap(), Some(fingerprint(authority.root())));
        }
        let host = fixture::host(&new, "here");
        assert_eq!(issuer(&host.chain[0], &roots[..1]).unwrap(), None);
    }
}
