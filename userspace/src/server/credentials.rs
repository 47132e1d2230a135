//! The server's authority and its own certificate, which it signs for itself and replaces while running.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::{error, info};

use super::figures::Counted;
use super::registry::RegistryError;
use super::roots::{RootRecords, Roots};
use crate::api::v1;
use crate::clock::sleep_until;
use crate::identity::authority::{Issue, VerifiedRequest};
use crate::identity::{HostKey, Identity, IdentityError, NodeName, SpiffeId, Subject, TrustDomain, tls};

/// A shortest pause between two renewals, for absurdly short lifetimes and for failures.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);

/// The host that gets a certificate.
pub struct Holder {
    /// Its name.
    pub node: NodeName,
    /// Which of its memberships it is for; see [`Issue::joined_after`].
    pub joined_after: Option<SystemTime>,
}

/// What the server signs with and what it proves itself with.
pub struct Credentials {
    roots: ArcSwap<Roots>,
    id: SpiffeId,
    lifetime: Duration,
    /// Made at each start and kept in memory only.
    key: HostKey,
    current: ArcSwap<Current>,
    counted: Arc<Counted>,
}

/// The certificate in use.
struct Current {
    tls: Arc<ServerConfig>,
    calling: Arc<ClientConfig>,
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
        Ok(Self { roots, id, lifetime, key, current, counted: Arc::default() })
    }

    /// The same; what it signs for hosts is counted there.
    #[must_use]
    pub fn counted_by(self, counted: Arc<Counted>) -> Self {
        Self { counted, ..self }
    }

    /// The TLS configuration for the next connection.
    pub fn tls(&self) -> Arc<ServerConfig> {
        self.current.load().tls.clone()
    }

    /// The TLS configuration for the next call of another server.
    pub fn calling(&self) -> Arc<ClientConfig> {
        self.current.load().calling.clone()
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
        holder: &Holder,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let id = SpiffeId { trust_domain: self.id.trust_domain.clone(), subject };
        let issue = Issue {
            // The others say it by their name.
            holder: Some(&holder.node).filter(|_| matches!(id.subject, Subject::Service(_))),
            joined_after: holder.joined_after,
            made: SystemTime::now(),
            lifetime: self.lifetime,
        };
        let roots = self.roots.load();
        let leaf = roots.authority.sign_as(request, &id, &issue)?;
        self.counted.signed(&id.subject);
        Ok([leaf].into_iter().chain(roots.intermediates()).collect())
    }

    /// Replaces the server's own certificate at half its life, for as long as it is run.
    pub async fn keep_renewed(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RENEWAL_PAUSE).await;
            let due = self.current.load().renew_at;
            sleep_until(due).await;
            match certify(&self.roots.load(), &self.key, &self.id, self.lifetime) {
                Ok(current) => {
                    self.current.store(Arc::new(current));
                    info!(id = %self.id, "the server's certificate was renewed");
                }
                Err(error) => error!(%error, "the server's certificate could not be renewed"),
            }
        }
    }

    /// Goes over to the roots that the store has, whenever there are others, for as long as it is run.
    pub async fn follow_roots(self: Arc<Self>, records: RootRecords, mut trust: watch::Receiver<v1::Trust>) {
        loop {
            let wanted = trust.borrow_and_update().clone();
            if self.roots.load().trust() != wanted && !wanted.roots.is_empty() {
                match self.take_roots(&records).await {
                    Ok(()) => info!(roots = wanted.roots.len(), "the roots of the mesh have changed"),
                    Err(error) => {
                        error!(%error, "the new roots of the mesh cannot be used");
                        tokio::time::sleep(RENEWAL_PAUSE).await;
                        continue;
                    }
                }
            }
            if trust.changed().await.is_err() {
                return;
            }
        }
    }

    async fn take_roots(&self, records: &RootRecords) -> Result<(), RegistryError> {
        let roots = records.load(None).await?;
        let current = certify(&roots, &self.key, &self.id, self.lifetime)?;
        // Who has a new certificate must be accepted.
        self.current.store(Arc::new(current));
        self.roots.store(Arc::new(roots));
        Ok(())
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

/// The chain has the roots at its end: a joining host knows one by its fingerprint only.
fn certify(
    roots: &Roots,
    key: &HostKey,
    id: &SpiffeId,
    lifetime: Duration,
) -> Result<Current, IdentityError> {
    let request = VerifiedRequest::parse(&key.certificate_request()?)?;
    let leaf = roots.authority.sign(&request, id, lifetime)?;
    let chain = [leaf].into_iter().chain(roots.intermediates()).chain(roots.bundle.iter().cloned());
    let identity = Identity::new(key, chain.collect(), roots.bundle.clone())?;
    let (renew_at, not_after) = (identity.renew_at(0.0), identity.not_after);
    let calling = tls::api_client(&identity)?;
    let certified = CertifiedKey::from_der(identity.chain, identity.key.clone_key(), &tls::provider())?;
    let certificate = Arc::new(SingleCertAndKey::from(certified));
    let tls = tls::api_server(&id.trust_domain, &roots.bundle, certificate)?;
    Ok(Current { tls, calling, renew_at, not_after })
}
