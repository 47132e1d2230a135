//! How reading commands print: aligned tables for people, JSON for programs.
//!
//! JSON keys stay as they are documented at each command; new ones may be added. Times are RFC 3339 in UTC.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::ValueEnum;
use serde::Serialize;

/// Form of a reading command's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document.
    Json,
}

/// Prints to standard output. A reader that has gone away is no error.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_while_read(text).map(|_| ())
}

/// Prints to standard output, and tells whether anybody still reads it.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_while_read(text: &str) -> anyhow::Result<bool> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("standard output cannot be written"),
    }
}

/// Prints a value as indented JSON.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Columns, each as wide as its widest cell, two spaces apart.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heading[column].len()]).max().unwrap_or(0)
    });
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    let rows = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(heading)).chain(rows).collect()
}

/// A time for programs: RFC 3339, in whole seconds.
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A time for people, seen from `now`: `in 29m 58s`, `12s ago`, `now`.
pub fn relative(time: SystemTime, now: SystemTime) -> String {
    let whole =
        |duration: Duration| humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    match time.duration_since(now) {
        Ok(ahead) if ahead.as_secs() > 0 => format!("in {}", whole(ahead)),
        Err(behind) if behind.duration().as_secs() > 0 => format!("{} ago", whole(behind.duration())),
        _ => "now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_trailing_space() {
        let rows = [["a".to_owned(), "long cell".to_owned()], ["bbbbbb".to_owned(), String::new()]];
        assert_eq!(table(["ONE", "TWO"], &rows), "ONE     TWO\na       long cell\nbbbbbb\n");
    }

    #[test]
    fn times_are_told_from_now() {
        let now = SystemTime::now();
        assert_eq!(relative(now + Duration::from_millis(90_500), now), "in 1m 30s");
        assert_eq!(relative(now - Duration::from_secs(5), now), "5s ago");
        assert_eq!(relative(now, now), "now");
    }
}
