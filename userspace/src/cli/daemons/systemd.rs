//! Daemons as units of systemd.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

/// Where packages and administrators put units.
const UNIT_DIRECTORIES: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// Whether systemd runs this host (sd_booted(3)) and knows this unit.
pub fn has_unit(unit: &str) -> bool {
    let is_there = |directory: &str| Path::new(directory).join(unit).exists();
    Path::new("/run/systemd/system").is_dir() && UNIT_DIRECTORIES.into_iter().any(is_there)
}

/// Now and at each boot. Comes back when the unit says that it is ready.
///
/// # Errors
/// When it fails, with the last lines of its log.
pub fn enable_and_start(unit: &str) -> anyhow::Result<()> {
    systemctl(&["enable", "--now"], unit)
}

/// Stops and starts it. Comes back when the unit says that it is ready.
///
/// # Errors
/// As [`enable_and_start`].
pub fn restart(unit: &str) -> anyhow::Result<()> {
    systemctl(&["restart"], unit)
}

/// Now, and not at the next boot.
///
/// # Errors
/// When systemd refuses.
pub fn disable_and_stop(unit: &str) -> anyhow::Result<()> {
    systemctl(&["disable", "--now"], unit)
}

/// Whether it runs or is about to.
pub fn is_active(unit: &str) -> bool {
    let asked = Command::new("systemctl").args(["--quiet", "is-active", unit]).status();
    asked.is_ok_and(|status| status.success())
}

fn systemctl(arguments: &[&str], unit: &str) -> anyhow::Result<()> {
    let mut command = Command::new("systemctl");
    let ended =
        command.arg("--quiet").args(arguments).arg(unit).output().context("systemctl cannot be run")?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    bail!("systemctl {} {unit}: {}\n{}", arguments.join(" "), said.trim(), last_lines(unit));
}

fn last_lines(unit: &str) -> String {
    let mut command = Command::new("journalctl");
    let read = command.args(["--unit", unit, "--lines", "10", "--no-pager", "--output", "cat"]).output();
    read.map(|read| String::from_utf8_lossy(&read.stdout).into_owned()).unwrap_or_default()
}
