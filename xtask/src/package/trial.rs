//! Installing, upgrading, removing and purging the package, on an overlay of this machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result};

use crate::shell::{self, progress};

/// Fails when a unit is wrong, when configuration or state are lost, or when anything is left behind.
pub fn run(package: &Path, later: &Path, later_version: &str) -> Result<()> {
    progress("installing, upgrading, removing and purging it, on an overlay of this machine");
    let place = env::temp_dir().join(format!("murmesh-package-{}", std::process::id()));
    fs::create_dir(&place).with_context(|| format!("making {}", place.display()))?;
    // All that it mounts goes with its namespace.
    let tried = shell::run(
        Command::new("unshare")
            .args(["--mount", "sh"])
            .arg(shell::repository().join("xtask/src/package/trial.sh"))
            .args([&place, package, later])
            .env("second_version", later_version)
            .stdin(Stdio::null()),
    );
    fs::remove_dir(&place).with_context(|| format!("removing {}", place.display()))?;
    tried.context("trying the package")
}
