//! `murmesh check`. JSON: a list of `{group, name, verdict, detail, hint}`, `verdict` being `fine`, `warning` or
//! `failed`.

use std::{
    fmt::Write,
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;

use super::{
    ReadOptions,
    daemon::{self, KernelOptions},
    output::{self, Format},
};
use crate::check::{self, CheckOptions, Finding, Verdict};

/// Arguments of `murmesh check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Directory of what the daemon keeps.
    #[arg(long, default_value = "/var/lib/murmesh", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    kernel: KernelOptions,
    #[command(flatten)]
    read: ReadOptions,
}

/// Prints what was probed; fails when anything is red.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(arguments: CheckArgs) -> anyhow::Result<ExitCode> {
    let options = CheckOptions {
        run_dir: arguments.read.run_directory.run_dir,
        data_dir: arguments.data_dir,
        bpf_dir: arguments.kernel.bpf_dir,
        cgroup: arguments.kernel.cgroup,
    };
    let findings = daemon::block_on(async { Ok(check::run(&options).await) })?;
    match arguments.read.output {
        Format::Json => output::print_json(&findings)?,
        Format::Table => output::print(&page(&findings, io::stdout().is_terminal()))?,
    }
    let red = findings.iter().any(|finding| finding.verdict == Verdict::Failed);
    Ok(if red { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn page(findings: &[Finding], colour: bool) -> String {
    let mut page = String::new();
    let mut group = "";
    for finding in findings {
        if finding.group != group {
            let separator = if group.is_empty() { "" } else { "\n" };
            group = finding.group;
            let _ = writeln!(page, "{separator}{group}");
        }
        let sign = sign(finding.verdict, colour);
        let _ = writeln!(page, "  {sign} {}: {}", finding.name, finding.detail);
        if !finding.hint.is_empty() {
            let _ = writeln!(page, "      → {}", finding.hint);
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (warnings, failures) = (count(Verdict::Warning), count(Verdict::Failed));
    let _ = writeln!(page, "\n{} checks, {warnings} warnings, {failures} failed", findings.len());
    page
}

fn sign(verdict: Verdict, colour: bool) -> String {
    let code = match verdict {
        Verdict::Fine => 32,
        Verdict::Warning => 33,
        Verdict::Failed => 31,
    };
    if colour { format!("\x1b[{code}m{verdict}\x1b[0m") } else { verdict.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_groups_findings_and_says_what_to_do() {
        let finding = |group, verdict, hint: &str| Finding {
            group,
            name: "name".to_owned(),
            verdict,
            detail: "detail".to_owned(),
            hint: hint.to_owned(),
        };
        let findings = [
            finding("kernel", Verdict::Fine, ""),
            finding("host", Verdict::Warning, "do this"),
            finding("host", Verdict::Failed, "do that"),
        ];
        assert_eq!(
            page(&findings, false),
            "kernel\n  √ name: detail\n\nhost\n  ‼ name: detail\n      → do this\n  × name: detail\n      \
             → do that\n\n3 checks, 1 warnings, 1 failed\n"
        );
    }
}
