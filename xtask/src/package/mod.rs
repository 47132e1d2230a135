//! `cargo xtask package`: the Debian package, looked at and tried.

mod boot;
mod hosts;
mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;
use murmesh_lab::is_root;

use crate::shell::{self, cargo, progress};
use crate::{build, setup};

/// What is not in the version of the program: how often it was packaged.
const REVISION: u32 = 1;

/// Options of `cargo xtask package`.
#[derive(Args)]
pub struct Arguments {
    /// Take the program as the tests use it, which is built quickly and runs slowly.
    #[arg(long)]
    pub dev: bool,
}

/// Makes `target/debian/murmesh_VERSION_ARCHITECTURE.deb`, has lintian look at it, and tries it.
pub fn run(arguments: &Arguments) -> Result<()> {
    let profile = if arguments.dev { Profile::Dev } else { Profile::Release };
    let package = make(profile)?;
    lint(&package)?;
    if is_root() {
        let later = pack(profile, &pieces(), REVISION + 1)?;
        trial::run(&package, &later, &version(REVISION + 1))?;
        hosts::run(&package, &later)?;
        boot::run(&package)?;
    } else {
        progress("it is not tried: that makes mounts, which needs root");
    }
    progress(&format!("{} ({} bytes)", package.display(), fs::metadata(&package)?.len()));
    Ok(())
}

/// Makes the package with the program as the tests use it, and returns where it is.
pub fn for_tests() -> Result<PathBuf> {
    make(Profile::Dev)
}

fn make(profile: Profile) -> Result<PathBuf> {
    setup::for_packaging()?;
    profile.build()?;
    let target = shell::repository().join("target");
    progress("manual pages, completions, default configuration");
    let _ = fs::remove_dir_all(pieces());
    let program = target.join(profile.directory()).join("murmesh");
    shell::run(Command::new(program).arg("package-files").arg(pieces()))?;
    pack(profile, &target.join("debian"), REVISION)
}

/// What of the package is not in the repository.
fn pieces() -> PathBuf {
    shell::repository().join("target/package")
}

#[derive(Clone, Copy)]
enum Profile {
    Dev,
    Release,
}

impl Profile {
    fn build(self) -> Result<()> {
        match self {
            Self::Dev => build::run(),
            Self::Release => {
                progress("building murmesh with the release profile");
                shell::run(cargo().args([
                    "build",
                    "--release",
                    "--package",
                    "murmesh",
                    "--bin",
                    "murmesh",
                    "--locked",
                ]))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }

    /// What tests install is not sent anywhere: it is to be ready soon.
    fn compression(self) -> &'static [&'static str] {
        match self {
            Self::Dev => &["--fast"],
            Self::Release => &[],
        }
    }

    /// Where cargo puts what it builds with this profile.
    fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

fn version(revision: u32) -> String {
    format!("{}-{revision}", env!("CARGO_PKG_VERSION"))
}

/// Puts everything together, without building anything.
fn pack(profile: Profile, directory: &Path, revision: u32) -> Result<PathBuf> {
    let version = version(revision);
    progress(&format!("package {version}"));
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let package = directory.join(format!("murmesh_{version}.deb"));
    shell::run(
        cargo()
            .args([
                "deb",
                "--quiet",
                "--package",
                "murmesh",
                "--no-build",
                "--no-dbgsym",
                "--strip",
                "--locked",
            ])
            .args(profile.compression())
            .args(["--profile", profile.name(), "--deb-version", &version, "--output"])
            .arg(&package),
    )?;
    Ok(package)
}

fn lint(package: &Path) -> Result<()> {
    progress("lintian");
    // The tag is for packages of Debian's own archive.
    let tag = "initial-upload-closes-no-bugs";
    let options = ["--fail-on", "error,warning", "--suppress-tags", tag, "--allow-root"];
    shell::run(Command::new("lintian").args(options).arg(package))
}
