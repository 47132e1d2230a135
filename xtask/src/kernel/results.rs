//! What the machine says of its tests, printed as a runner of tests does.

use std::time::Duration;

use anyhow::Result;

use super::machine::{Machine, Share};
use crate::test::Count;

/// How much of the console is shown when the machine stopped too early.
const CONSOLE_LINES: usize = 40;

/// What timeout(1) ends with when the time is over.
const TIMED_OUT: i32 = 124;

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Begins(&'a str),
    Ended { test: &'a str, status: i32, taken: Duration },
}

/// Reads until the machine has ended. Those of `tests` that have not ended by then have failed.
pub fn follow(mut machine: Machine, share: &Share, tests: &[String]) -> Result<Count> {
    let mut count = Count::default();
    let mut running = Vec::new();
    while let Some(line) = machine.line() {
        match Line::parse(line.trim_end()) {
            Some(Line::Begins(test)) => running.push(test.to_owned()),
            Some(Line::Ended { test, status, taken }) => {
                count += ended(test, status, taken, &share.said(test));
                running.retain(|other| other != test);
            }
            None => eprintln!("{line}"),
        }
    }
    let missing = tests.len() as u64 - (count.passed + count.failed + count.skipped);
    if missing > 0 {
        eprintln!(
            "the machine stopped too early, and this is the end of its console. Running were: {running:?}"
        );
        let console = share.console();
        let lines: Vec<&str> = console.lines().collect();
        eprintln!("{}", lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n"));
        count.failed += missing;
    }
    Ok(count)
}

/// Prints how a test ended, and counts it.
fn ended(test: &str, status: i32, taken: Duration, said: &str) -> Count {
    let seconds = taken.as_secs_f64();
    let skipped = said.lines().find_map(|line| line.trim().strip_prefix("skipped: "));
    match (status, skipped) {
        (0, None) => {
            eprintln!("        PASS [{seconds:8.2}s] {test}");
            Count { passed: 1, ..Count::default() }
        }
        (0, Some(reason)) => {
            eprintln!("        SKIP [{seconds:8.2}s] {test}: {reason}");
            Count { skipped: 1, ..Count::default() }
        }
        _ => {
            let how = if status == TIMED_OUT { "TIMEOUT" } else { "FAIL" };
            eprintln!("{said}\n{how:>12} [{seconds:8.2}s] {test}: its output is above");
            Count { failed: 1, ..Count::default() }
        }
    }
}

impl<'a> Line<'a> {
    /// What `guest/tests.sh` prints.
    fn parse(line: &'a str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["begins", test] => Some(Self::Begins(test)),
            ["ended", test, status, hundredths] => Some(Self::Ended {
                test,
                status: status.parse().ok()?,
                taken: Duration::from_millis(hundredths.parse::<u64>().ok()? * 10),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Line, ended};
    use crate::test::Count;

    #[test]
    fn lines_of_the_machine_are_understood() {
        assert_eq!(Line::parse("begins wire::nothing"), Some(Line::Begins("wire::nothing")));
        let taken = Duration::from_millis(1230);
        assert_eq!(Line::parse("ended a::b 101 123"), Some(Line::Ended { test: "a::b", status: 101, taken }));
        assert_eq!(Line::parse("ended a::b"), None);
    }

    #[test]
    fn a_test_that_says_why_it_cannot_run_is_skipped_and_one_that_fails_is_not() {
        let skip = Count { skipped: 1, ..Count::default() };
        let fail = Count { failed: 1, ..Count::default() };
        assert_eq!(ended("a", 0, Duration::ZERO, "running 1 test\nskipped: no netem\n"), skip);
        assert_eq!(ended("a", 101, Duration::ZERO, "skipped: no netem\n"), fail);
    }
}
