//! What processes take, by proc_pid_stat(5).

use std::{collections::HashMap, fs, io, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

use super::BenchError;

/// Processes with all their threads and descendants.
#[derive(Debug, Clone, Default)]
pub struct Processes(Vec<u32>);

/// What is read of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time, of children that have ended too, in clock ticks.
    ticks: u64,
    resident_pages: u64,
}

impl Processes {
    /// These and what they started or will start.
    pub fn new(roots: impl Into<Vec<u32>>) -> Self {
        Self(roots.into())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// CPU time taken since they started, in steps of a clock tick (usually 10 ms) per process.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn cpu(&self) -> Result<Duration, BenchError> {
        let ticks: u64 = self.members()?.iter().map(|stat| stat.ticks).sum();
        Ok(Duration::from_secs_f64(ticks as f64 / system_value(SysconfVar::CLK_TCK, 100) as f64))
    }

    /// Resident memory in KiB; pages that they share are counted for each.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn resident_kib(&self) -> Result<u64, BenchError> {
        let pages: u64 = self.members()?.iter().map(|stat| stat.resident_pages).sum();
        Ok(pages * system_value(SysconfVar::PAGE_SIZE, 4096) / 1024)
    }

    fn members(&self) -> Result<Vec<Stat>, BenchError> {
        if self.0.is_empty() {
            return Ok(Vec::new());
        }
        let all = all_processes()?;
        for root in &self.0 {
            if !all.contains_key(root) {
                return Err(BenchError::Process {
                    process: *root,
                    error: io::Error::new(io::ErrorKind::NotFound, "it has ended"),
                });
            }
        }
        Ok(all.keys().filter(|process| self.includes(**process, &all)).map(|process| all[process]).collect())
    }

    fn includes(&self, mut process: u32, all: &HashMap<u32, Stat>) -> bool {
        loop {
            if self.0.contains(&process) {
                return true;
            }
            match all.get(&process) {
                Some(stat) if stat.parent != 0 => process = stat.parent,
                _ => return false,
            }
        }
    }
}

fn all_processes() -> Result<HashMap<u32, Stat>, BenchError> {
    let directory = fs::read_dir("/proc").map_err(|error| BenchError::Proc { file: "/proc", error })?;
    let numbers = directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    // A process may end between the listing and the look at it.
    Ok(numbers
        .filter_map(|process| {
            let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
            Some((process, parse(&text)?))
        })
        .collect())
}

/// Fields are counted from the one after the name, which is in parentheses and may hold anything.
fn parse(stat: &str) -> Option<Stat> {
    const PARENT: usize = 1;
    const TIMES: std::ops::Range<usize> = 11..15;
    const RESIDENT: usize = 21;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(PARENT)?).ok()?,
        ticks: TIMES.map(number).sum::<Option<u64>>()?,
        resident_pages: number(RESIDENT)?,
    })
}

fn system_value(variable: SysconfVar, usual: u64) -> u64 {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let line = "17 (a) S (b) R 5 17 17 0 -1 4194560 90 0 0 0 11 22 33 44 20 0 3 0 400 1000 256 18446744073709551615 1";
        assert_eq!(parse(line), Some(Stat { parent: 5, ticks: 110, resident_pages: 256 }));
        assert_eq!(parse("17 (a) R 5"), None);
    }

    #[test]
    fn this_process_has_memory_and_one_that_ended_is_an_error() -> Result<(), BenchError> {
        assert!(Processes::new([std::process::id()]).resident_kib()? > 0);
        assert!(Processes::new([u32::MAX]).cpu().is_err());
        assert_eq!(Processes::default().cpu()?, Duration::ZERO);
        Ok(())
    }

    #[test]
    fn descendants_belong_to_their_ancestors() {
        let stat = |parent| Stat { parent, ticks: 1, resident_pages: 1 };
        let all = HashMap::from([(1, stat(0)), (2, stat(1)), (3, stat(2)), (4, stat(1))]);
        let processes = Processes::new([2]);
        let members: Vec<_> = [1, 2, 3, 4].into_iter().filter(|one| processes.includes(*one, &all)).collect();
        assert_eq!(members, [2, 3]);
    }
}
