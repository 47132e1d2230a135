//! Interleaved rounds: each measures every path for a load before it goes on to the next load.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use murmesh_lab::{DEADLINE, Lab};
use serde_json::{Value, json};

use super::bars;
use super::lane::{Lane, Running};
use super::load::Load;
use crate::shell::{progress, repository};

/// Memory is apart and first: what a busy proxy has taken and keeps, idle connections would be given from.
const MEMORY: Load = Load::Close("memory");
const LOADS: [Load; 6] = [
    Load::Close("fortune"),
    Load::DistantFortune,
    Load::Close("connections"),
    Load::Close("echo"),
    Load::Close("echoes"),
    Load::Close("bulk"),
];

/// Loads take their duration up to this many times (four bulk transfers, and what is measured around them).
const LONGEST: u32 = 6;

/// What to repeat.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// How many times.
    pub count: u16,
    /// How long each load runs.
    pub duration: Duration,
}

/// Files with the JSON of each run.
#[derive(Debug)]
pub struct Results {
    files: Vec<PathBuf>,
    directory: PathBuf,
}

impl Rounds {
    /// Measures everything. A peer that fails is left out where it does; ours must not fail.
    pub fn measure(self, lab: &Lab, running: &Running) -> Result<Results> {
        let directory = lab.host("murmesh00")?.data_directory().join("bench");
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let mut results = Results { files: Vec::new(), directory };
        progress(&format!("{} rounds: {MEMORY}", self.count));
        for lane in &running.lanes {
            self.measure_one(lab, lane, MEMORY, self.count, &mut results)?;
        }
        for round in 0..self.count {
            for load in LOADS {
                progress(&format!("round {} of {}: {load}", round + 1, self.count));
                // Another path is the first in each round, so that none profits from its place.
                let (lanes, start) = (&running.lanes, usize::from(round) % running.lanes.len());
                for lane in lanes[start..].iter().chain(&lanes[..start]) {
                    self.measure_one(lab, lane, load, 1, &mut results)?;
                }
            }
        }
        Ok(results)
    }

    fn measure_one(
        self,
        lab: &Lab,
        lane: &Lane,
        load: Load,
        rounds: u16,
        results: &mut Results,
    ) -> Result<()> {
        let duration = format!("{}ms", self.duration.as_millis());
        let rounds = rounds.to_string();
        let name = load.name();
        let arguments = ["--loads", name, "--rounds", &rounds, "--duration", &duration, "--output", "json"];
        let within = DEADLINE + self.duration * LONGEST;
        let _distance = load
            .distance(lab, lane)
            .with_context(|| format!("putting the hosts of path {} apart", lane.name))?;
        let output = lane.run(lab.host(&lane.client)?, &arguments.map(str::to_owned), within)?;
        if output.status.success() {
            return results.keep(&load.report(output.stdout)?);
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if lane.is_ours() {
            bail!("{load} on path {}: {reason}", lane.name);
        }
        progress(&format!("{load} on path {} is left out: {reason}", lane.name));
        results.keep_failure(lane, &format!("{load}: {reason}"))
    }
}

impl Results {
    fn keep(&mut self, json: &[u8]) -> Result<()> {
        let file = self.directory.join(format!("{}.json", self.files.len()));
        fs::write(&file, json).with_context(|| format!("writing {}", file.display()))?;
        self.files.push(file);
        Ok(())
    }

    /// In the form of a report without figures.
    fn keep_failure(&mut self, lane: &Lane, reason: &str) -> Result<()> {
        let first = self.files.first().context("nothing at all could be measured")?;
        let mut report: Value = serde_json::from_slice(&fs::read(first)?)?;
        report["machine"]["load"] = json!([]);
        report["paths"] = json!([{"name": lane.name, "kind": "via", "figures": {}, "failures": [reason]}]);
        self.keep(report.to_string().as_bytes())
    }

    /// Prints the table, and writes everything to `directory`.
    pub fn show(&self, lab: &Lab, directory: Option<&Path>) -> Result<()> {
        let joined = self.directory.join("joined");
        let reference = repository().join("xtask/src/bench/reference.json");
        let mut report = lab.host("murmesh00")?.command("murmesh")?;
        report
            .args(["bench", "report", "--command", &super::command_line(), "--reference"])
            .arg(reference)
            .arg("--directory")
            .arg(&joined)
            .args(&self.files);
        crate::shell::run(&mut report)?;
        let results: Value = serde_json::from_slice(&fs::read(joined.join("results.json"))?)?;
        let bars = bars::table(&results);
        print!("{bars}");
        let Some(directory) = directory else { return Ok(()) };
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        for file in fs::read_dir(&joined)? {
            let file = file?;
            fs::copy(file.path(), directory.join(file.file_name()))?;
        }
        let page = directory.join("results.md");
        let text = fs::read_to_string(&page)? + "\n## Bars\n\n" + bars::EXPLANATION + "\n\n" + &bars;
        fs::write(&page, text)?;
        progress(&format!("results are in {}", directory.display()));
        Ok(())
    }
}
