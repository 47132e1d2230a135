//! x

/// Whether we may make hosts at all.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
