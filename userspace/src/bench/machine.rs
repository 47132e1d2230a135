//! What was measured on.

use std::{fs, thread};

use serde::{Deserialize, Serialize};

use super::BenchError;

/// A machine and how busy it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// `uname -r`.
    pub kernel: String,
    /// Load averages over one minute: before each run and after it.
    pub load: Vec<f64>,
}

impl Machine {
    /// This one, now.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn this() -> Result<Self, BenchError> {
        let processors = read("/proc/cpuinfo")?;
        let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
        let processor = model.map_or("unknown", |line| line.trim_start_matches([' ', '\t', ':'])).to_owned();
        Ok(Self {
            processor,
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load: vec![load()?],
        })
    }

    /// Notes the load again.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn note_load(&mut self) -> Result<(), BenchError> {
        self.load.push(load()?);
        Ok(())
    }
}

fn load() -> Result<f64, BenchError> {
    let averages = read("/proc/loadavg")?;
    Ok(averages.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or_default())
}

fn read(file: &'static str) -> Result<String, BenchError> {
    fs::read_to_string(file).map_err(|error| BenchError::Proc { file, error })
}
