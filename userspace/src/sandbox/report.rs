//! What is left to this process, as the kernel has it.

use std::fs;

use caps::CapSet;
use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit},
    },
    unistd::geteuid,
};

use super::CONFINEMENT;
use crate::api::v1;

/// Looked up now, and not as it was asked for.
pub fn report() -> v1::Sandbox {
    // Of every thread alike: the runtime's were started later.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    let mut capabilities: Vec<_> = effective.iter().map(ToString::to_string).collect();
    capabilities.sort();
    v1::Sandbox {
        uid: geteuid().as_raw(),
        capabilities,
        no_new_privileges: field("NoNewPrivs:") == Some("1"),
        system_calls_filtered: field("Seccomp:") == Some("2"),
        core_dumps: prctl::get_dumpable().unwrap_or(true),
        files: CONFINEMENT.get().map_or("not limited".to_owned(), ToString::to_string),
        descriptors: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_gave_up_is_told_as_it_is() {
        let left = report();
        assert_eq!((left.uid, left.core_dumps), (geteuid().as_raw(), true));
        assert_eq!(left.files, "not limited");
    }
}
