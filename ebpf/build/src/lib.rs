//! Finds a compiler for the kernel half and runs it.
use std::path::Path;
/// Placeholder.
pub fn build_for_build_script(_: &Path) -> anyhow::Result<()> { Ok(()) }
