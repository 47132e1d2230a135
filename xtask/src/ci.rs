//! `cargo xtask ci`: everything that must hold before a change is merged.

use std::env;

use anyhow::{Context as _, Result};
use murmesh_lab::is_root;

use crate::kernel::{self, Selection};
use crate::shell::{self, cargo, find_program, progress};
use crate::{bench, package, setup, test, trials};

/// The oldest series that Debian 12 has, and so the most likely to lack something.
const OLDEST_KERNEL: &str = "6.1";

/// Runs the checks, the quick ones first, and ends with the count of tests.
pub fn run() -> Result<()> {
    progress("formatting");
    shell::run(cargo().args(["fmt", "--all", "--check"]))?;
    setup::for_building()?;
    progress("lints");
    shell::run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "--deny",
        "warnings",
    ]))?;
    lint_kernel_half()?;
    progress("documentation");
    let flags = ("RUSTDOCFLAGS", "--deny warnings");
    shell::run(cargo().args(["doc", "--workspace", "--no-deps", "--locked"]).env(flags.0, flags.1))?;
    check_dependencies()?;
    progress("the benchmarks, for their function only");
    bench::quick()?;
    package::run(&package::Arguments { dev: true })?;
    if is_root() {
        setup::for_browsing()?;
    }
    let mut count = test::here(&[])?;
    count += trials::run(&[])?;
    if is_root() && env::consts::ARCH == "x86_64" {
        count += kernel::test(OLDEST_KERNEL, &Selection::Quick)?;
    } else {
        progress("nothing is tested on other kernels: that needs root, on x86-64");
    }
    count.conclude()
}

fn lint_kernel_half() -> Result<()> {
    progress("lints of the kernel half");
    let programs = shell::repository().join("ebpf/programs");
    let target = shell::repository().join("target/ebpf-lints");
    shell::run(cargo().args(["fmt", "--check"]).current_dir(&programs))?;
    shell::run(&mut murmesh_ebpf_build::clippy(&programs, &target, env::consts::ARCH))
        .context("in ebpf/programs")
}

fn check_dependencies() -> Result<()> {
    if find_program("cargo-deny").is_none() {
        progress("dependencies are not checked: cargo-deny is not installed");
        return Ok(());
    }
    progress("dependencies");
    shell::run(cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}
