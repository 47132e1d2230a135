//! What daemons and kernels hold at a moment: memory, descriptors, threads, sockets, entries of maps.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use murmesh_lab::{DEADLINE, Host, Process};

use super::{kernel, text};

/// Maps whose entries come and go.
const MAPS: [&str; 12] = [
    "ADDRESSES",
    "DENIALS",
    "EGRESS",
    "ENDPOINTS",
    "EXCEPTIONS",
    "HANDSHAKES",
    "PLAINTEXT_CLIENTS",
    "PLAINTEXT_PORTS",
    "PORTS",
    "USERS",
    "VERDICTS",
    "WORKLOADS",
];

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Resident memory of a process, in KiB.
    Memory,
    /// Of a process.
    Descriptors,
    /// Of a process.
    Threads,
    /// Of a map of a host's kernel half.
    Entries,
    /// Established connections of a host.
    Connections,
    /// TCP sockets of a host whose connection is neither whole nor over.
    Lingering,
}

impl Kind {
    /// What it may come to when it was `before`.
    fn limit(self, before: u64) -> u64 {
        match self {
            // What an allocator keeps for the next time.
            Self::Memory => before + before / 4 + 8 * 1024,
            // Tunnels at rest, of which each worker keeps up to 32 to a service.
            Self::Descriptors | Self::Connections => before + 32,
            Self::Threads | Self::Entries => before + 8,
            Self::Lingering => 0,
        }
    }
}

/// Every figure by what it is, and whose.
#[derive(Debug, Clone, Default)]
pub struct Figures(BTreeMap<(Kind, String), u64>);

impl Figures {
    /// Of `hosts`, with their long-lived daemons.
    pub fn of(hosts: &[(&Host, &Process)]) -> Result<Self> {
        let mut figures = Self::default();
        for (host, daemon) in hosts {
            figures.add_process(host.name(), daemon)?;
            figures.add_sockets(host)?;
            if host.bpf_directory().join("maps").exists() {
                figures.add_maps(host)?;
            }
        }
        Ok(figures)
    }

    /// In words, what is more than it may be, given what was `before`.
    pub fn growth(&self, before: &Self) -> Vec<String> {
        let grown = self.0.iter().filter_map(|((kind, whose), now)| {
            let first = before.0.get(&(*kind, whose.clone())).copied().unwrap_or_default();
            let limit = kind.limit(first);
            (*now > limit).then(|| format!("{kind:?} of {whose}: {first} before, {now} now, {limit} at most"))
        });
        grown.collect()
    }

    /// A line for each, with what it was `before`.
    pub fn beside(&self, before: &Self) -> String {
        let line = |((kind, whose), now): (&(Kind, String), &u64)| {
            let first = before.0.get(&(*kind, whose.clone())).copied().unwrap_or_default();
            format!("{:<12} {whose:<28} {first:>8} {now:>8}\n", format!("{kind:?}"))
        };
        let lines: String = self.0.iter().map(line).collect();
        format!("{:<12} {:<28} {:>8} {:>8}\n{lines}", "what", "whose", "before", "after")
    }

    fn add_process(&mut self, name: &str, process: &Process) -> Result<()> {
        let directory = Path::new("/proc").join(process.id().to_string());
        let status = fs::read_to_string(directory.join("status"))?;
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok()).with_context(|| format!("{name} in {status}"))
        };
        self.put(Kind::Memory, name, number("VmRSS:")?);
        self.put(Kind::Threads, name, number("Threads:")?);
        self.put(Kind::Descriptors, name, fs::read_dir(directory.join("fd"))?.count() as u64);
        Ok(())
    }

    fn add_sockets(&mut self, host: &Host) -> Result<()> {
        let listed = text(&host.run("ss", ["-Htan"], b"", DEADLINE)?.stdout);
        let in_state = |states: &[&str]| {
            let state =
                |line: &&str| line.split_whitespace().next().is_some_and(|word| states.contains(&word));
            listed.lines().filter(state).count() as u64
        };
        self.put(Kind::Connections, host.name(), in_state(&["ESTAB"]));
        let lingering =
            ["CLOSE-WAIT", "CLOSING", "FIN-WAIT-1", "FIN-WAIT-2", "LAST-ACK", "SYN-RECV", "SYN-SENT"];
        self.put(Kind::Lingering, host.name(), in_state(&lingering));
        Ok(())
    }

    fn add_maps(&mut self, host: &Host) -> Result<()> {
        for map in MAPS {
            let entries = kernel::entries(host, map)? as u64;
            self.put(Kind::Entries, &format!("{} {map}", host.name()), entries);
        }
        Ok(())
    }

    fn put(&mut self, kind: Kind, whose: &str, value: u64) {
        self.0.insert((kind, whose.to_owned()), value);
    }
}
