//! The environment of the inner cargo.

use std::env;
use std::process::Command;

/// Settings of cargo that are about the machine and not about the outer build.
const KEPT: [&str; 6] =
    ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_"];

/// Prefixes of what the outer cargo, rustup and clippy set for the build script that we run in.
const LEAKING: [&str; 5] = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CLIPPY"];

/// Single variables of the same origin. `LD_LIBRARY_PATH` names the outer compiler's own libraries.
const LEAKING_EXACTLY: [&str; 14] = [
    "DEBUG",
    "HOST",
    "LD_LIBRARY_PATH",
    "MAKEFLAGS",
    "MFLAGS",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUST_RECURSION_COUNT",
    "RUSTUP_TOOLCHAIN",
    "RUSTUP_TOOLCHAIN_SOURCE",
    "SYSROOT",
    "TARGET",
];

/// Removes from `command` what the outer cargo, rustup or clippy put into our environment.
pub(crate) fn clean(command: &mut Command) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(leaks) {
            command.env_remove(name);
        }
    }
}

fn leaks(name: &str) -> bool {
    LEAKING_EXACTLY.contains(&name)
        || (LEAKING.iter().any(|prefix| name.starts_with(prefix))
            && !KEPT.iter().any(|kept| name.starts_with(kept)))
}

#[cfg(test)]
mod tests {
    use super::leaks;

    #[test]
    fn outer_build_leaks_and_machine_settings_do_not() {
        for name in
            ["RUSTC_WORKSPACE_WRAPPER", "CARGO", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN", "OUT_DIR"]
        {
            assert!(leaks(name), "{name}");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "CARGO_HTTP_PROXY", "CARGO_REGISTRIES_X_INDEX"]
        {
            assert!(!leaks(name), "{name}");
        }
    }
}
