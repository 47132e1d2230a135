//! How what is kept on disk is protected.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use super::Finding;
use crate::seal::{DEFAULT_KEY_FILE, KeySource};

const GROUP: &str = "data at rest";
/// Where the kernel tells of block devices, by their numbers.
const DEVICES: &str = "/sys/dev/block";
/// How the device mapper's name for a volume of dm-crypt begins (cryptsetup, `dm_prepare_uuid`).
const CRYPT: &str = "CRYPT-";
/// Devices may be stacked: a logical volume on a mirror on an encrypted one.
const MAX_DEPTH: usize = 8;

/// The key that seals secrets, and the disk below `directory`.
pub fn check(directory: &Path) -> Vec<Finding> {
    vec![sealing(directory), encryption(directory)]
}

fn sealing(directory: &Path) -> Finding {
    const NAME: &str = "key that seals secrets";
    match KeySource::choose(None, None, directory) {
        KeySource::File(path) => {
            Finding::fine(GROUP, NAME, format!("systemd's credential {}", path.display()))
        }
        source if source.path().exists() => {
            let detail = format!(
                "{}, beside what it seals: it protects copies of the database and of single files, not a stolen disk",
                source.path().display()
            );
            let hint = "encrypt the disk, or keep the key elsewhere: --seal-key-file, --seal-passphrase-file, or a systemd credential";
            Finding::warning(GROUP, NAME, detail, hint)
        }
        _ => {
            let detail =
                format!("not in {}: a file elsewhere, a passphrase, or not made yet", directory.display());
            Finding::fine(GROUP, NAME, format!("{DEFAULT_KEY_FILE} is {detail}"))
        }
    }
}

fn encryption(directory: &Path) -> Finding {
    const NAME: &str = "encryption of the disk";
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let device = match fs::metadata(existing) {
        Ok(metadata) => metadata.dev(),
        Err(error) => return Finding::warning(GROUP, NAME, error.to_string(), "run this as root"),
    };
    let entry = Path::new(DEVICES).join(format!("{}:{}", major(device), minor(device)));
    let shown = existing.display();
    if !entry.exists() {
        let detail = format!("{shown} is on no block device that the kernel tells of");
        return Finding::warning(GROUP, NAME, detail, "look at what the file system is kept on by yourself");
    }
    if is_encrypted(&entry, 0) {
        return Finding::fine(GROUP, NAME, format!("{shown} is on dm-crypt"));
    }
    let hint = "put it on a LUKS volume (cryptsetup luksFormat) if the disk may fall into wrong hands";
    Finding::warning(GROUP, NAME, format!("{shown} is not on dm-crypt"), hint)
}

/// The device itself, or all that it lies on.
fn is_encrypted(device: &Path, depth: usize) -> bool {
    let uuid = fs::read_to_string(device.join("dm/uuid")).unwrap_or_default();
    if uuid.starts_with(CRYPT) {
        return true;
    }
    let below: Vec<PathBuf> = fs::read_dir(device.join("slaves"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    depth < MAX_DEPTH && !below.is_empty() && below.iter().all(|device| is_encrypted(device, depth + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory like that of a device, with the devices that it lies on.
    fn device(directory: &Path, name: &str, uuid: &str, below: &[&Path]) -> PathBuf {
        let device = directory.join(name);
        fs::create_dir_all(device.join("slaves")).unwrap();
        if !uuid.is_empty() {
            fs::create_dir(device.join("dm")).unwrap();
            fs::write(device.join("dm/uuid"), uuid).unwrap();
        }
        for below in below {
            std::os::unix::fs::symlink(below, device.join("slaves").join(below.file_name().unwrap()))
                .unwrap();
        }
        device
    }

    #[test]
    fn a_volume_is_encrypted_if_all_that_it_lies_on_is() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let plain = device(directory, "sda", "", &[]);
        let crypt = device(directory, "dm-0", "CRYPT-LUKS2-0123-root", &[&plain]);
        let volume = device(directory, "dm-1", "LVM-0123", &[&crypt]);
        let mixed = device(directory, "dm-2", "LVM-4567", &[&crypt, &plain]);
        for (device, wanted) in [(plain, false), (crypt, true), (volume, true), (mixed, false)] {
            assert_eq!(is_encrypted(&device, 0), wanted, "{}", device.display());
        }
    }
}
