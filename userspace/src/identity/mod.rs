//! Who a daemon is: its SPIFFE id, the key and certificate that prove it, and the roots it trusts.
//!
//! Keys are made where they are used and never leave that host; only certificate requests do.

pub mod authority;
#[cfg(any(test, fuzzing))]
pub(crate) mod fixture;
pub mod key;
mod name;
mod removed;
pub mod spiffe;
pub mod tls;
pub mod token;
mod trust;
mod verify;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

pub use authority::Authority;
pub use key::HostKey;
pub(crate) use name::excerpt;
pub use name::{NameError, NodeName, ServiceName, TrustDomain, WorkloadName};
pub use removed::Removed;
pub use spiffe::{SpiffeId, Subject};
pub use token::JoinToken;
pub use trust::{Fingerprint, Trust, fingerprints, issuer};

/// Why an identity cannot be used, made or verified.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A name in a certificate is not one of ours.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A certificate that cannot be read or is not a SPIFFE certificate.
    #[error("the certificate is not usable: {0}")]
    Certificate(&'static str),
    /// A certificate chain without any certificate.
    #[error("no certificate was presented")]
    NoCertificate,
    /// The certificate is for another key than ours.
    #[error("the certificate is not for this host's key")]
    WrongKey,
    /// A certificate request that is malformed or not signed by its own key.
    #[error("the certificate request is not usable: {0}")]
    Request(rcgen::Error),
    /// Making a key or a certificate failed.
    #[error("making a key or certificate failed: {0}")]
    Issue(rcgen::Error),
    /// TLS does not take the identity.
    #[error("the identity cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The trust bundle is unusable.
    #[error("the trust bundle is not usable: {0}")]
    Bundle(String),
    /// A key file that cannot be read, written or understood.
    #[error("{path}: {reason}")]
    KeyFile {
        /// The file.
        path: String,
        /// What went wrong and what to do.
        reason: String,
    },
}

/// Half of the longest time over which hosts spread the renewals that a new root asks for.
const LONGEST_SPREAD: Duration = Duration::from_secs(15);

/// One identity with everything needed to prove it and to verify others.
#[derive(Debug)]
pub struct Identity {
    /// Who it is.
    pub id: SpiffeId,
    /// The certificate chain, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of the leaf.
    pub key: Zeroizing<PrivateKeyDer<'static>>,
    /// The roots of the trust domain.
    pub bundle: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
}

impl Identity {
    /// Puts together what was issued for `key`.
    ///
    /// # Errors
    /// When the chain is empty or unreadable, is not for `key`, or the bundle is empty.
    pub fn new(
        key: &HostKey,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or(IdentityError::NoCertificate)?;
        let certificate = parse_certificate(leaf)?;
        if certificate.public_key().subject_public_key.data != key.public_key() {
            return Err(IdentityError::WrongKey);
        }
        if bundle.is_empty() {
            return Err(IdentityError::Bundle("it has no root certificate".to_owned()));
        }
        let (id, not_before) = (spiffe_id(&certificate)?, unix_time(certificate.validity().not_before));
        let not_after = unix_time(certificate.validity().not_after);
        Ok(Self { id, key: key.private_key(), bundle, not_before, not_after, chain })
    }

    /// The host that it is for.
    ///
    /// # Errors
    /// When it is the identity of a service.
    pub fn node(&self) -> Result<&NodeName, IdentityError> {
        self.id.node().ok_or(IdentityError::Certificate("it is for a service and not for a host"))
    }

    /// When it should be replaced: half way through its life, later or earlier by `jitter` (−1.0 to 1.0)
    /// times a tenth of it, so that hosts that joined together do not renew together.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        let made = self.not_before + authority::BACKDATE;
        let lifetime = self.not_after.duration_since(made).unwrap_or_default();
        made + lifetime.mul_f64(0.5 + 0.1 * jitter.clamp(-1.0, 1.0))
    }

    /// When it should be replaced because another root signs now: within a twentieth of its life, spread by `jitter`
    /// (−1.0 to 1.0), so that all hosts of the mesh do not renew together; at once if nobody accepts it any more.
    pub fn renew_soon(&self, now: SystemTime, jitter: f64) -> SystemTime {
        let made = self.not_before + authority::BACKDATE;
        if self.issuer().is_none() {
            return now;
        }
        let lifetime = self.not_after.duration_since(made).unwrap_or_default();
        now + (lifetime / 40).min(LONGEST_SPREAD).mul_f64(1.0 + jitter.clamp(-1.0, 1.0))
    }

    /// Whether the root with this fingerprint signed it.
    pub fn is_signed_by(&self, root: &Fingerprint) -> bool {
        self.issuer() == Some(*root)
    }

    /// Which of the roots that it trusts signed it.
    pub fn issuer(&self) -> Option<Fingerprint> {
        issuer(self.chain.first()?, &self.bundle).ok().flatten()
    }

    /// Whether it can no longer be used at `now`.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }
}

/// What a verified certificate says about the other side of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Who it is. Shared by all that happens on one connection.
    pub id: Arc<SpiffeId>,
    /// The host that got the certificate of a service, which several may have.
    service_host: Option<NodeName>,
    /// When its host was last removed before it joined, and the epoch if it never was; `None` where nobody said it.
    pub joined_after: Option<SystemTime>,
    /// When its certificate was made.
    pub made: SystemTime,
    /// Until when its certificate is valid: nothing may be accepted from it later.
    pub not_after: SystemTime,
}

impl PeerIdentity {
    /// The host that holds the key; `None` for a server, and where nobody said it of a service.
    pub fn host(&self) -> Option<&NodeName> {
        match &self.id.subject {
            Subject::Host(node) | Subject::Workload(node, _) => Some(node),
            Subject::Service(_) => self.service_host.as_ref(),
            Subject::Server(_) => None,
        }
    }
}

/// Reads the identity from a chain that TLS **has already verified**.
///
/// # Errors
/// When the chain is empty or its leaf does not bear exactly one SPIFFE id of ours.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, IdentityError> {
    let certificate = parse_certificate(chain.first().ok_or(IdentityError::NoCertificate)?)?;
    let id = Arc::new(spiffe_id(&certificate)?);
    let made = unix_time(certificate.validity().not_before) + authority::BACKDATE;
    let not_after = unix_time(certificate.validity().not_after);
    let is_service = matches!(id.subject, Subject::Service(_));
    let service_host = if is_service { common_name(&certificate) } else { None };
    let joined_after = joined_after(&certificate);
    Ok(PeerIdentity { id, service_host, joined_after, made, not_after })
}

fn parse_certificate<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate("it is not X.509"))?;
    if rest.is_empty() { Ok(certificate) } else { Err(IdentityError::Certificate("bytes follow it")) }
}

/// X.509-SVID section 2: exactly one URI among the subject's alternative names.
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::Certificate("its alternative names cannot be read"))?
        .ok_or(IdentityError::Certificate("it has no alternative name"))?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.parse()?),
        _ => Err(IdentityError::Certificate("it does not have exactly one URI name")),
    }
}

/// Of a service's certificate, the host that it was made for.
fn common_name(certificate: &X509Certificate<'_>) -> Option<NodeName> {
    certificate.subject().iter_common_name().next()?.as_str().ok()?.parse().ok()
}

/// See [`authority::Issue::joined_after`].
fn joined_after(certificate: &X509Certificate<'_>) -> Option<SystemTime> {
    let unit = certificate.subject().iter_organizational_unit().next()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(unit.as_str().ok()?.parse().ok()?))
}

fn unix_time(time: x509_parser::time::ASN1Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
}
