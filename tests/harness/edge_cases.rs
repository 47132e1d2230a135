//! What the documentation says of scenarios.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Scenarios of the table of edge cases in docs/testing.md, as `module::function`, by row.
fn documented(text: &str) -> Vec<Vec<&str>> {
    let rows = text.lines().filter(|line| {
        let number = line.strip_prefix("| ").and_then(|rest| rest.split_once(" |"));
        number.is_some_and(|(number, _)| number.parse::<u8>().is_ok())
    });
    rows.map(|row| row.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect()).collect()
}

#[test]
fn every_edge_case_is_documented_with_scenarios_that_exist() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("../docs/testing.md"))?;
    let rows = documented(&text);
    ensure!(rows.len() == 16 && rows.iter().all(|row| !row.is_empty()), "{rows:?}");
    for name in rows.into_iter().flatten() {
        let (module, function) = name.split_once("::").context("MODULE::FUNCTION")?;
        let path = root.join("scenarios").join(module).with_extension("rs");
        let source = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let test = format!("fn {function}()");
        let is_test = source.split("#[test]").skip(1).any(|rest| rest.trim_start().starts_with(&test));
        ensure!(is_test, "docs/testing.md names {name}, and {} has no such test", path.display());
    }
    Ok(())
}
