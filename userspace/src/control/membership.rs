//! What a host keeps of its membership: `host.key`, which is sealed, and `membership.json` in its data directory.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::{BASE64, HEXLOWER};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::ControlError;
use crate::api::v1;
use crate::identity::key::write_private;
use crate::identity::token::ServerAddress;
use crate::identity::{HostKey, Identity, IdentityError, JoinToken, NodeName, TrustDomain};
use crate::seal::{KeySource, Sealer};

const KEY_FILE: &str = "host.key";
const MEMBERSHIP_FILE: &str = "membership.json";

/// A host's membership of a mesh, as it is on its disk.
pub struct Membership {
    directory: PathBuf,
    key: HostKey,
    certificates: Certificates,
    /// See [`Stored::token`].
    token: String,
    /// What is in use is also on disk.
    is_saved: bool,
}

struct Certificates {
    chain: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    servers: Vec<ServerAddress>,
}

/// Certificates are base64 of DER, leaf first.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    chain: Vec<String>,
    bundle: Vec<String>,
    servers: Vec<String>,
    /// SHA-256 of the secret of the token that the host joined with, in hexadecimal.
    #[serde(default)]
    token: String,
}

/// The key of `directory`, which survives a join whose answer was lost.
pub(super) fn load_key(directory: &Path, sealer: &Sealer) -> Result<HostKey, ControlError> {
    Ok(HostKey::load_or_generate(&directory.join(KEY_FILE), sealer)?)
}

/// What seals the secrets in `directory`, which is made if there is none.
pub(super) fn sealer(directory: &Path, key: &KeySource) -> Result<Sealer, ControlError> {
    let failed =
        |error: io::Error| ControlError::File { path: directory.to_owned(), reason: error.to_string() };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    Ok(Sealer::new(&key.load(None)?)?)
}

impl Membership {
    /// Whether `directory` holds one.
    pub fn exists(directory: &Path) -> bool {
        directory.join(MEMBERSHIP_FILE).exists()
    }

    /// Loads what `directory` holds; `None` if the host never joined.
    ///
    /// # Errors
    /// When a file is unreadable or damaged.
    pub fn load(directory: &Path, sealer: &Sealer) -> Result<Option<Self>, ControlError> {
        let path = directory.join(MEMBERSHIP_FILE);
        let failed = |reason: String| ControlError::File {
            path: path.clone(),
            reason: format!("{reason}; remove the file to join again with a new token"),
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        let stored: Stored = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let certificates = stored.decode().ok_or_else(|| failed("it is damaged".to_owned()))?;
        let (directory, key) = (directory.to_owned(), load_key(directory, sealer)?);
        Ok(Some(Self { directory, key, certificates, token: stored.token, is_saved: true }))
    }

    /// Makes a membership of a server's answer and saves it.
    pub(super) fn create(
        directory: &Path,
        key: HostKey,
        answer: v1::CertificateResponse,
        token: &JoinToken,
    ) -> Result<Self, ControlError> {
        let certificates = Certificates::from_answer(answer)?;
        let (directory, token) = (directory.to_owned(), token_hash(token));
        let membership = Self { directory, key, certificates, token, is_saved: true };
        membership.identity()?;
        membership.save()?;
        Ok(membership)
    }

    /// Takes a renewed certificate. Nothing changes when it is not usable. It is used also where it cannot be saved: a full
    /// disk must not let it expire.
    pub(super) fn renew(&mut self, answer: v1::CertificateResponse) -> Result<Arc<Identity>, ControlError> {
        let certificates = Certificates::from_answer(answer)?;
        let identity = Identity::new(&self.key, certificates.chain.clone(), certificates.bundle.clone())?;
        if identity.id != self.identity()?.id {
            return Err(IdentityError::Certificate("the server renewed another identity").into());
        }
        self.certificates = certificates;
        self.keep();
        Ok(Arc::new(identity))
    }

    /// Trusts other roots from now on, and saves that if it can.
    pub(super) fn trust(
        &mut self,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<Identity>, ControlError> {
        let identity = Identity::new(&self.key, self.certificates.chain.clone(), bundle.clone())?;
        self.certificates.bundle = bundle;
        self.keep();
        Ok(Arc::new(identity))
    }

    /// The identity that the newest certificate gives.
    ///
    /// # Errors
    /// When key and certificates do not fit.
    pub fn identity(&self) -> Result<Arc<Identity>, ControlError> {
        let Certificates { chain, bundle, .. } = &self.certificates;
        Ok(Arc::new(Identity::new(&self.key, chain.clone(), bundle.clone())?))
    }

    /// The name under which the host joined, and its mesh.
    ///
    /// # Errors
    /// As [`Self::identity`].
    pub fn name(&self) -> Result<(TrustDomain, NodeName), ControlError> {
        let identity = self.identity()?;
        Ok((identity.id.trust_domain.clone(), identity.node()?.clone()))
    }

    /// Whether this is what `token` gave.
    pub(super) fn is_of(&self, token: &JoinToken) -> bool {
        self.token == token_hash(token)
    }

    /// Whether both are what one token gave.
    pub(super) fn is_of_the_same_token(&self, other: &Self) -> bool {
        self.token == other.token
    }

    /// The servers of the mesh.
    pub fn servers(&self) -> &[ServerAddress] {
        &self.certificates.servers
    }

    /// Takes the list of servers and saves it; returns whether it is another one.
    pub(super) fn learn_servers(&mut self, servers: Vec<ServerAddress>) -> Result<bool, ControlError> {
        if servers.is_empty() || servers == self.certificates.servers {
            return Ok(false);
        }
        self.certificates.servers = servers;
        self.save()?;
        Ok(true)
    }

    /// The roots of the mesh.
    pub(super) fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.certificates.bundle
    }

    pub(super) fn key(&self) -> &HostKey {
        &self.key
    }

    /// Whether what is in use is also on disk.
    pub(super) fn is_saved(&self) -> bool {
        self.is_saved
    }

    /// Saves what is in use already.
    pub(super) fn keep(&mut self) {
        self.is_saved = match self.save() {
            Ok(()) => true,
            Err(error) => {
                warn!("a certificate is in use, and not kept on disk, trying again: {error}");
                false
            }
        };
    }

    fn save(&self) -> Result<(), ControlError> {
        let path = self.directory.join(MEMBERSHIP_FILE);
        let failed = |error: String| ControlError::File { path: path.clone(), reason: error };
        let text = serde_json::to_string_pretty(&Stored::encode(&self.certificates, &self.token))
            .map_err(|error| failed(error.to_string()))?;
        write_private(&path, text.as_bytes()).map_err(|error| failed(error.to_string()))
    }
}

/// Nobody can join with it.
fn token_hash(token: &JoinToken) -> String {
    HEXLOWER.encode(&JoinToken::secret_hash(&*token.secret))
}

impl Certificates {
    fn from_answer(answer: v1::CertificateResponse) -> Result<Self, ControlError> {
        let servers: Result<Vec<ServerAddress>, _> =
            answer.servers.iter().map(|server| server.parse()).collect();
        if answer.servers.is_empty() {
            return Err(IdentityError::Certificate("it came without any server address").into());
        }
        Ok(Self {
            chain: answer.chain.into_iter().map(CertificateDer::from).collect(),
            bundle: answer.bundle.into_iter().map(CertificateDer::from).collect(),
            servers: servers
                .map_err(|_| IdentityError::Certificate("it came with a wrong server address"))?,
        })
    }
}

impl Stored {
    fn encode(certificates: &Certificates, token: &str) -> Self {
        let encode = |list: &[CertificateDer<'_>]| list.iter().map(|der| BASE64.encode(der)).collect();
        Self {
            chain: encode(&certificates.chain),
            bundle: encode(&certificates.bundle),
            servers: certificates.servers.iter().map(ToString::to_string).collect(),
            token: token.to_owned(),
        }
    }

    fn decode(&self) -> Option<Certificates> {
        let decode = |list: &[String]| -> Option<Vec<CertificateDer<'static>>> {
            list.iter().map(|text| BASE64.decode(text.as_bytes()).ok().map(CertificateDer::from)).collect()
        };
        Some(Certificates {
            chain: decode(&self.chain)?,
            bundle: decode(&self.bundle)?,
            servers: self.servers.iter().map(|server| server.parse().ok()).collect::<Option<_>>()?,
        })
    }
}
