//! The certificate authority of a trust domain.
//!
//! Threats: a requester chooses its key and nothing else. Every name, use and time in a certificate comes
//! from the server, so that a host cannot ask for another host's identity.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::{HostKey, IdentityError, NodeName, SpiffeId, TrustDomain};

/// How long a certificate lives unless the server is told otherwise.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);
/// How far before its making a certificate becomes valid, for hosts whose clock is slow.
pub const BACKDATE: Duration = Duration::from_secs(300);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Signs certificates for the identities of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, HostKey>,
}

/// What a certificate says beside whose it is.
#[derive(Debug, Clone, Copy)]
pub struct Issue<'a> {
    /// The host that gets it, if it is to be told from others that have one in the same name.
    pub holder: Option<&'a NodeName>,
    /// What tells the memberships of one host apart: when it was last removed before it joined, in whole seconds, and
    /// the epoch if it never was. `None` leaves it out.
    pub joined_after: Option<SystemTime>,
    /// From when its life counts.
    pub made: SystemTime,
    /// How long it lives.
    pub lifetime: Duration,
}

/// A certificate request whose signature by its own key was verified.
pub struct VerifiedRequest(rcgen::PublicKey);

impl VerifiedRequest {
    /// Reads a PKCS#10 request in DER and verifies that the holder of its key signed it.
    ///
    /// # Errors
    /// [`IdentityError::Request`] when it is malformed, wrongly signed, or not for an ECDSA P-256 key.
    pub fn parse(der: &[u8]) -> Result<Self, IdentityError> {
        let der = CertificateSigningRequestDer::from(der);
        let request = CertificateSigningRequestParams::from_der(&der).map_err(IdentityError::Request)?;
        if PublicKeyData::algorithm(&request.public_key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(IdentityError::Request(rcgen::Error::UnsupportedSignatureAlgorithm));
        }
        Ok(Self(request.public_key))
    }

    /// The public key, in the form of [`HostKey::public_key`].
    pub fn public_key(&self) -> &[u8] {
        self.0.der_bytes()
    }
}

impl Authority {
    /// A new authority with a root certificate that is valid for ten years.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn create(trust_domain: TrustDomain) -> Result<Self, IdentityError> {
        let key = HostKey::generate()?;
        let root = root_parameters(&trust_domain, &key_name(key.public_key()))?;
        let root = root.self_signed(&key).map_err(IdentityError::Issue)?;
        Self::load(trust_domain, root.into(), key)
    }

    /// The authority whose root certificate and key were saved.
    ///
    /// # Errors
    /// When either is unreadable.
    pub fn load(
        trust_domain: TrustDomain,
        root: CertificateDer<'static>,
        key: HostKey,
    ) -> Result<Self, IdentityError> {
        let issuer = Issuer::from_ca_cert_der(&root, key).map_err(IdentityError::Issue)?;
        Ok(Self { trust_domain, root, issuer })
    }

    /// Signs a certificate for the request's key and for `id`, valid for `lifetime` from now.
    ///
    /// # Errors
    /// When `id` is of another trust domain or signing fails.
    pub fn sign(
        &self,
        request: &VerifiedRequest,
        id: &SpiffeId,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        let issue = Issue { holder: None, joined_after: None, made: SystemTime::now(), lifetime };
        self.sign_as(request, id, &issue)
    }

    /// Signs a certificate for the request's key and for `id`, as `issue` says.
    ///
    /// # Errors
    /// When `id` is of another trust domain or signing fails.
    pub fn sign_as(
        &self,
        request: &VerifiedRequest,
        id: &SpiffeId,
        issue: &Issue<'_>,
    ) -> Result<CertificateDer<'static>, IdentityError> {
        if id.trust_domain != self.trust_domain {
            return Err(IdentityError::Certificate("the identity is of another trust domain"));
        }
        let mut parameters = CertificateParams::default();
        set_validity(&mut parameters, issue.made, issue.lifetime);
        parameters.distinguished_name = DistinguishedName::new();
        if let Some(holder) = issue.holder {
            parameters.distinguished_name.push(DnType::CommonName, holder.as_str());
        }
        if let Some(removed) = issue.joined_after {
            let seconds = removed.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            parameters.distinguished_name.push(DnType::OrganizationalUnitName, seconds.to_string());
        }
        parameters.subject_alt_names = vec![uri(&id.to_string())?];
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        let certificate = parameters.signed_by(&request.0, &self.issuer).map_err(IdentityError::Issue)?;
        Ok(certificate.into())
    }

    /// A certificate by this authority for another of the same trust domain: whoever trusts this one's root, and does
    /// not know the other's yet, accepts what the other signs if it comes with this.
    ///
    /// # Errors
    /// When signing fails.
    pub fn cross_sign(&self, other: &Self) -> Result<CertificateDer<'static>, IdentityError> {
        let key = other.issuer.key();
        let parameters = root_parameters(&other.trust_domain, &key_name(key.public_key()))?;
        let crossed = parameters.signed_by(key, &self.issuer).map_err(IdentityError::Issue)?;
        Ok(crossed.into())
    }

    /// The trust domain it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Its private key, to be saved where only the server reads it.
    pub fn key(&self) -> &HostKey {
        self.issuer.key()
    }
}

/// Those of a root, and of a certificate by another root for the same name and key.
fn root_parameters(trust_domain: &TrustDomain, key_name: &str) -> Result<CertificateParams, IdentityError> {
    let mut parameters = CertificateParams::default();
    set_validity(&mut parameters, SystemTime::now(), ROOT_LIFETIME);
    let name = format!("Murmesh root of {trust_domain} {key_name}");
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.subject_alt_names = vec![uri(&trust_domain.root_uri())?];
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.use_authority_key_identifier_extension = true;
    Ok(parameters)
}

/// Tells the roots of one mesh apart.
fn key_name(public_key: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&super::token::sha256(public_key)[..4])
}

fn set_validity(parameters: &mut CertificateParams, made: SystemTime, lifetime: Duration) {
    parameters.not_before = (made - BACKDATE).into();
    parameters.not_after = (made + lifetime).into();
}

fn uri(text: &str) -> Result<SanType, IdentityError> {
    Ok(SanType::URI(text.try_into().map_err(IdentityError::Issue)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Identity, peer_identity};

    fn domain() -> TrustDomain {
        "mesh.test".parse().unwrap()
    }

    #[test]
    fn the_server_decides_the_name_and_the_lifetime() {
        let authority = Authority::create(domain()).unwrap();
        let key = HostKey::generate().unwrap();
        let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
        let id = SpiffeId::host(domain(), "fcs00".parse().unwrap());
        let leaf = authority.sign(&request, &id, DEFAULT_LIFETIME).unwrap();
        assert_eq!(peer_identity(std::slice::from_ref(&leaf)).unwrap().id, id.into());
        let identity = Identity::new(&key, vec![leaf], vec![authority.root().clone()]).unwrap();
        let now = SystemTime::now();
        assert!(identity.not_before < now - Duration::from_secs(290));
        assert!(identity.not_after > now + Duration::from_secs(3590));
        assert!(
            identity.renew_at(-1.0) < identity.renew_at(1.0) && identity.renew_at(1.0) < identity.not_after
        );
    }

    #[test]
    fn another_trust_domain_is_not_signed() {
        let authority = Authority::create(domain()).unwrap();
        let key = HostKey::generate().unwrap();
        let request = VerifiedRequest::parse(&key.certificate_request().unwrap()).unwrap();
        let id = SpiffeId::host("other.test".parse().unwrap(), "fcs00".parse().unwrap());
        assert!(authority.sign(&request, &id, DEFAULT_LIFETIME).is_err());
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let mut request = HostKey::generate().unwrap().certificate_request().unwrap();
        *request.last_mut().unwrap() ^= 1;
        assert!(VerifiedRequest::parse(&request).is_err());
    }
}
