//! Limits of the process, see getrlimit(2).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::SandboxError;

/// What is in the memory stays there: it holds keys.
///
/// # Errors
/// The kernel refuses.
pub fn forbid_core_dumps() -> Result<(), SandboxError> {
    let refused = |error| SandboxError::Process { what: "core dumps", error };
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(refused)
}

/// Each connection takes one descriptor or two: as many as this process may have.
pub fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
