//! Finds a compiler for the kernel half and runs it.
//!
//! The kernel half (`ebpf/programs`) needs a compiler that can build `core` for `bpfel-unknown-none`, which a
//! stable toolchain from rustup cannot. Userspace stays on stable: its build script calls
//! [`build_for_build_script`], which starts the other compiler on the other workspace.

mod environment;
mod linker;
mod toolchain;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

pub use linker::{LINKER_VERSION, Linker};
pub use toolchain::{Compiler, Toolchain};

/// Name of the package and of the object with all programs.
const PROGRAMS: &str = "murmesh-programs";

/// What the kernel half depends on, below the eBPF directory.
const SOURCES: [&str; 5] =
    ["programs/src", "programs/Cargo.toml", "programs/Cargo.lock", "common/src", "common/Cargo.toml"];

/// Builds the programs under `ebpf_dir` from a build script.
///
/// The object ends up in `OUT_DIR/murmesh-programs`, whose path the crate being built finds in
/// `env!("MURMESH_PROGRAMS")`. Fails when no compiler or linker is installed, or when the programs do not
/// compile; the compiler's own words are then on stderr, which cargo shows.
pub fn build_for_build_script(ebpf_dir: &Path) -> Result<()> {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={}", ebpf_dir.join(source).display());
    }
    let out_dir =
        PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set: call this from a build script")?);
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;

    let built =
        build(&Toolchain::find()?, &ebpf_dir.join("programs"), &shared_target_dir(&out_dir), &architecture)?;
    let object = out_dir.join(PROGRAMS);
    std::fs::copy(&built, &object)
        .with_context(|| format!("copying {} to {}", built.display(), object.display()))?;
    println!("cargo:rustc-env=MURMESH_PROGRAMS={}", object.display());
    Ok(())
}

/// Builds the programs in `package_dir` for a host of `architecture` and returns the path of the object.
pub fn build(
    toolchain: &Toolchain,
    package_dir: &Path,
    target_dir: &Path,
    architecture: &str,
) -> Result<PathBuf> {
    const TARGET: &str = "bpfel-unknown-none";
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(architecture))
        .current_dir(package_dir);
    run(&mut cargo).context("building the kernel half")?;
    Ok(target_dir.join(TARGET).join("release").join(PROGRAMS))
}

/// A clippy command for the programs in `package_dir`, on the workspace's own toolchain.
///
/// Clippy looks at them as a program for the machine it runs on, for which every toolchain has `core`.
pub fn clippy(package_dir: &Path, target_dir: &Path, architecture: &str) -> Command {
    let mut cargo = Command::new("cargo");
    environment::clean(&mut cargo);
    cargo
        .args(["clippy", "--quiet", "--locked", "--target-dir"])
        .arg(target_dir)
        .args(["--", "-D", "warnings"])
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            [target_architecture(architecture), "-Cpanic=abort".into()].join("\x1f"),
        )
        .current_dir(package_dir);
    cargo
}

/// The flags `aya-build` uses: aya-ebpf chooses register layouts by `bpf_target_arch`, and the kernel wants BTF,
/// which the linker derives from debug information.
fn flags(architecture: &str) -> String {
    [target_architecture(architecture), "-Cdebuginfo=2".into(), "-Clink-arg=--btf".into()].join("\x1f")
}

fn target_architecture(architecture: &str) -> String {
    format!("--cfg=bpf_target_arch=\"{architecture}\"")
}

/// A directory below cargo's own target directory, which is the one with the cache tag.
///
/// Cargo runs the build script once for each of build, clippy and documentation, with another `OUT_DIR` each time.
/// Sharing the inner target directory, which the inner cargo locks, compiles `core` once and not three times.
fn shared_target_dir(out_dir: &Path) -> PathBuf {
    let target_dir = out_dir.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists());
    target_dir.unwrap_or(out_dir).join("ebpf")
}

fn run(cargo: &mut Command) -> Result<()> {
    // Cargo reads a build script's stdout as instructions, and shows its stderr when it fails.
    let output =
        cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting the inner cargo")?;
    if !output.status.success() {
        let arguments =
            cargo.get_args().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ");
        bail!("`{} {arguments}` ended with {}", cargo.get_program().display(), output.status);
    }
    Ok(())
}
