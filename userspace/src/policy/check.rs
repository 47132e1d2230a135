//! How the agent of a service's host finds out whether its instance is well.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// How often a check may run.
const INTERVALS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// How long one may take.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);
/// How many in a row decide.
const THRESHOLDS: RangeInclusive<u32> = 1..=100;
const MAX_PATH_BYTES: usize = 1024;
const MAX_COMMAND_BYTES: usize = 64;

/// A check, and how often and how long it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is done.
    pub probe: Probe,
    /// From one to the next.
    pub interval: Duration,
    /// After which it counts as failed.
    pub timeout: Duration,
    /// Failures in a row after which a healthy instance is failing.
    pub failures: u32,
    /// Successes in a row after which a failing instance is healthy.
    pub successes: u32,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Connects to the service's port.
    Tcp,
    /// Asks for this path by HTTP/1.1, and wants a status of 200 to 399.
    Http(String),
    /// Runs the program of this name in the host's own directory of checks, and wants it to exit with 0.
    Command(String),
}

/// Why a check is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Not a probe.
    #[error("{0:?} is no check: use tcp, http:/PATH, command:NAME or none")]
    Probe(String),
    /// Not a path of a URL.
    #[error(
        "{0:?} is no path for a check: it begins with / and has no spaces or control characters, and at most 1024 bytes"
    )]
    Path(String),
    /// Not a name of a program.
    #[error(
        "{0:?} names no check: use letters, digits, '-', '_' and '.', not at the beginning; it is a program in the \
         directory of checks of each host (--checks-dir of its agent)"
    )]
    Command(String),
    /// Too often or too seldom.
    #[error("a check can be made every 100ms to 1h")]
    Interval,
    /// Too short or too long.
    #[error("a check's timeout can be 10ms to 60s, and no longer than the interval")]
    Timeout,
    /// Too few or too many.
    #[error("1 to 100 failures, or successes, of a check in a row can decide")]
    Threshold,
}

impl Check {
    /// The check, when it is within its bounds.
    ///
    /// # Errors
    /// The first bound that it goes beyond.
    pub fn bounded(self) -> Result<Self, CheckError> {
        if !INTERVALS.contains(&self.interval) {
            return Err(CheckError::Interval);
        }
        if !TIMEOUTS.contains(&self.timeout) || self.timeout > self.interval {
            return Err(CheckError::Timeout);
        }
        if !THRESHOLDS.contains(&self.failures) || !THRESHOLDS.contains(&self.successes) {
            return Err(CheckError::Threshold);
        }
        Ok(self)
    }
}

impl From<Probe> for Check {
    /// Every 5 seconds, for at most 2; two in a row decide.
    fn from(probe: Probe) -> Self {
        let (interval, timeout) = (Duration::from_secs(5), Duration::from_secs(2));
        Self { probe, interval, timeout, failures: 2, successes: 2 }
    }
}

impl FromStr for Probe {
    type Err = CheckError;

    fn from_str(text: &str) -> Result<Self, CheckError> {
        let excerpt = crate::identity::excerpt;
        match text.split_once(':') {
            None if text == "tcp" => Ok(Self::Tcp),
            Some(("http", path)) if is_path(path) => Ok(Self::Http(path.to_owned())),
            Some(("http", path)) => Err(CheckError::Path(excerpt(path))),
            Some(("command", name)) if is_program(name) => Ok(Self::Command(name.to_owned())),
            Some(("command", name)) => Err(CheckError::Command(excerpt(name))),
            _ => Err(CheckError::Probe(excerpt(text))),
        }
    }
}

/// As it goes into a request: nothing in it can begin another line.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= MAX_PATH_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// One file in one directory, whichever that is.
fn is_program(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !text.is_empty() && !text.starts_with('.') && text.len() <= MAX_COMMAND_BYTES && text.bytes().all(is_part)
}

impl fmt::Display for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => formatter.write_str("tcp"),
            Self::Http(path) => write!(formatter, "http:{path}"),
            Self::Command(name) => write!(formatter, "command:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_what_it_is_written_as() {
        for text in ["tcp", "http:/", "http:/health?full=1", "command:is-well.sh"] {
            assert_eq!(text.parse::<Probe>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "TCP",
            "tcp:80",
            "http:",
            "http:health",
            "http:/a b",
            "http:/a\r\nX: y",
            "command:",
            "command:../sh",
            "command:a/b",
            "command:.hidden",
            "command:rm -rf",
        ] {
            assert!(wrong.parse::<Probe>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_check_has_bounds() {
        let check = || Check::from(Probe::Tcp);
        assert!(check().bounded().is_ok());
        let second = Duration::from_secs(1);
        for wrong in [
            Check { interval: Duration::from_millis(1), ..check() },
            Check { interval: second * 7200, ..check() },
            Check { timeout: Duration::ZERO, ..check() },
            Check { timeout: second * 6, ..check() },
            Check { failures: 0, ..check() },
            Check { successes: 101, ..check() },
        ] {
            assert!(wrong.bounded().is_err());
        }
    }
}
