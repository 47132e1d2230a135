//! What the kernel tells of this process. What cannot be read is left out.

use std::{fs, time::SystemTime};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{SysconfVar, sysconf},
};

use super::{
    Page,
    definitions::{
        LOG_LINES_LOST, PROCESS_DESCRIPTORS, PROCESS_MAX_DESCRIPTORS, PROCESS_MEMORY, PROCESS_STARTED,
    },
    page::{number, seconds},
};
use crate::log_writer;

/// The second field of /proc/PID/statm: proc(5).
const RESIDENT_PAGES: usize = 1;

/// Adds them, of a process that was started at `started`.
pub fn figures(page: &mut Page, started: SystemTime) {
    page.gauge(&PROCESS_STARTED, &[], seconds(started));
    page.counter(&LOG_LINES_LOST, &[], log_writer::lost());
    let memory = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = memory.split_whitespace().nth(RESIDENT_PAGES).and_then(|pages| pages.parse::<u64>().ok());
    if let (Some(pages), Ok(Some(size))) = (pages, sysconf(SysconfVar::PAGE_SIZE)) {
        page.gauge(&PROCESS_MEMORY, &[], number(pages.saturating_mul(size.cast_unsigned())));
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // But the one that this takes.
        page.gauge(&PROCESS_DESCRIPTORS, &[], number(descriptors.count().saturating_sub(1)));
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        page.gauge(&PROCESS_MAX_DESCRIPTORS, &[], number(soft));
    }
}
