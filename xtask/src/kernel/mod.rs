//! `cargo xtask test --kernel SERIES`: the integration tests on a Linux of Debian's in an emulated machine.
//!
//! The machine sees the host's files read-only and runs the programs that are built here. Nothing is installed but the
//! emulator. Emulation is slow, and so nothing here says how fast Murmesh is.

mod initramfs;
mod machine;
mod package;
mod programs;
mod results;
mod selection;

use std::env;
use std::fs;

use anyhow::{Context as _, Result, bail};
use murmesh_lab::is_root;

use crate::shell::progress;
use crate::test::Count;
use crate::{build, setup};

pub use selection::Selection;

/// Builds, boots the newest kernel of `series` (such as `6.1`) that Debian offers, and runs the selected tests there.
pub fn test(series: &str, selection: &Selection) -> Result<Count> {
    if env::consts::ARCH != "x86_64" || !is_root() {
        bail!("--kernel boots kernels for x86-64, with the files of root shared: run it there, as root");
    }
    setup::for_running()?;
    setup::for_emulating()?;
    let kernel = package::newest(series)?;
    build::run()?;
    let program = programs::scenarios()?;
    let tests = selection.of(programs::tests(&program)?)?;
    let directory = kernel.directory().join("run");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    let initramfs = initramfs::make(&kernel, &directory)?;
    let program = programs::keep(&program, &directory)?;
    progress(&format!("{} integration tests on Linux {}, emulated", tests.len(), kernel.release()));
    let share = machine::Share::make(&directory, &program, &tests)?;
    let machine = machine::Machine::boot(&kernel, &initramfs, &share)?;
    results::follow(machine, &share, &tests)
}
