//! The two routes to a compiler for `bpfel-unknown-none`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::environment;
use crate::linker::{Linker, parse};

/// The oldest compiler that the pinned versions of aya-ebpf are known to build with.
const OLDEST_RUSTC: (u32, u32, u32) = (1, 95, 0);

/// `bpf-linker` is built with this LLVM and reads no bitcode of a newer one.
const NEWEST_LLVM: u32 = 22;

/// A compiler that can build `core` for `bpfel-unknown-none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// rustup's nightly with the `rust-src` component.
    RustupNightly,
    /// Debian's `rustc-web`, `rust-web-src` and `cargo-web`, told to accept unstable options.
    Debian,
}

impl Compiler {
    /// Prefers rustup's nightly; says what each route lacks when neither is complete.
    pub fn find() -> Result<Self> {
        let Err(nightly) = check(Self::RustupNightly) else { return Ok(Self::RustupNightly) };
        let Err(debian) = check(Self::Debian) else { return Ok(Self::Debian) };
        bail!(
            "no compiler can build the kernel half.\n\
             rustup's nightly: {nightly:#}.\n\
             Debian's packages rustc-web, rust-web-src and cargo-web: {debian:#}.\n\
             One of them is enough. Install it with `cargo xtask setup`."
        )
    }

    fn rustc(self) -> Command {
        match self {
            Self::RustupNightly => rustup_run("rustc"),
            Self::Debian => clean(Command::new("/usr/bin/rustc")),
        }
    }

    fn cargo(self) -> Command {
        match self {
            Self::RustupNightly => rustup_run("cargo"),
            Self::Debian => {
                let mut cargo = clean(Command::new("/usr/bin/cargo"));
                cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        }
    }
}

/// Everything that building the kernel half needs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    compiler: Compiler,
    linker: Linker,
}

impl Toolchain {
    /// Finds compiler and linker. The error names what is missing and how to install it.
    pub fn find() -> Result<Self> {
        Ok(Self { compiler: Compiler::find()?, linker: Linker::find()? })
    }

    /// Which of the two routes was found.
    pub fn compiler(&self) -> Compiler {
        self.compiler
    }

    /// The linker that was found.
    pub fn linker(&self) -> &Linker {
        &self.linker
    }

    /// A cargo that compiles with [`Self::compiler`] and finds [`Self::linker`], whatever cargo we run under.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = self.compiler.cargo();
        cargo.env("PATH", path_beginning_with(self.linker.path().parent()));
        cargo
    }
}

/// Whether `compiler` is there, is recent enough, writes bitcode that the linker reads, and has the sources of
/// `core`.
fn check(compiler: Compiler) -> Result<()> {
    let verbose = stdout(compiler.rustc().arg("-vV"))?;
    let release = field(&verbose, "release: ")?;
    if parse(release).is_none_or(|version| version < OLDEST_RUSTC) {
        bail!("rustc {release} is older than {}.{}.{}", OLDEST_RUSTC.0, OLDEST_RUSTC.1, OLDEST_RUSTC.2);
    }
    let llvm = field(&verbose, "LLVM version: ")?;
    if llvm
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .is_none_or(|major: u32| major > NEWEST_LLVM)
    {
        bail!("rustc {release} uses LLVM {llvm}, and bpf-linker reads LLVM {NEWEST_LLVM} at most");
    }
    let core = source_of_core(Path::new(stdout(compiler.rustc().args(["--print", "sysroot"]))?.trim()));
    if !core.is_dir() {
        bail!("the sources of the standard library are missing at {}", core.display());
    }
    stdout(compiler.cargo().arg("--version"))?;
    Ok(())
}

fn source_of_core(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library/core")
}

fn rustup_run(program: &str) -> Command {
    let mut rustup = clean(Command::new("rustup"));
    // Looking for a toolchain must not download one.
    rustup.env("RUSTUP_AUTO_INSTALL", "0").args(["run", "nightly", program]);
    rustup
}

fn clean(mut command: Command) -> Command {
    environment::clean(&mut command);
    command
}

fn stdout(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}",
            reason.lines().next().unwrap_or("it failed without a word").trim_start_matches("error: ")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn field<'a>(verbose: &'a str, name: &str) -> Result<&'a str> {
    verbose
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("`rustc -vV` has no {name:?}"))
}

fn path_beginning_with(directory: Option<&Path>) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = directory.map(Path::to_path_buf).into_iter().chain(env::split_paths(&path));
    // Joining fails only for a directory with a colon, which could not have come from PATH.
    env::join_paths(directories).unwrap_or(path)
}
