//! The roots of the mesh: who signs, and whom everybody trusts.
//!
//! Key of the store: `authority`. It holds one root, or two while one takes the place of the other; the private keys
//! are sealed.

use std::sync::Arc;

use data_encoding::BASE64;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::records::{decode, put, read};
use super::registry::RegistryError;
use super::rotation::RotationError;
use crate::api::v1;
use crate::identity::tls::fingerprint;
use crate::identity::{Authority, Fingerprint, HostKey, TrustDomain};
use crate::seal::Sealer;
use crate::store::{Condition, Outcome, Store, Transaction};

/// Key of the record.
pub const AUTHORITY: &str = "authority";
const DEFAULT_TRUST_DOMAIN: &str = "murmesh.internal";

#[derive(Serialize, Deserialize)]
struct StoredRoots {
    trust_domain: String,
    /// The older one first.
    roots: Vec<StoredRoot>,
    /// Which of them signs.
    signing: usize,
}

/// DER in base64.
#[derive(Serialize, Deserialize)]
struct StoredRoot {
    certificate: String,
    /// A certificate of it by the root before it, if there is one.
    #[serde(default)]
    crossed: Option<String>,
    /// Private key (PKCS#8, DER), sealed.
    sealed_key: String,
}

/// How far the replacement of a root is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// There is one root.
    Steady,
    /// There are two, and the old one signs.
    Prepared,
    /// There are two, and the new one signs.
    Activated,
}

/// The roots as a server uses them.
pub struct Roots {
    /// The one that signs.
    pub authority: Authority,
    /// Those that are trusted, the older one first.
    pub bundle: Vec<CertificateDer<'static>>,
    /// How far the replacement is.
    pub phase: Phase,
    /// A certificate of the one that signs by the other, for those who know only that.
    crossed: Option<CertificateDer<'static>>,
}

impl Roots {
    /// What goes with everything that is signed.
    pub fn intermediates(&self) -> impl Iterator<Item = CertificateDer<'static>> {
        self.crossed.iter().filter(|_| self.phase == Phase::Activated).cloned()
    }

    /// Fingerprint of the one that is there to stay.
    pub fn newest(&self) -> Fingerprint {
        self.bundle.last().map(fingerprint).unwrap_or_default()
    }

    /// What everybody may know.
    pub fn trust(&self) -> v1::Trust {
        v1::Trust {
            roots: self.bundle.iter().map(|root| root.to_vec()).collect(),
            signing: fingerprint(self.authority.root()).to_vec(),
        }
    }
}

/// The record, over any store.
#[derive(Clone)]
pub struct RootRecords {
    /// The store.
    pub store: Arc<dyn Store>,
    /// For the private keys.
    pub sealer: Arc<Sealer>,
}

impl RootRecords {
    /// The roots, of which one is made at the first start.
    ///
    /// # Errors
    /// When the record is damaged or sealed with another key, or the store fails.
    pub async fn load(&self, trust_domain: Option<&TrustDomain>) -> Result<Roots, RegistryError> {
        loop {
            if let Some((_, stored)) = read::<StoredRoots>(&*self.store, AUTHORITY).await? {
                return stored.open(&self.sealer);
            }
            let trust_domain = match trust_domain {
                Some(trust_domain) => trust_domain.clone(),
                None => DEFAULT_TRUST_DOMAIN.parse()?,
            };
            let authority = Authority::create(trust_domain)?;
            let stored = StoredRoots {
                trust_domain: authority.trust_domain().to_string(),
                roots: vec![StoredRoot::new(&authority, &self.sealer)?],
                signing: 0,
            };
            let conditions = vec![Condition::Absent(AUTHORITY.to_owned())];
            self.store.commit(Transaction { conditions, changes: vec![put(AUTHORITY, &stored)?] }).await?;
        }
    }
}

impl RootRecords {
    /// Makes a new root, that is to be trusted beside the one that signs. Returns the revision that has it.
    ///
    /// # Errors
    /// Another replacement is not over, or the store fails.
    pub async fn prepare(&self) -> Result<u64, RotationError> {
        self.change(|stored| match stored.phase() {
            Phase::Prepared => Ok(false),
            Phase::Activated => Err(RotationError::Order(
                "the last replacement is not over: end it with `murmesh ca rotate retire`",
            )),
            Phase::Steady => {
                let trust_domain: TrustDomain = stored.trust_domain.parse().map_err(RegistryError::from)?;
                let before = stored.signing()?.open(trust_domain.clone(), &self.sealer)?;
                let next = Authority::create(trust_domain).map_err(RegistryError::from)?;
                let crossed = before.cross_sign(&next).map_err(RegistryError::from)?;
                let mut root = StoredRoot::new(&next, &self.sealer)?;
                root.crossed = Some(BASE64.encode(&crossed));
                stored.roots.push(root);
                Ok(true)
            }
        })
        .await
    }

    /// Has the new root sign.
    ///
    /// # Errors
    /// There is none, or the store fails.
    pub async fn activate(&self) -> Result<u64, RotationError> {
        self.change(|stored| match stored.phase() {
            Phase::Steady => {
                Err(RotationError::Order("there is no new root: begin with `murmesh ca rotate prepare`"))
            }
            Phase::Prepared => {
                stored.signing = 1;
                Ok(true)
            }
            Phase::Activated => Ok(false),
        })
        .await
    }

    /// Ends the trust in the old root, and forgets its key.
    ///
    /// # Errors
    /// The new one does not sign yet, or the store fails.
    pub async fn retire(&self) -> Result<u64, RotationError> {
        self.change(|stored| match stored.phase() {
            Phase::Steady => Ok(false),
            Phase::Prepared => Err(RotationError::Order(
                "the old root still signs: `murmesh ca rotate activate` comes first",
            )),
            Phase::Activated => {
                stored.roots.remove(0);
                stored.signing = 0;
                Ok(true)
            }
        })
        .await
    }

    /// Applies `decide`, which says whether there is anything to change; returns the revision that has it.
    async fn change(
        &self,
        decide: impl Fn(&mut StoredRoots) -> Result<bool, RotationError>,
    ) -> Result<u64, RotationError> {
        loop {
            let found = read::<StoredRoots>(&*self.store, AUTHORITY).await?;
            let (entry, mut stored) = found.ok_or_else(damaged)?;
            if !decide(&mut stored)? {
                return Ok(entry.revision);
            }
            let conditions = vec![Condition::Unchanged(entry.key, entry.revision)];
            let transaction = Transaction { conditions, changes: vec![put(AUTHORITY, &stored)?] };
            let committed = self.store.commit(transaction).await.map_err(RegistryError::from)?;
            if let Outcome::Applied(revision) = committed {
                return Ok(revision);
            }
        }
    }
}

/// What everybody may know of the record.
///
/// # Errors
/// It is damaged.
pub fn trust(record: &[u8]) -> Result<v1::Trust, String> {
    let stored: StoredRoots = serde_json::from_slice(record).map_err(|error| error.to_string())?;
    let der = |root: &StoredRoot| root.certificate().map_err(|error| error.to_string());
    let roots = stored.roots.iter().map(der).collect::<Result<Vec<_>, _>>()?;
    let signing = roots.get(stored.signing).map(fingerprint).ok_or("no root signs")?.to_vec();
    Ok(v1::Trust { roots: roots.iter().map(|root| root.to_vec()).collect(), signing })
}

/// Adds to `transaction` what it takes to have the private keys sealed by `after`.
///
/// # Errors
/// They are not sealed by `before`, or the store fails.
pub async fn reseal(
    store: &dyn Store,
    before: &Sealer,
    after: &Sealer,
    transaction: &mut Transaction,
) -> Result<(), RegistryError> {
    let Some(entry) = store.get(AUTHORITY).await? else { return Ok(()) };
    let mut stored: StoredRoots = decode(&entry)?;
    for root in &mut stored.roots {
        let name = root.name()?;
        let key = before.open(&name, &bytes(&root.sealed_key)?)?;
        root.sealed_key = BASE64.encode(&after.seal(&name, &key)?);
    }
    transaction.conditions.push(Condition::Unchanged(entry.key, entry.revision));
    transaction.changes.push(put(AUTHORITY, &stored)?);
    Ok(())
}

impl StoredRoots {
    fn open(&self, sealer: &Sealer) -> Result<Roots, RegistryError> {
        let signing = self.signing()?;
        let authority = signing.open(self.trust_domain.parse()?, sealer)?;
        let bundle = self.roots.iter().map(StoredRoot::certificate).collect::<Result<_, _>>()?;
        let crossed = signing.crossed.as_deref().map(bytes).transpose()?.map(CertificateDer::from);
        Ok(Roots { authority, bundle, phase: self.phase(), crossed })
    }

    fn signing(&self) -> Result<&StoredRoot, RegistryError> {
        self.roots.get(self.signing).ok_or_else(damaged)
    }

    fn phase(&self) -> Phase {
        match (self.roots.len(), self.signing) {
            (0 | 1, _) => Phase::Steady,
            (_, 0) => Phase::Prepared,
            _ => Phase::Activated,
        }
    }
}

impl StoredRoot {
    fn new(authority: &Authority, sealer: &Sealer) -> Result<Self, RegistryError> {
        let sealed = sealer.seal(&name(authority.root()), authority.key().der())?;
        let certificate = BASE64.encode(authority.root());
        Ok(Self { certificate, crossed: None, sealed_key: BASE64.encode(&sealed) })
    }

    fn open(&self, trust_domain: TrustDomain, sealer: &Sealer) -> Result<Authority, RegistryError> {
        let key = sealer.open(&self.name()?, &bytes(&self.sealed_key)?)?;
        Ok(Authority::load(trust_domain, self.certificate()?, HostKey::from_der(&key)?)?)
    }

    fn certificate(&self) -> Result<CertificateDer<'static>, RegistryError> {
        Ok(CertificateDer::from(bytes(&self.certificate)?))
    }

    fn name(&self) -> Result<String, RegistryError> {
        Ok(name(&self.certificate()?))
    }
}

/// What the private key of a root is sealed as.
fn name(root: &CertificateDer<'_>) -> String {
    format!("{AUTHORITY}/{}", data_encoding::HEXLOWER.encode(&fingerprint(root)))
}

fn bytes(text: &str) -> Result<Vec<u8>, RegistryError> {
    BASE64.decode(text.as_bytes()).map_err(|_| damaged())
}

fn damaged() -> RegistryError {
    RegistryError::Damaged(AUTHORITY.to_owned())
}
