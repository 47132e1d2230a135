//! `cargo xtask test`: every test, and one closing count.

use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use murmesh_lab::{is_root, sweep};

use crate::kernel::{self, Selection};
use crate::shell::{self, cargo, progress};
use crate::{build, setup, trials};

/// Options of `cargo xtask test`.
#[derive(Args, Default)]
pub struct Arguments {
    /// Only tests whose name contains one of these. With `docs`, `docs::PAGE` and `terraform`: what is tried with the
    /// package on hosts with systemd.
    filters: Vec<String>,
    /// Integration tests on the newest Linux of this series that Debian offers, such as 6.1, in an emulated machine:
    /// those that touch the kernel, or else those that the filters name.
    #[arg(long, value_name = "SERIES")]
    kernel: Option<String>,
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that proved their claim.
    pub passed: u64,
    /// Those that did not, or did not come to an end.
    pub failed: u64,
    /// Those that said why they cannot run here.
    pub skipped: u64,
}

/// Runs tests, here or on another kernel, and prints the count as the last line of stdout.
pub fn run(arguments: &Arguments) -> Result<()> {
    let filters = &arguments.filters;
    let count = match &arguments.kernel {
        Some(series) => kernel::test(series, &Selection::new(filters))?,
        None => {
            let (trials, tests): (Vec<_>, Vec<_>) =
                filters.iter().cloned().partition(|filter| trials::are_meant(filter));
            let mut count = Count::default();
            if filters.is_empty() || !tests.is_empty() {
                count += here(&tests)?;
            }
            if !trials.is_empty() {
                count += trials::run(&trials)?;
            }
            count
        }
    };
    count.conclude()
}

/// Builds, and runs unit tests and integration tests.
pub fn here(filters: &[String]) -> Result<Count> {
    build::run()?;
    let runner = Runner::find();

    progress("unit tests");
    let (mut count, mut healthy) = runner.run(&["--workspace", "--lib", "--bins"], filters)?;
    if is_root() {
        setup::for_running()?;
        progress("integration tests");
        let (integration, integration_healthy) =
            runner.run(&["--workspace", "--test", "scenarios"], filters)?;
        count += integration;
        healthy &= integration_healthy;
        // A run that was stopped half way leaves its hosts to whoever comes next.
        sweep()?;
    } else {
        progress("integration tests are left out: they make network namespaces, which needs root");
    }
    if count.failed == 0 && !healthy {
        bail!("the tests did not run to their end ({count}); the reason is above");
    }
    Ok(count)
}

/// What runs tests.
enum Runner {
    /// cargo-nextest, which runs each test in a process of its own and is quicker.
    Nextest,
    /// `cargo test`.
    Cargo,
}

impl Runner {
    fn find() -> Self {
        let nextest = Command::new("cargo-nextest").args(["nextest", "--version"]).output();
        if nextest.is_ok_and(|output| output.status.success()) { Self::Nextest } else { Self::Cargo }
    }

    /// Runs the tests of `selection`; returns their count, and whether the runner says that all is well.
    fn run(&self, selection: &[&str], filters: &[String]) -> Result<(Count, bool)> {
        let mut command = cargo();
        match self {
            Self::Nextest => command.args(["nextest", "run", "--no-tests", "pass"]),
            Self::Cargo => command.arg("test"),
        };
        command.arg("--no-fail-fast").args(selection).arg("--").args(filters);
        // Errors say where they come from; the runner's own frames below them say nothing.
        command.env("RUST_LIB_BACKTRACE", "0");
        if std::io::stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        // nextest reports on stderr and cargo test on stdout: read both as one.
        let (reader, writer) = std::io::pipe().context("making a pipe")?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn().context("starting the tests")?;
        // The command holds the writing ends, and the output ends only when all of them are closed.
        drop(command);
        let mut count = Count::default();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            eprintln!("{line}");
            count += self.count(&shell::without_colour(&line)).unwrap_or_default();
        }
        Ok((count, child.wait()?.success()))
    }

    /// Reads the runner's own closing line. nextest also repeats what a failed test said, `test result` included.
    ///
    /// `cargo test`: `test result: ok. 3 passed; 1 failed; 2 ignored; …`.
    /// nextest: `Summary [ 0.1s] 4 tests run: 3 passed (1 slow), 1 failed, 2 skipped`.
    fn count(&self, line: &str) -> Option<Count> {
        let line = line.trim_start();
        Some(Count::parse(match self {
            Self::Nextest => line.strip_prefix("Summary [")?.split_once(" run: ")?.1,
            Self::Cargo => line.strip_prefix("test result: ")?.split_once(". ")?.1,
        }))
    }
}

impl Count {
    /// Prints it, and fails when a test did.
    pub fn conclude(self) -> Result<()> {
        println!("{self}");
        if self.failed > 0 {
            bail!("tests failed; their output is above");
        }
        Ok(())
    }

    /// Reads numbers with what they count. Tests that a filter left out count as nothing.
    fn parse(counts: &str) -> Self {
        let mut count = Self::default();
        for part in counts.split([',', ';']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) =
                (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
            else {
                continue;
            };
            match what {
                "passed" => count.passed += number,
                "failed" | "timed" => count.failed += number,
                "ignored" => count.skipped += number,
                _ => {}
            }
        }
        count
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(formatter, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Count, Runner};

    #[test]
    fn both_runners_are_understood() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(Runner::Cargo.count(line), Some(Count { passed: 3, failed: 1, skipped: 2 }));
        assert_eq!(Runner::Nextest.count(line), None);
        let line = "     Summary [   0.005s] 4 tests run: 3 passed (1 slow), 1 failed, 2 skipped";
        assert_eq!(Runner::Nextest.count(line), Some(Count { passed: 3, failed: 1, skipped: 0 }));
        assert_eq!(Runner::Cargo.count("running 3 tests"), None);
    }
}
