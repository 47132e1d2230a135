//! `cargo xtask docs` and `cargo xtask test docs`: the documentation, brought up to date and tried.

mod document;
mod hosts;
#[cfg(test)]
mod prose;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build;
use crate::shell::{self, progress, repository};
use document::Document;

/// Writes docs/commands.md anew, from the program.
pub fn write() -> Result<()> {
    build::run()?;
    let written = repository().join("target/docs");
    let murmesh = repository().join("target/debug/murmesh");
    shell::run(Command::new(murmesh).arg("package-files").arg(&written))?;
    let page = repository().join("docs/commands.md");
    fs::copy(written.join("commands.md"), &page).with_context(|| page.display().to_string())?;
    Ok(())
}

/// The pages with commands that are run, with their names.
pub fn pages() -> Result<Vec<(String, PathBuf)>> {
    let docs = repository().join("docs");
    let files = fs::read_dir(&docs).with_context(|| docs.display().to_string())?;
    let mut pages = Vec::new();
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|kind| kind == "md") && hosts::runs(&read(&path)?)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            pages.push((name, path));
        }
    }
    pages.sort();
    Ok(pages)
}

/// Runs the commands of a page on hosts of its own, with this package.
pub fn run(page: &Path, package: &Path) -> Result<()> {
    let place = page.strip_prefix(repository()).unwrap_or(page);
    progress(&format!("the commands of {}", place.display()));
    hosts::run(&read(page)?, package).with_context(|| place.display().to_string())
}

fn read(page: &Path) -> Result<Document> {
    Document::parse(&fs::read_to_string(page)?).with_context(|| page.display().to_string())
}
