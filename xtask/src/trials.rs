//! What is tried with the package on hosts with systemd: the commands of the documentation, and Terraform's module.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use murmesh_lab::{Machine, is_root};

use crate::shell::progress;
use crate::test::Count;
use crate::{docs, package, setup, terraform};

/// Most of the time they wait for daemons.
const AT_ONCE: usize = 2;

/// One of them, called as a test is.
struct Trial {
    name: String,
    what: What,
}

enum What {
    Page(PathBuf),
    Terraform,
}

/// Runs those whose name contains one of `filters`, all where there is no filter, and counts them.
pub fn run(filters: &[String]) -> Result<Count> {
    let mut trials = all()?;
    trials.retain(|trial| filters.is_empty() || filters.iter().any(|filter| trial.name.contains(filter)));
    let mut count = Count::default();
    trials.retain(|trial| {
        let Some(reason) = trial.unavailable() else { return true };
        progress(&format!("{} is skipped: {reason}", trial.name));
        count.skipped += 1;
        false
    });
    if trials.is_empty() {
        return Ok(count);
    }
    progress("with the package, on hosts with systemd");
    setup::for_running()?;
    let package = package::for_tests()?;
    let waiting = Mutex::new(trials.iter());
    thread::scope(|scope| {
        let work = || {
            let mut count = Count::default();
            while let Some(trial) = next(&waiting) {
                count += trial.count(&package);
            }
            count
        };
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            count += worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
    Ok(count)
}

fn next<'a>(waiting: &Mutex<impl Iterator<Item = &'a Trial>>) -> Option<&'a Trial> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).next()
}

/// Whether a filter means some of them, and not tests that are called alike.
pub fn are_meant(filter: &str) -> bool {
    filter.starts_with("docs") || filter == "terraform"
}

fn all() -> Result<Vec<Trial>> {
    let page = |(name, path)| Trial { name: format!("docs::{name}"), what: What::Page(path) };
    let terraform = Trial { name: "terraform".to_owned(), what: What::Terraform };
    Ok(docs::pages()?.into_iter().map(page).chain([terraform]).collect())
}

impl Trial {
    /// Why it cannot run here.
    fn unavailable(&self) -> Option<String> {
        if !is_root() {
            return Some("it makes hosts, which needs root".to_owned());
        }
        match self.what {
            What::Page(_) => Machine::unavailable(),
            What::Terraform => terraform::unavailable().or_else(Machine::unavailable),
        }
    }

    /// One that fails is tried once more, and named, as tests are.
    fn count(&self, package: &Path) -> Count {
        let begin = Instant::now();
        for attempt in ["failed", "failed again"] {
            match self.run(package) {
                Ok(()) => {
                    progress(&format!("{} passed, after {:.0?}", self.name, begin.elapsed()));
                    return Count { passed: 1, ..Count::default() };
                }
                Err(error) => progress(&format!("{} {attempt}: {error:#}", self.name)),
            }
        }
        Count { failed: 1, ..Count::default() }
    }

    fn run(&self, package: &Path) -> Result<()> {
        match &self.what {
            What::Page(page) => docs::run(page, package),
            What::Terraform => terraform::run(package),
        }
    }
}
