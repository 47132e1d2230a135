//! What lies on the disks of a server and of an agent, and which key opens it.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, HEXLOWER};

use super::{World, options};
use crate::identity::{HostKey, JoinToken};
use crate::seal::KeySource;
use crate::server::{Server, ServerError, reseal};

/// Every file below `directory` but the keys that seal the others, with its content.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else if entry.is_file()
            && entry.extension().is_none_or(|extension| extension != "key" || entry.ends_with("host.key"))
        {
            let content = fs::read(&entry).unwrap();
            found.push((entry, content));
        }
    }
    found
}

fn contains(content: &[u8], secret: &[u8]) -> bool {
    content.windows(secret.len()).any(|window| window == secret)
}

/// A secret as it is, and as it would look in text.
fn forms(secret: &[u8]) -> [Vec<u8>; 3] {
    [secret.to_vec(), BASE64.encode(secret).into_bytes(), HEXLOWER.encode(secret).into_bytes()]
}

/// The private number of a key: its PKCS#8 form differs between libraries, this does not.
fn private_number(key: &HostKey) -> Vec<u8> {
    let pkcs8 = key.private_key();
    let der = pkcs8.secret_der();
    // RFC 5915 section 3: an octet string of 32 bytes after version 1.
    let at = der.windows(5).position(|bytes| bytes == [0x02, 0x01, 0x01, 0x04, 0x20]).unwrap() + 5;
    der[at..at + 32].to_vec()
}

fn ensure_absent(directory: &Path, what: &str, secret: &[u8]) {
    for (path, content) in files(directory) {
        for form in forms(secret) {
            assert!(!contains(&content, &form), "{what} is in {}", path.display());
        }
        assert!(!contains(&content, b"PRIVATE KEY"), "a private key is in {}", path.display());
        assert!(!contains(&content, &BASE64.encode(b"-----BEGIN PRI").into_bytes()), "{}", path.display());
    }
}

#[tokio::test]
async fn no_file_of_server_or_agent_holds_a_secret_in_clear() {
    let world = World::start().await;
    let (unused, used) = (world.token().await, world.token().await);
    let agent = world.agent_with("fcs00", used.clone()).await;
    let host_key = agent.identity.borrow().key.clone_key();
    let host_number = private_number(&HostKey::from_der(host_key.secret_der()).unwrap());
    drop(agent);
    let directory = world.stop().await;
    assert!(files(directory.path()).len() >= 3, "database, host key and membership");
    let roots = open_roots(directory.path()).await;
    let root_number = private_number(roots.authority.key());
    ensure_absent(directory.path(), "the root key", &root_number);
    ensure_absent(directory.path(), "the host's key", &host_number);
    for JoinToken { secret, .. } in [unused, used] {
        ensure_absent(directory.path(), "the secret of a token", &*secret);
    }
}

async fn open_roots(directory: &Path) -> crate::server::roots::Roots {
    use crate::server::{open_store, roots::RootRecords, sealing};
    let options = options(directory);
    let store = open_store(&options.store).await.unwrap();
    let sealer = sealing::open(&*store, &options.seal).await.unwrap().into();
    RootRecords { store, sealer }.load(None).await.unwrap()
}

fn key_file(directory: &Path, name: &str, digit: &str) -> KeySource {
    let path = directory.join(name);
    fs::write(&path, digit.repeat(64)).unwrap();
    KeySource::File(path)
}

#[tokio::test]
async fn a_server_without_the_right_key_says_so_and_does_not_start() {
    let directory = World::start().await.stop().await;
    let mut options = options(directory.path());
    let default = options.seal.clone();
    options.seal = key_file(directory.path(), "other", "7");
    let refused = Server::bind(options.clone()).await.err().unwrap().to_string();
    assert!(refused.contains("--seal-key-file"), "{refused}");
    fs::rename(default.path(), directory.path().join("lost")).unwrap();
    options.seal = default;
    let refused = Server::bind(options).await.err().unwrap().to_string();
    assert!(refused.contains("copy the file"), "{refused}");
}

#[tokio::test]
async fn what_is_sealed_anew_opens_with_the_new_key_only_and_is_the_same() {
    let directory = World::start().await.stop().await;
    let old = options(directory.path());
    let root = open_roots(directory.path()).await.authority.root().clone();
    let passphrase = KeySource::Passphrase(directory.path().join("passphrase"));
    fs::write(passphrase.path(), "correct horse").unwrap();
    reseal(&old.store, &old.seal, Some(&passphrase)).await.unwrap();
    assert!(matches!(Server::bind(old.clone()).await, Err(ServerError::Registry(_))));
    let file = key_file(directory.path(), "file", "9");
    reseal(&old.store, &passphrase, Some(&file)).await.unwrap();
    assert!(reseal(&old.store, &file, None).await.is_err(), "a key that is somebody else's to keep");
    reseal(&old.store, &file, Some(&old.seal)).await.unwrap();
    reseal(&old.store, &old.seal, None).await.unwrap();
    assert_eq!(*open_roots(directory.path()).await.authority.root(), root);
}

#[tokio::test]
async fn a_change_of_the_key_that_was_cut_short_is_finished_at_the_next_start() {
    let directory = World::start().await.stop().await;
    let old = options(directory.path());
    let before = fs::read(old.seal.path()).unwrap();
    reseal(&old.store, &old.seal, None).await.unwrap();
    // As if the machine had stopped between the commit and the renaming.
    let next = old.seal.next().unwrap();
    fs::rename(old.seal.path(), next.path()).unwrap();
    fs::write(old.seal.path(), before).unwrap();
    open_roots(directory.path()).await;
    assert!(!next.path().exists());
}
