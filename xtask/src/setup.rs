//! `cargo xtask setup`: installs what is missing, and is quick when nothing is.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use murmesh_ebpf_build::{Compiler, LINKER_VERSION, Linker};
use murmesh_lab::is_root;

use crate::shell::{self, find_program, progress};

/// The compiler of Debian that can build the kernel half, for machines where rustup has no nightly with sources.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "cargo-web"];

/// What `bpf-linker` is built from and links against.
const LINKER_PACKAGES: [&str; 6] =
    ["llvm-22-dev", "libclang-22-dev", "clang-22", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];

/// What the interface of etcd is compiled by, and a file of the second package.
const INTERFACE_PACKAGES: [&str; 2] = ["protobuf-compiler", "libprotobuf-dev"];
const INTERFACE_FILE: &str = "/usr/include/google/protobuf/descriptor.proto";

const LLVM: &str = "/usr/lib/llvm-22";

/// Programs that hosts of the lab are made of, and those that the demo and the tests run there, each with the
/// Debian package that has it.
const PROGRAMS: [(&str, &str); 13] = [
    ("bpftool", "bpftool"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("faketime", "faketime"),
    ("fortune", "fortune-mod"),
    ("ip", "iproute2"),
    ("mount", "mount"),
    ("nc", "netcat-openbsd"),
    ("nsenter", "util-linux"),
    ("ps", "procps"),
    ("socat", "socat"),
    ("systemd-socket-activate", "systemd"),
    ("tcpdump", "tcpdump"),
];

/// What reads metrics pages in a test, and a file of it.
const PARSER_PACKAGE: &str = "python3-prometheus-client";
const PARSER_FILE: &str = "/usr/lib/python3/dist-packages/prometheus_client/openmetrics/parser.py";

/// What packages are made and looked at with; the crate is pinned to a version that this compiler builds.
const PACKAGING_PROGRAMS: [(&str, &str); 3] =
    [("dpkg-shlibdeps", "dpkg-dev"), ("lintian", "lintian"), ("man", "man-db")];
const PACKAGER: (&str, &str) = ("cargo-deb", "3.8.0");

/// What boots other kernels, each with its package.
const EMULATION: [(&str, &str); 4] = [
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("xz", "xz-utils"),
];

const BPF_FILE_SYSTEM: &str = "/sys/fs/bpf";

/// What the server's page is looked at with.
const BROWSER: [(&str, &str); 1] = [("chromium", "chromium")];

/// Options of `cargo xtask setup`.
#[derive(Args)]
pub struct Arguments {
    /// Also the browser (300 MB) that tests of the server's page need; without it these are skipped.
    #[arg(long)]
    browser: bool,
}

/// Prepares the machine for building and for running.
pub fn run(arguments: &Arguments) -> Result<()> {
    for_building()?;
    for_running()?;
    if arguments.browser {
        for_browsing()?;
    }
    progress("setup: nothing is missing");
    Ok(())
}

/// Makes sure of a C compiler, of the compiler of interfaces, and of the compiler and the linker of the kernel half.
pub fn for_building() -> Result<()> {
    let mut missing = Vec::new();
    if find_program("gcc").is_none() {
        missing.extend(["gcc", "libc6-dev"]);
    }
    if find_program("protoc").is_none() || !Path::new(INTERFACE_FILE).exists() {
        missing.extend(INTERFACE_PACKAGES);
    }
    if Compiler::find().is_err() {
        missing.extend(COMPILER_PACKAGES);
    }
    let linker_missing = Linker::find().is_err();
    if linker_missing {
        missing.extend(LINKER_PACKAGES.into_iter().filter(|package| !is_installed(package)));
    }
    install_packages(&missing)?;
    if linker_missing {
        install_linker()?;
    }
    Compiler::find()?;
    Linker::find()?;
    Ok(())
}

/// Makes sure of what makes packages.
pub fn for_packaging() -> Result<()> {
    for_building()?;
    install_packages(&missing_packages(&PACKAGING_PROGRAMS))?;
    let (name, version) = PACKAGER;
    if is_installed_crate(name, version) {
        return Ok(());
    }
    progress(&format!("setup: building {name} {version} (a few minutes)"));
    let arguments = ["install", name, "--version", version, "--locked", "--force", "--quiet"];
    shell::run(shell::cargo().args(arguments)).with_context(|| format!("building {name}"))
}

fn is_installed_crate(name: &str, version: &str) -> bool {
    let said = Command::new(name).arg("--version").output();
    said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).trim().ends_with(version))
}

/// Makes sure of what the lab, the demo and the tests run.
pub fn for_running() -> Result<()> {
    let mut missing = missing_packages(&PROGRAMS);
    if !Path::new("/usr/share/games/fortunes/fortunes").exists() {
        missing.push("fortunes-min");
    }
    if !Path::new(PARSER_FILE).exists() {
        missing.push(PARSER_PACKAGE);
    }
    install_packages(&missing)?;
    mount_bpf_file_system()
}

/// Makes sure of a browser.
pub fn for_browsing() -> Result<()> {
    install_packages(&missing_packages(&BROWSER))
}

/// Makes sure of what tests on other kernels need.
pub fn for_emulating() -> Result<()> {
    install_packages(&missing_packages(&EMULATION))
}

fn missing_packages(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let missing = programs.iter().filter(|(program, _)| find_program(program).is_none());
    missing.map(|(_, package)| *package).collect()
}

/// Installs Debian packages; nothing happens when there are none to install.
pub fn install_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "these Debian packages are missing: {list}. There is no apt-get here: install their equivalents"
        );
    }
    if !is_root() {
        bail!("these packages are missing: {list}. Install them as root: apt-get install {list}");
    }
    progress(&format!("setup: installing {list}"));
    fetch_package_lists();
    apt_get(&["install", "--yes", "--quiet", "--no-install-recommends"], packages)
        .with_context(|| format!("installing {list}"))?;
    Ok(())
}

/// Lists of another day can offer an older version than the one that is needed, and no error tells.
pub fn fetch_package_lists() {
    if let Err(error) = apt_get(&["update", "--quiet"], &[]) {
        progress(&format!("setup: package lists could not be fetched ({error}), using those that are here"));
    }
}

fn apt_get(arguments: &[&str], packages: &[&str]) -> Result<()> {
    shell::run(
        Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments).args(packages),
    )
}

/// Whether a Debian package is installed.
pub fn is_installed(package: &str) -> bool {
    let status =
        Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

fn install_linker() -> Result<()> {
    progress(&format!("setup: building bpf-linker {LINKER_VERSION} (about a minute)"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let llvm = std::iter::once(Path::new(LLVM).join("bin")).chain(std::env::split_paths(&path));
    let mut cargo = shell::cargo();
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--quiet"])
        .args(["--no-default-features", "--features", "llvm-22"])
        .env("LLVM_PREFIX", LLVM)
        .env("PATH", std::env::join_paths(llvm)?);
    shell::run(&mut cargo).context("building bpf-linker")
}

fn mount_bpf_file_system() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    if mounts.lines().any(|mount| mount.split(' ').nth(1) == Some(BPF_FILE_SYSTEM)) {
        return Ok(());
    }
    if !is_root() {
        bail!("no bpf file system at {BPF_FILE_SYSTEM}. As root: mount -t bpf bpf {BPF_FILE_SYSTEM}");
    }
    progress(&format!("setup: mounting the bpf file system at {BPF_FILE_SYSTEM}"));
    shell::run(Command::new("mount").args(["-t", "bpf", "bpf", BPF_FILE_SYSTEM]))
}
