//! The server's authority and its own certificate, which it signs for itself and replaces while running.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tracing::{error, info};

use crate::identity::authority::VerifiedRequest;
use crate::identity::{Authority, HostKey, Identity, IdentityError, SpiffeId, Subject, tls};

/// A shortest pause between two renewals, for absurdly short lifetimes and for failures.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// What the server signs with and what it proves itself with.
pub struct Credentials {
    authority: Authority,
    id: SpiffeId,
    lifetime: Duration,
    /// Made at each start and kept in memory only.
    key: HostKey,
    current: Arc<Current>,
}

/// The certificate in use, shared with the TLS configuration.
struct Current(ArcSwap<Certified>);

struct Certified {
    key: Arc<CertifiedKey>,
    renew_at: SystemTime,
    not_after: SystemTime,
}

impl Credentials {
    /// Signs the server's first certificate.
    ///
    /// # Errors
    /// When signing fails.
    pub fn new(authority: Authority, id: SpiffeId, lifetime: Duration) -> Result<Self, IdentityError> {
        let key = HostKey::generate()?;
        let certified = certify(&authority, &key, &id, lifetime)?;
        let current = Arc::new(Current(ArcSwap::from_pointee(certified)));
        Ok(Self { authority, id, lifetime, key, current })
    }

    /// The TLS configuration of the listener. It follows renewals.
    ///
    /// # Errors
    /// When the root is not usable.
    pub fn tls(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        let bundle = [self.authority.root().clone()];
        tls::api_server(self.authority.trust_domain(), &bundle, self.current.clone())
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
        let id = SpiffeId { trust_domain: self.authority.trust_domain().clone(), subject };
        Ok(vec![self.authority.sign(request, &id, self.lifetime)?])
    }

    /// Replaces the server's own certificate at half its life, for as long as it is run.
    pub async fn keep_renewed(self: Arc<Self>) {
        loop {
            let due = self.current.0.load().renew_at;
            let left = due.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::time::sleep(left.max(RENEWAL_PAUSE)).await;
            match certify(&self.authority, &self.key, &self.id, self.lifetime) {
                Ok(certified) => {
                    self.current.0.store(Arc::new(certified));
                    info!(id = %self.id, "the server's certificate was renewed");
                }
                Err(error) => error!(%error, "the server's certificate could not be renewed"),
            }
        }
    }

    /// The authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The server's identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// End of the certificate in use.
    pub fn not_after(&self) -> SystemTime {
        self.current.0.load().not_after
    }
}

/// The chain is leaf and root: a joining host knows the root by its fingerprint only.
fn certify(
    authority: &Authority,
    key: &HostKey,
    id: &SpiffeId,
    lifetime: Duration,
) -> Result<Certified, IdentityError> {
    let request = VerifiedRequest::parse(&key.certificate_request()?)?;
    let leaf = authority.sign(&request, id, lifetime)?;
    let identity = Identity::new(key, vec![leaf, authority.root().clone()], vec![authority.root().clone()])?;
    let (renew_at, not_after) = (identity.renew_at(0.0), identity.not_after);
    let key = Arc::new(CertifiedKey::from_der(identity.chain, identity.key, &tls::provider())?);
    Ok(Certified { key, renew_at, not_after })
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().key.clone())
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Current")
    }
}
