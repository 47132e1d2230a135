//! Removing labs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};

use crate::cgroup;
use crate::namespace::{self, ip_batch};
use crate::record::{Record, existing_labs, lock};

/// Removes the labs of processes that are gone.
pub fn sweep() -> Result<()> {
    let _lock = lock()?;
    sweep_locked()
}

/// [`sweep`], for a caller that holds the lock: no lab is half made meanwhile.
pub(crate) fn sweep_locked() -> Result<()> {
    for name in existing_labs()? {
        let owner = Record::load(&name).map(|record| record.owner);
        // Without a readable record its maker died between making the directory and writing it.
        let stale =
            owner.as_ref().map_or(true, |owner| owner.as_ref().is_some_and(|owner| !owner.is_alive()));
        if stale {
            remove(&name).with_context(|| format!("removing the lab {name:?}, whose process is gone"))?;
        }
    }
    Ok(())
}

/// Ends every process of the lab called `name` and removes what it made. What is gone already is no error.
pub fn remove(name: &str) -> Result<()> {
    let record = Record::new(name, None, Vec::new())?;
    // Each step is tried whatever became of the others; processes go first, because they hold on to the rest.
    let results = [
        record.cgroup().and_then(|cgroup| cgroup::remove(&cgroup)),
        remove_namespaces(&record),
        remove_tree(&record.bpf_directory()),
        remove_tree(&record.directory()),
    ];
    let errors: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if errors.is_empty() { Ok(()) } else { Err(anyhow!("removing the lab {name:?}: {}", errors.join("; "))) }
}

/// By name, so that a lab whose record is incomplete leaves none behind.
fn remove_namespaces(record: &Record) -> Result<()> {
    let switch = record.switch_namespace();
    let prefix = switch.trim_end_matches("switch");
    let Ok(entries) = fs::read_dir(namespace::DIRECTORY) else { return Ok(()) };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let lines: Vec<String> =
        names.filter(|name| name.starts_with(prefix)).map(|name| format!("netns delete {name}")).collect();
    if lines.is_empty() { Ok(()) } else { ip_batch(None, &lines) }
}

fn remove_tree(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}
