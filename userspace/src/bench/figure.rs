//! What is measured, and in which units.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A load, which gives one or more figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Connections one after the other, from connect to the end of a short answer.
    Fortune,
    /// The same on 32 workers at once.
    Connections,
    /// 64 bytes there and back on one connection.
    Echo,
    /// 64 bytes there and back on 16 connections at once.
    Echoes,
    /// As many bytes as pass, on one and on four connections, each way.
    Bulk,
    /// Memory that 500 idle connections take.
    Memory,
}

/// One number of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Connect to end of a fortune, median.
    FortuneMedian,
    /// Connect to end of a fortune, 99th percentile.
    FortuneTail,
    /// Connect to end of a fortune between hosts with a round trip of 20 ms, median. `cargo xtask bench` measures it.
    FortuneDistant,
    /// Whole fortunes per second, 32 workers.
    ConnectionRate,
    /// CPU time that the proxies take per connection.
    ConnectionCpu,
    /// 64 bytes there and back, median.
    EchoMedian,
    /// 64 bytes there and back, 99th percentile.
    EchoTail,
    /// Echoes per second on 16 connections.
    EchoRate,
    /// CPU time that the proxies take per echo.
    EchoCpu,
    /// From the service, one connection.
    DownloadOne,
    /// From the service, four connections.
    DownloadFour,
    /// To the service, one connection.
    UploadOne,
    /// To the service, four connections.
    UploadFour,
    /// CPU time that the proxies take per 10⁹ bytes, four connections, both ways together.
    GigabyteCpu,
    /// Growth of the proxies' resident memory per idle connection.
    IdleMemory,
}

/// Unit of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// 10⁻⁶ s.
    Microseconds,
    /// Per second.
    PerSecond,
    /// 10⁹ bits per second.
    GigabitsPerSecond,
    /// Seconds.
    Seconds,
    /// 1024 bytes.
    Kibibytes,
}

impl Figure {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 15] = [
        Self::FortuneMedian,
        Self::FortuneTail,
        Self::FortuneDistant,
        Self::ConnectionRate,
        Self::ConnectionCpu,
        Self::EchoMedian,
        Self::EchoTail,
        Self::EchoRate,
        Self::EchoCpu,
        Self::DownloadOne,
        Self::DownloadFour,
        Self::UploadOne,
        Self::UploadFour,
        Self::GigabyteCpu,
        Self::IdleMemory,
    ];

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::FortuneMedian => "fortune, connect to end, p50",
            Self::FortuneTail => "fortune, connect to end, p99",
            Self::FortuneDistant => "fortune, 20 ms round trip, p50",
            Self::ConnectionRate => "new connections, 32 workers",
            Self::ConnectionCpu => "proxies' CPU per connection",
            Self::EchoMedian => "echo 64 B, 1 connection, p50",
            Self::EchoTail => "echo 64 B, 1 connection, p99",
            Self::EchoRate => "echo 64 B, 16 connections",
            Self::EchoCpu => "proxies' CPU per echo",
            Self::DownloadOne => "bulk from the service, ×1",
            Self::DownloadFour => "bulk from the service, ×4",
            Self::UploadOne => "bulk to the service, ×1",
            Self::UploadFour => "bulk to the service, ×4",
            Self::GigabyteCpu => "proxies' CPU per GB",
            Self::IdleMemory => "proxies' memory per idle connection",
        }
    }

    /// Its unit.
    pub fn unit(self) -> Unit {
        match self {
            Self::FortuneMedian
            | Self::FortuneTail
            | Self::FortuneDistant
            | Self::ConnectionCpu
            | Self::EchoMedian
            | Self::EchoTail
            | Self::EchoCpu => Unit::Microseconds,
            Self::ConnectionRate | Self::EchoRate => Unit::PerSecond,
            Self::DownloadOne | Self::DownloadFour | Self::UploadOne | Self::UploadFour => {
                Unit::GigabitsPerSecond
            }
            Self::GigabyteCpu => Unit::Seconds,
            Self::IdleMemory => Unit::Kibibytes,
        }
    }

    /// As in JSON, and in names of files.
    pub fn key(self) -> String {
        serde_json::to_value(self).ok().and_then(|key| key.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        matches!(self.unit(), Unit::PerSecond | Unit::GigabitsPerSecond)
    }
}

impl Unit {
    /// A value with the unit: three significant digits, or all digits before the point.
    pub fn show(self, value: f64) -> String {
        let number = number(value);
        match self {
            Self::Microseconds => format!("{number} µs"),
            Self::PerSecond => format!("{number}/s"),
            Self::GigabitsPerSecond => format!("{number} Gbit/s"),
            Self::Seconds => format!("{number} s"),
            Self::Kibibytes => format!("{number} KiB"),
        }
    }
}

fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = if size < 10.0 { 2 } else { usize::from(size < 100.0) };
    if size < 10_000.0 {
        return format!("{value:.decimals$}");
    }
    let thousands = (value / 1000.0).trunc();
    format!("{thousands:.0} {:03.0}", (value - thousands * 1000.0).trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_with_three_digits_and_their_unit() {
        assert_eq!(Unit::Microseconds.show(86.04), "86.0 µs");
        assert_eq!(Unit::Microseconds.show(1184.4), "1184 µs");
        assert_eq!(Unit::PerSecond.show(178_034.9), "178 034/s");
        assert_eq!(Unit::GigabitsPerSecond.show(7.009), "7.01 Gbit/s");
        assert_eq!(Unit::Kibibytes.show(0.0), "0.00 KiB");
    }
}
