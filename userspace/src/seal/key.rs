//! Where the key that seals secrets comes from: a file, a passphrase, or a systemd credential.

use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::pbkdf2;
use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::SealError;
use crate::identity::key::make_private;

/// In the data directory, unless another key is named.
pub const DEFAULT_KEY_FILE: &str = "seal.key";
/// Where the next one lies while everything is sealed anew.
const NEXT_KEY_FILE: &str = "seal.key.next";
/// In the directory that systemd names (systemd.exec(5), LoadCredential= and LoadCredentialEncrypted=).
const CREDENTIAL: &str = "murmesh-seal-key";
const KEY_LENGTH: usize = 32;
const SALT_LENGTH: usize = 16;
/// What OWASP asks for of PBKDF2 with HMAC-SHA-256 (2023).
const ITERATIONS: u32 = 600_000;
const MAKE_ONE: &str = "`openssl rand -hex 32` makes one";

/// A key for sealing, overwritten when this is dropped.
pub struct SealKey(Zeroizing<[u8; KEY_LENGTH]>);

/// What turns a passphrase into a key (PBKDF2 with HMAC-SHA-256, RFC 8018), besides the passphrase. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassphraseParameters {
    /// In hexadecimal.
    salt: String,
    iterations: NonZeroU32,
}

/// Where the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file with 64 hexadecimal digits.
    File(PathBuf),
    /// The first line of a file.
    Passphrase(PathBuf),
    /// In the data directory beside what it seals: a backup of the one without the other tells nothing.
    Default(PathBuf),
}

impl KeySource {
    /// What is named, else systemd's credential `murmesh-seal-key`, else a file in `data_dir`.
    pub fn choose(key_file: Option<PathBuf>, passphrase_file: Option<PathBuf>, data_dir: &Path) -> Self {
        match (key_file, passphrase_file) {
            (Some(path), _) => Self::File(path),
            (None, Some(path)) => Self::Passphrase(path),
            (None, None) => match credential() {
                Some(path) => Self::File(path),
                None => Self::Default(data_dir.join(DEFAULT_KEY_FILE)),
            },
        }
    }

    /// The key. One in the data directory is made if there is none; for a passphrase `parameters` are needed.
    ///
    /// # Errors
    /// There is none, or it is not one.
    pub fn load(&self, parameters: Option<&PassphraseParameters>) -> Result<SealKey, SealError> {
        match self {
            Self::File(path) => read_key(path),
            Self::Passphrase(path) => {
                let needed = || {
                    self.failed("what it is for is sealed with a key and no passphrase: use --seal-key-file")
                };
                read_passphrase(path)?.derive(parameters.ok_or_else(needed)?)
            }
            Self::Default(path) => match read_key(path) {
                Err(_) if !path.exists() => make_key(path),
                found => found,
            },
        }
    }

    /// The same; none is made.
    ///
    /// # Errors
    /// There is none, or it is not one.
    pub fn load_existing(&self, parameters: Option<&PassphraseParameters>) -> Result<SealKey, SealError> {
        match self {
            Self::Default(path) if !path.exists() => Err(self.failed(
                "there is no such file, and what it would open is there: copy the file from where it was made, or name the key with --seal-key-file or --seal-passphrase-file",
            )),
            _ => self.load(parameters),
        }
    }

    /// Whether a passphrase is asked for, which takes parameters.
    pub fn is_passphrase(&self) -> bool {
        matches!(self, Self::Passphrase(_))
    }

    /// Where the next key of the data directory is, before and while everything is sealed with it. `None` for keys that
    /// others keep.
    pub fn next(&self) -> Option<Self> {
        match self {
            Self::Default(path) => Some(Self::Default(path.with_file_name(NEXT_KEY_FILE))),
            _ => None,
        }
    }

    /// Puts the next key of the data directory in the place of the one before.
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn take_next(&self) -> Result<(), SealError> {
        let next = self.path().with_file_name(NEXT_KEY_FILE);
        fs::rename(&next, self.path()).map_err(|error| failed(&next, error.to_string()))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        let (Self::File(path) | Self::Passphrase(path) | Self::Default(path)) = self;
        path
    }

    fn failed(&self, reason: &str) -> SealError {
        failed(self.path(), reason)
    }
}

impl SealKey {
    /// Of these bytes.
    pub fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes.into())
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl PassphraseParameters {
    /// New ones.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn generate() -> Result<Self, SealError> {
        let mut salt = [0; SALT_LENGTH];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| SealError::Failed("anything".to_owned()))?;
        let iterations = NonZeroU32::new(ITERATIONS).unwrap_or(NonZeroU32::MIN);
        Ok(Self { salt: HEXLOWER_PERMISSIVE.encode(&salt), iterations })
    }
}

struct Passphrase<'a>(&'a Path, Zeroizing<Vec<u8>>);

impl Passphrase<'_> {
    fn derive(&self, parameters: &PassphraseParameters) -> Result<SealKey, SealError> {
        let salt = HEXLOWER_PERMISSIVE.decode(parameters.salt.as_bytes());
        let salt = salt.map_err(|_| failed(self.0, "the salt that belongs to it is damaged"))?;
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, parameters.iterations, &salt, &self.1, &mut *key);
        Ok(SealKey(key))
    }
}

fn credential() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
    path.exists().then_some(path)
}

fn failed(path: &Path, reason: impl Into<String>) -> SealError {
    SealError::Key { origin: path.display().to_string(), reason: reason.into() }
}

fn read_key(path: &Path) -> Result<SealKey, SealError> {
    let text = Zeroizing::new(fs::read(path).map_err(|error| failed(path, error.to_string()))?);
    let bytes = Zeroizing::new(HEXLOWER_PERMISSIVE.decode(text.trim_ascii()).unwrap_or_default());
    let key = <[u8; KEY_LENGTH]>::try_from(bytes.as_slice());
    let key = key.map_err(|_| failed(path, format!("it is not 64 hexadecimal digits; {MAKE_ONE}")))?;
    Ok(SealKey::from_bytes(key))
}

fn read_passphrase(path: &Path) -> Result<Passphrase<'_>, SealError> {
    let text = Zeroizing::new(fs::read(path).map_err(|error| failed(path, error.to_string()))?);
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.is_empty() {
        Err(failed(path, "its first line is empty"))
    } else {
        Ok(Passphrase(path, line.to_vec().into()))
    }
}

/// Of two daemons that start together in one directory, one makes it and the other finds it.
fn make_key(path: &Path) -> Result<SealKey, SealError> {
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    aws_lc_rs::rand::fill(&mut *key).map_err(|_| failed(path, "the operating system gives no randomness"))?;
    let digits = Zeroizing::new(HEXLOWER_PERMISSIVE.encode(&*key));
    let text = Zeroizing::new(format!("{}\n", *digits));
    let directory = path.parent().map(|path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path));
    directory.transpose().map_err(|error| failed(path, error.to_string()))?;
    match make_private(path, text.as_bytes()) {
        Ok(()) => Ok(SealKey(key)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read_key(path),
        Err(error) => Err(failed(path, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_default_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let source = KeySource::choose(None, None, directory.path());
        assert!(source.load_existing(None).is_err());
        let key = source.load(None).unwrap();
        assert_eq!(key.0, source.load_existing(None).unwrap().0);
        let path = directory.path().join(DEFAULT_KEY_FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_passphrase_and_its_parameters_give_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        let source = KeySource::choose(None, Some(path.clone()), directory.path());
        let parameters = PassphraseParameters::generate().unwrap();
        fs::write(&path, "\n").unwrap();
        assert!(source.load(Some(&parameters)).is_err());
        fs::write(&path, "correct horse\n").unwrap();
        let key = source.load(Some(&parameters)).unwrap();
        assert_eq!(key.0, source.load(Some(&parameters)).unwrap().0);
        assert_ne!(key.0, source.load(Some(&PassphraseParameters::generate().unwrap())).unwrap().0);
    }

    #[test]
    fn what_is_no_key_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "0123").unwrap();
        let error = KeySource::File(path).load(None).err().unwrap().to_string();
        assert!(error.contains("/key: it is not 64 hexadecimal digits"), "{error}");
    }
}
