//! The key of a host: ECDSA P-256, made on it and kept sealed in one file that only its daemon reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, fchown, geteuid};
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use super::IdentityError;
use crate::seal::Sealer;

/// What the key is sealed as.
const SEALED_AS: &str = "host.key";

/// A private key with its public half. It is overwritten when this is dropped; TLS has copies of its own.
pub struct HostKey(KeyPair);

impl HostKey {
    /// A new key.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(IdentityError::Issue)
    }

    /// The key in `path`, sealed by `sealer`, which is made first if there is none.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is not sealed by `sealer`, or holds no P-256 key.
    pub fn load_or_generate(path: &Path, sealer: &Sealer) -> Result<Self, IdentityError> {
        let failed = |reason: String| IdentityError::KeyFile { path: path.display().to_string(), reason };
        match fs::read(path) {
            Ok(sealed) => Self::open(&sealed, sealer).map_err(|reason| {
                failed(format!("{reason}; remove the file to make a new key and join again"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate()?;
                let sealed = sealer.seal(SEALED_AS, key.der());
                let sealed = sealed.map_err(|error| failed(error.to_string()))?;
                write_private(path, &sealed).map_err(|error| failed(error.to_string()))?;
                Ok(key)
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn open(sealed: &[u8], sealer: &Sealer) -> Result<Self, String> {
        let der = sealer.open(SEALED_AS, sealed).map_err(|error| error.to_string())?;
        Self::from_der(&der).map_err(|error| error.to_string())
    }

    /// Reads a PKCS#8 key in DER.
    ///
    /// # Errors
    /// When it is not a P-256 key.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let der = PrivatePkcs8KeyDer::from(der);
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(IdentityError::Issue)
    }

    /// The public key as the certificate carries it: an uncompressed point (RFC 5480 section 2.2).
    pub fn public_key(&self) -> &[u8] {
        self.0.der_bytes()
    }

    /// The private key for TLS.
    pub fn private_key(&self) -> Zeroizing<PrivateKeyDer<'static>> {
        Zeroizing::new(PrivatePkcs8KeyDer::from(self.0.serialize_der()).into())
    }

    /// The private key as PKCS#8 in DER.
    pub fn der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// A certificate request (PKCS#10, DER), signed by the key. It names nobody: the server decides that.
    ///
    /// # Errors
    /// When signing fails.
    pub fn certificate_request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let request = parameters.serialize_request(self).map_err(IdentityError::Issue)?;
        Ok(request.der().to_vec())
    }
}

impl PublicKeyData for HostKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for HostKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl Drop for HostKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Replaces `path` as a whole with `content`, readable and writable by its owner only, and durably:
/// after a crash there is either the old content or the new. What root makes in another user's directory is that user's:
/// the daemon that runs as that user has to read it.
///
/// # Errors
/// Any failure to write, sync or rename.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, content, belong_to_directory)?;
    fs::rename(temporary, path)?;
    sync_directory(path)
}

/// The same, and it is the user's who runs this, in whatever directory.
///
/// # Errors
/// As [`write_private`].
pub fn write_private_as_own(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, content, |_, _| Ok(()))?;
    fs::rename(temporary, path)?;
    sync_directory(path)
}

/// The same, unless there is a file called `path` already.
///
/// # Errors
/// `AlreadyExists`, or any failure to write or sync.
pub fn make_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, content, belong_to_directory)?;
    let made = fs::hard_link(&temporary, path);
    fs::remove_file(temporary)?;
    made?;
    sync_directory(path)
}

/// Two agents of a host, one of which takes over, may write the same file: each beside it under another name.
fn write_beside(
    path: &Path,
    content: &[u8],
    own: impl FnOnce(&File, &Path) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".new-{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    // A file left by an earlier crash keeps its mode when it is opened again.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    own(&file, path)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(temporary)
}

/// Gives a file that root makes to the user whose directory it is in.
///
/// # Errors
/// The directory cannot be looked at, or the kernel refuses.
pub fn belong_to_directory(file: &File, path: &Path) -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(directory(path))?;
    if owner.uid() == 0 {
        return Ok(());
    }
    Ok(fchown(file, Some(Uid::from_raw(owner.uid())), Some(Gid::from_raw(owner.gid())))?)
}

/// A name is durable only once its directory is.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::fixture;
    use crate::seal::SealKey;

    fn sealer() -> Sealer {
        Sealer::new(&SealKey::from_bytes([1; 32])).unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.key");
        let first = HostKey::load_or_generate(&path, &sealer()).unwrap();
        let again = HostKey::load_or_generate(&path, &sealer()).unwrap();
        assert_eq!(first.public_key(), again.public_key());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_private_key_of_an_identity_is_not_in_debug_output() {
        let identity = fixture::host(&fixture::authority(), "here");
        // The private number follows its tag and length (RFC 5915).
        let der = identity.key.secret_der();
        let start = der.windows(2).position(|bytes| bytes == [4, 32]).unwrap() + 2;
        let number = &der[start..start + 8];
        let shown = format!("{identity:?}");
        let forms = [format!("{number:?}"), format!("{number:x?}"), format!("{number:02x?}")];
        for form in forms {
            assert!(!shown.contains(form.trim_matches(['[', ']'])), "{shown}");
        }
    }

    #[test]
    fn a_damaged_key_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.key");
        fs::write(&path, "nonsense").unwrap();
        let error = HostKey::load_or_generate(&path, &sealer()).err().unwrap().to_string();
        assert!(error.contains("host.key"), "{error}");
    }
}
