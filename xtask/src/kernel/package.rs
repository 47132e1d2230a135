//! Kernels of Debian's, unpacked below `target/kernels` and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::setup::fetch_package_lists;
use crate::shell::{self, progress};

const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-amd64";

/// Most of a kernel's modules, and none that an emulated machine has any use for.
const LEFT_OUT: [&str; 7] = [
    "sound",
    "drivers/gpu",
    "drivers/infiniband",
    "drivers/media",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/usb",
];

/// An unpacked kernel.
pub struct Kernel {
    directory: PathBuf,
    release: String,
}

/// The newest kernel of `series` that the machine's package lists name, downloaded unless it is here.
pub fn newest(series: &str) -> Result<Kernel> {
    if let Some(kernel) = listed(series)?.map(Kernel::new).filter(Kernel::is_here) {
        return Ok(kernel);
    }
    // Lists of another day name packages that are gone.
    fetch_package_lists();
    let package = listed(series)?.with_context(|| {
        format!(
            "the package lists of this machine have no {PREFIX}{series}.*{SUFFIX}: Debian 12 has 6.1 and 6.12"
        )
    })?;
    let kernel = Kernel::new(package);
    if !kernel.is_here() {
        kernel.download().with_context(|| format!("getting Linux {}", kernel.release))?;
    }
    Ok(kernel)
}

fn listed(series: &str) -> Result<Option<String>> {
    let output = Command::new("apt-cache")
        .args(["pkgnames", &format!("{PREFIX}{series}.")])
        .output()
        .context("starting apt-cache: kernels come from Debian's packages")?;
    ensure!(output.status.success(), "apt-cache: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(newest_of(&String::from_utf8_lossy(&output.stdout)))
}

/// The package with the highest version. Those for clouds, for real time, and without a signature are others.
fn newest_of(packages: &str) -> Option<String> {
    let versions = packages.lines().filter_map(|package| Some((version(package)?, package)));
    versions.max().map(|(_, package)| package.to_owned())
}

/// `linux-image-6.1.0-56-amd64` and `linux-image-6.12.117+deb12-amd64`.
fn version(package: &str) -> Option<Vec<u32>> {
    let release = package.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    release.replace("+deb", ".").split(['.', '-']).map(|number| number.parse().ok()).collect()
}

impl Kernel {
    fn new(package: String) -> Self {
        let release = package.trim_start_matches(PREFIX).to_owned();
        Self { directory: shell::repository().join("target/kernels").join(package), release }
    }

    /// What `uname -r` says in it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Where everything about it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is booted.
    pub fn image(&self) -> PathBuf {
        self.directory.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Its modules, with `modules.dep`.
    pub fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.release)
    }

    /// The last step of a download makes the list of modules.
    fn is_here(&self) -> bool {
        self.modules().join("modules.dep").exists()
    }

    fn download(&self) -> Result<()> {
        progress(&format!("downloading Linux {}", self.release));
        fs::create_dir_all(&self.directory)?;
        let package = format!("{PREFIX}{}", self.release);
        shell::run(
            Command::new("apt-get").args(["download", "--quiet", &package]).current_dir(&self.directory),
        )?;
        let archive = self.archive()?;
        self.unpack(&archive)?;
        fs::remove_file(&archive)?;
        shell::run(Command::new("depmod").arg("-b").arg(&self.directory).arg(&self.release))
    }

    fn archive(&self) -> Result<PathBuf> {
        let mut files = fs::read_dir(&self.directory)?.filter_map(|entry| Some(entry.ok()?.path()));
        files
            .find(|file| file.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get left no package in {}", self.directory.display()))
    }

    fn unpack(&self, archive: &Path) -> Result<()> {
        let mut files = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(archive)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting dpkg-deb")?;
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--directory").arg(&self.directory);
        tar.args(LEFT_OUT.map(|part| format!("--exclude=./lib/modules/*/kernel/{part}")));
        tar.args(["./boot", "./lib"]).stdin(files.stdout.take().context("dpkg-deb has an output")?);
        shell::run(&mut tar)?;
        let status = files.wait()?;
        if !status.success() {
            bail!("dpkg-deb {} ended with {status}", archive.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::newest_of;

    #[test]
    fn the_newest_plain_kernel_is_taken() {
        let packages = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\nlinux-image-6.1.0-57-cloud-amd64\n\
                        linux-image-6.1.0-58-amd64-unsigned\nlinux-image-6.1.0-56-rt-amd64\n";
        assert_eq!(newest_of(packages).as_deref(), Some("linux-image-6.1.0-56-amd64"));
        let packages = "linux-image-6.12.117+deb12-amd64\nlinux-image-6.12.9+deb12-amd64\n";
        assert_eq!(newest_of(packages).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(newest_of("linux-image-6.1.0-57-cloud-amd64\n"), None);
    }
}
