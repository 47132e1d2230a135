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
use crate::identity::token::sha256;
use crate::identity::{Authority, TrustDomain};
use crate::seal::Sealer;
use crate::store::{Condition, Store, Transaction};

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
    /// Private key (PKCS#8, PEM), sealed.
    sealed_key: String,
}

/// The roots as a server uses them.
pub struct Roots {
    /// The one that signs.
    pub authority: Authority,
    /// Those that are trusted.
    pub bundle: Vec<CertificateDer<'static>>,
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
        let signing = self.roots.get(self.signing).ok_or_else(damaged)?;
        let authority = signing.open(self.trust_domain.parse()?, sealer)?;
        let bundle = self.roots.iter().map(StoredRoot::certificate).collect::<Result<_, _>>()?;
        Ok(Roots { authority, bundle })
    }
}

impl StoredRoot {
    fn new(authority: &Authority, sealer: &Sealer) -> Result<Self, RegistryError> {
        let sealed = sealer.seal(&name(authority.root()), authority.key_pem().as_bytes())?;
        Ok(Self { certificate: BASE64.encode(authority.root()), sealed_key: BASE64.encode(&sealed) })
    }

    fn open(&self, trust_domain: TrustDomain, sealer: &Sealer) -> Result<Authority, RegistryError> {
        let key = sealer.open(&self.name()?, &bytes(&self.sealed_key)?)?;
        let key = String::from_utf8(key).map_err(|_| damaged())?;
        Ok(Authority::load(trust_domain, self.certificate()?, key)?)
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
    format!("{AUTHORITY}/{}", data_encoding::HEXLOWER.encode(&sha256(root)))
}

fn bytes(text: &str) -> Result<Vec<u8>, RegistryError> {
    BASE64.decode(text.as_bytes()).map_err(|_| damaged())
}

fn damaged() -> RegistryError {
    RegistryError::Damaged(AUTHORITY.to_owned())
}
