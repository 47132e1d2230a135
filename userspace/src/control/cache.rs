//! What an agent keeps on disk so that it goes on without any server, also after its host was restarted: the catalog
//! with the policy, and the certificates of its workloads with their keys. All of it is sealed.
//!
//! It is sealed under the name of the host: the file of another host, or of an earlier membership, does not open.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;
use rustls_pki_types::CertificateDer;
use tracing::{info, warn};
use zeroize::{Zeroize as _, Zeroizing};

use super::ControlError;
use crate::api::v1;
use crate::catalog::Catalog;
use crate::identity::key::write_private;
use crate::identity::{HostKey, Identity, SpiffeId};
use crate::seal::{SealError, Sealer};

const CACHE_FILE: &str = "cache.sealed";

#[derive(Clone, PartialEq, Message)]
struct Stored {
    /// A snapshot.
    #[prost(message, optional, tag = "1")]
    catalog: Option<v1::CatalogEvent>,
    #[prost(message, repeated, tag = "2")]
    identities: Vec<StoredIdentity>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredIdentity {
    /// Certificates in DER, leaf first.
    #[prost(bytes = "vec", repeated, tag = "1")]
    chain: Vec<Vec<u8>>,
    /// PKCS#8, DER.
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

/// The file, and what seals it.
pub struct Cache {
    path: PathBuf,
    sealer: Sealer,
    /// What it is sealed as.
    name: String,
}

/// What was in it.
#[derive(Default)]
pub struct Cached {
    /// As it was last heard of; of revision 0 if there is none.
    pub catalog: Catalog,
    /// Of workloads and services; none of them has expired.
    pub identities: Vec<Identity>,
    /// There is something, and it cannot be used.
    pub is_lost: bool,
}

impl Cache {
    /// Of the host with the identity `own`, in `directory`.
    pub fn new(directory: &Path, sealer: Sealer, own: &SpiffeId) -> Self {
        Self { path: directory.join(CACHE_FILE), sealer, name: format!("cache of {own}") }
    }

    /// What is in it. Nothing, and a line in the log, if it cannot be used. Certificates are trusted as far as those of
    /// `host` are.
    pub fn load(&self, host: &Identity) -> Cached {
        let found = match fs::read(&self.path) {
            Ok(sealed) => self.open(&sealed, host),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Cached::default(),
            Err(error) => Err(error.to_string()),
        };
        match found {
            Ok(cached) => {
                let (revision, certificates) = (cached.catalog.revision, cached.identities.len());
                info!(revision, certificates, "going on from what was kept on disk");
                cached
            }
            Err(reason) => {
                let path = self.path.display();
                warn!("{path} cannot be used, nothing is known of the mesh until a server answers: {reason}");
                Cached { is_lost: true, ..Cached::default() }
            }
        }
    }

    /// Replaces what is in it, as a whole. Blocks while the disk writes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, catalog: &Catalog, identities: &[Arc<Identity>]) -> Result<(), ControlError> {
        let event = v1::catalog_event::Event::Snapshot(catalog.into());
        let stored = Stored {
            catalog: Some(v1::CatalogEvent { revision: catalog.revision, event: Some(event) }),
            identities: identities.iter().map(|identity| StoredIdentity::from(&**identity)).collect(),
        };
        let sealed = self.seal(&Zeroizing::new(stored.encode_to_vec()))?;
        write_private(&self.path, &sealed)
            .map_err(|error| ControlError::File { path: self.path.clone(), reason: error.to_string() })
    }

    /// Removes the file in `directory`, if there is one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(directory: &Path) -> Result<(), ControlError> {
        let path = directory.join(CACHE_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ControlError::File { path, reason: error.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Seals what is written.
    ///
    /// # Errors
    /// As [`Sealer::seal`].
    pub(crate) fn seal(&self, stored: &[u8]) -> Result<Vec<u8>, SealError> {
        self.sealer.seal(&self.name, stored)
    }

    /// What was sealed, checked like what a server sends.
    ///
    /// # Errors
    /// Why it cannot be used, in words.
    pub(crate) fn open(&self, sealed: &[u8], host: &Identity) -> Result<Cached, String> {
        let opened = self.sealer.open(&self.name, sealed).map_err(|error| error.to_string())?;
        let stored = Stored::decode(opened.as_slice()).map_err(|error| error.to_string())?;
        let mut catalog = Catalog::default();
        catalog.apply(stored.catalog.unwrap_or_default()).map_err(|error| error.to_string())?;
        let now = SystemTime::now();
        let identities = stored.identities.into_iter().filter_map(|identity| identity.open(host));
        let identities = identities.filter(|identity| !identity.is_expired(now)).collect();
        Ok(Cached { catalog, identities, is_lost: false })
    }
}

impl StoredIdentity {
    /// One that is not usable is left out: it is asked for again.
    fn open(mut self, host: &Identity) -> Option<Identity> {
        let key = HostKey::from_der(&self.key).ok()?;
        let chain = std::mem::take(&mut self.chain).into_iter().map(CertificateDer::from).collect();
        Identity::new(&key, chain, host.bundle.clone()).ok()
    }
}

impl Drop for StoredIdentity {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl From<&Identity> for StoredIdentity {
    fn from(identity: &Identity) -> Self {
        Self {
            chain: identity.chain.iter().map(|certificate| certificate.to_vec()).collect(),
            key: identity.key.secret_der().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::{Subject, fixture};
    use crate::seal::SealKey;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(&SealKey::from_bytes([byte; 32])).unwrap()
    }

    fn cache(directory: &Path, byte: u8, host: &Identity) -> Cache {
        Cache::new(directory, sealer(byte), &host.id)
    }

    #[test]
    fn what_was_saved_is_loaded_but_for_what_has_expired() {
        let (directory, authority) = (tempfile::tempdir().unwrap(), fixture::authority());
        let host = fixture::host(&authority, "here");
        let workload = |name: &str| Subject::Workload("here".parse().unwrap(), name.parse().unwrap());
        let fresh = fixture::issue(&authority, workload("web.service"), Duration::from_secs(60));
        let expired = fixture::issue(&authority, workload("old.service"), Duration::ZERO);
        let (id, key) = (fresh.id.clone(), Zeroizing::new(fresh.key.clone_key()));
        let catalog = Catalog { revision: 7, ..Catalog::default() };
        let cache = cache(directory.path(), 1, &host);
        cache.save(&catalog, &[fresh.into(), expired.into()]).unwrap();
        let cached = cache.load(&host);
        assert_eq!(cached.catalog, catalog);
        assert_eq!(cached.identities.len(), 1);
        assert_eq!((&cached.identities[0].id, &cached.identities[0].key), (&id, &key));
    }

    #[test]
    fn another_key_another_host_or_damage_give_nothing() {
        let (directory, authority) = (tempfile::tempdir().unwrap(), fixture::authority());
        let (host, other) = (fixture::host(&authority, "here"), fixture::host(&authority, "there"));
        let catalog = Catalog { revision: 7, ..Catalog::default() };
        cache(directory.path(), 1, &host).save(&catalog, &[]).unwrap();
        let found = |cache: Cache, host: &Identity| {
            let cached = cache.load(host);
            (cached.catalog.revision, cached.is_lost)
        };
        assert_eq!(found(cache(directory.path(), 1, &host), &host), (7, false));
        assert_eq!(found(cache(directory.path(), 2, &host), &host), (0, true));
        assert_eq!(found(cache(directory.path(), 1, &other), &other), (0, true));
        fs::write(directory.path().join(CACHE_FILE), b"MMS1").unwrap();
        assert_eq!(found(cache(directory.path(), 1, &host), &host), (0, true));
        Cache::forget(directory.path()).unwrap();
        assert_eq!(found(cache(directory.path(), 1, &host), &host), (0, false));
    }
}
