//! Says on a terminal what is being measured.

use std::io::{self, IsTerminal, Write};

/// A line on standard error that is written over, if that is a terminal.
pub struct Progress(bool);

impl Progress {
    /// Says nothing yet.
    pub fn new() -> Self {
        Self(io::stderr().is_terminal())
    }

    /// Replaces the line.
    pub fn show(&self, line: &str) {
        if self.0 {
            // A terminal that cannot be written to is no reason not to measure.
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
