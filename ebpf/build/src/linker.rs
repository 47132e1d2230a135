//! `bpf-linker`, which makes one BPF object out of LLVM bitcode.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The version that `cargo xtask setup` installs, and the oldest that is accepted.
pub const LINKER_VERSION: &str = "0.10.4";

/// An installed `bpf-linker`.
#[derive(Clone, Debug)]
pub struct Linker {
    path: PathBuf,
}

impl Linker {
    /// Looks in `PATH`, then where cargo installs programs. Older versions are passed over.
    pub fn find() -> Result<Self> {
        let mut too_old = Vec::new();
        for path in candidates() {
            match version(&path) {
                Some(found) if found >= parse(LINKER_VERSION).unwrap_or_default() => {
                    return Ok(Self { path });
                }
                Some(_) => too_old.push(path),
                None => {}
            }
        }
        bail!(
            "bpf-linker {LINKER_VERSION} or newer, which links the kernel half, is neither in PATH nor in {}{}. \
             Install it with `cargo xtask setup`.",
            cargo_bin().display(),
            too_old.iter().map(|path| format!(" ({} is older)", path.display())).collect::<String>(),
        )
    }

    /// Where the program is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = env::split_paths(&path).chain([cargo_bin()]).collect();
    directories.into_iter().map(|directory| directory.join("bpf-linker")).filter(|path| path.is_file())
}

/// Where `cargo install` puts programs.
fn cargo_bin() -> PathBuf {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    home.unwrap_or_else(|| PathBuf::from(".cargo")).join("bin")
}

fn version(program: &Path) -> Option<(u32, u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    parse(String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1)?)
}

/// The three numbers of `1.2.3`, ignoring what follows a hyphen.
pub(crate) fn parse(version: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = version.split('-').next()?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse("0.10.4") > parse("0.9.15"));
        assert_eq!(parse("1.97.0-nightly"), Some((1, 97, 0)));
        assert_eq!(parse("unknown"), None);
    }
}
