//! The programs that the machine runs, which are those that run here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::shell::cargo;

/// Builds the integration tests and returns their program.
pub fn scenarios() -> Result<PathBuf> {
    let output = cargo()
        .args(["test", "--workspace", "--test", "scenarios", "--no-run", "--locked"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(output.status.success(), "the integration tests do not build; the reason is above");
    let messages = String::from_utf8_lossy(&output.stdout);
    let program =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            let wanted = message.pointer("/target/name")? == "scenarios";
            message["executable"].as_str().filter(|_| wanted).map(PathBuf::from)
        });
    program.context("cargo names no program for the integration tests")
}

/// Puts `program`, and what it runs, below `directory` too, where no later build touches them. Returns the new place.
pub fn keep(program: &Path, directory: &Path) -> Result<PathBuf> {
    let built = program.ancestors().nth(2).context("cargo puts tests into target/PROFILE/deps")?;
    let kept = directory.join("programs");
    fs::create_dir_all(kept.join("deps"))?;
    for file in [Path::new("murmesh"), Path::new("murmesh-probe"), program.strip_prefix(built)?] {
        let file_here = built.join(file);
        fs::hard_link(&file_here, kept.join(file))
            .with_context(|| format!("linking {}", file_here.display()))?;
    }
    Ok(kept.join(program.strip_prefix(built)?))
}

/// The names of all tests in `program`.
pub fn tests(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).args(["--list", "--format", "terse"]).output();
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    let lines = String::from_utf8(output.stdout).context("names of tests are text")?;
    Ok(lines.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
