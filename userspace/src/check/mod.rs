//! `murmesh check`: what this host has and lacks, and whether interception works. Everything is probed.

mod disk;
mod host;
mod kernel;
mod running;

use std::{fmt, path::PathBuf};

use serde::Serialize;

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// Works, but not as well as it could, or could not be looked at.
    Warning,
    /// Does not work.
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Fine => "√",
            Self::Warning => "‼",
            Self::Failed => "×",
        })
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Part of the report: kernel, host, agent.
    pub group: &'static str,
    /// What was looked at.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when fine.
    pub hint: String,
}

impl Finding {
    fn fine(group: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Self {
        let (name, detail) = (name.into(), detail.into());
        Self { group, name, verdict: Verdict::Fine, detail, hint: String::new() }
    }

    fn warning(
        group: &'static str,
        name: impl Into<String>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Warning, hint: hint.into(), ..Self::fine(group, name, detail) }
    }

    fn failed(
        group: &'static str,
        name: impl Into<String>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { verdict: Verdict::Failed, hint: hint.into(), ..Self::fine(group, name, detail) }
    }
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Of the daemon on this host.
    pub run_dir: PathBuf,
    /// Where an agent or a server keeps what must survive a restart.
    pub data_dir: PathBuf,
    /// Where an agent would pin.
    pub bpf_dir: PathBuf,
    /// Where an agent would attach; the root of cgroup v2 if not given.
    pub cgroup: Option<PathBuf>,
}

/// Whether the kernel and this host have what an agent needs, without one.
pub fn preflight(options: &CheckOptions) -> Vec<Finding> {
    let mut findings = kernel::check();
    findings.extend(host::check(options));
    findings
}

/// Looks at everything, in the order in which a problem explains the next. Blocks for a few seconds at most.
pub async fn run(options: &CheckOptions) -> Vec<Finding> {
    let mut findings = preflight(options);
    findings.extend(disk::check(&options.data_dir));
    findings.extend(running::check(options).await);
    findings
}
