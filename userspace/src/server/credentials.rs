//! The server's authority and its own certificate, which it signs for itself and replaces while running.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::CertificateDer;
use tracing::{error, info};

use super::roots::Roots;
use crate::identity::authority::VerifiedRequest;
use crate::identity::{HostKey, Identity, IdentityError, SpiffeId, Subject, TrustDomain, tls};

/// A shortest pause between two renewals, for absurdly short lifetimes and for failures.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// What the server signs with and what it proves itself with.
pub struct Credentials {
    roots: ArcSwap<Roots>,
    id: SpiffeId,
    lifetime: Duration,
    /// Made at each start and kept in memory only.
    key: HostKey,
    current: ArcSwap<Current>,
}

/// The certificate in use.
struct Current {
    tls: Arc<ServerConfig>,
    renew_at: SystemTime,
    not_after: SystemTime,
}

impl Credentials {
    /// Signs the server's first certificate.
    ///
    /// # Errors
    /// When signing fails.
    pub fn new(roots: Roots, id: SpiffeId, lifetime: Duration) -> Result<Self, IdentityError> {
        let key = HostKey::generate()?;
        let current = certify(&roots, &key, &id, lifetime)?;
        let (roots, current) = (ArcSwap::from_pointee(roots), ArcSwap::from_pointee(current));
        Ok(Self { roots, id, lifetime, key, current })
    }

    /// The TLS configuration for the next connection.
    pub fn tls(&self) -> Arc<ServerConfig> {
        self.current.load().tls.clone()
    }

    /// A certificate chain for `subject` and the key that asked for it. Whether it may have that is for the caller to
    /// find out first.
    ///
    /// # Errors
    /// When signing fails.
    pub fn certify(
        &self,
        request: &VerifiedRequest,
        subject: Subject,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let id = SpiffeId { trust_domain: self.id.trust_domain.clone(), subject };
        Ok(vec![self.roots.load().authority.sign(request, &id, self.lifetime)?])
    }

    /// Replaces the server's own certificate at half its life, for as long as it is run.
    pub async fn keep_renewed(self: Arc<Self>) {
        loop {
            let due = self.current.load().renew_at;
            let left = due.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left.max(RENEWAL_PAUSE)).await;
            match certify(&self.roots.load(), &self.key, &self.id, self.lifetime) {
                Ok(current) => {
                    self.current.store(Arc::new(current));
                    info!(id = %self.id, "the server's certificate was renewed");
                }
                Err(error) => error!(%error, "the server's certificate could not be renewed"),
            }
        }
    }

    /// The mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.id.trust_domain
    }

    /// Who signs, and who is trusted.
    pub fn roots(&self) -> Arc<Roots> {
        self.roots.load_full()
    }

    /// The server's identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// End of the certificate in use.
    pub fn not_after(&self) -> SystemTime {
        self.current.load().not_after
    }
}

/// The chain is leaf and root: a joining host knows the root by its fingerprint only.
fn certify(
    roots: &Roots,
    key: &HostKey,
    id: &SpiffeId,
    lifetime: Duration,
) -> Result<Current, IdentityError> {
    let request = VerifiedRequest::parse(&key.certificate_request()?)?;
    let leaf = roots.authority.sign(&request, id, lifetime)?;
    let identity = Identity::new(key, vec![leaf, roots.authority.root().clone()], roots.bundle.clone())?;
    let (renew_at, not_after) = (identity.renew_at(0.0), identity.not_after);
    let certified = CertifiedKey::from_der(identity.chain, identity.key, &tls::provider())?;
    let certificate = Arc::new(SingleCertAndKey::from(certified));
    let tls = tls::api_server(&id.trust_domain, &roots.bundle, certificate)?;
    Ok(Current { tls, renew_at, not_after })
}
