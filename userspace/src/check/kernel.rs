//! What the kernel offers.

use std::path::Path;

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};

use super::Finding;
use crate::cgroup;

const GROUP: &str = "kernel";
const UPGRADE: &str = "use a kernel with it (Linux 5.15 or newer), or the plain sidecar (`murmesh sidecar`)";

/// Version, type information, program and map types, and namespace cookies.
pub fn check() -> Vec<Finding> {
    let mut findings = vec![version(), type_information()];
    for (name, kind) in [
        ("programs on socket addresses", ProgramType::CgroupSockAddr),
        ("programs on socket operations", ProgramType::SockOps),
        ("programs on socket lookup", ProgramType::SkLookup),
    ] {
        findings.push(supported(name, is_program_supported(kind).map_err(|error| error.to_string())));
    }
    for (name, kind) in [
        ("socket storage maps", MapType::SkStorage),
        ("ring buffers", MapType::RingBuf),
        ("prefix maps", MapType::LpmTrie),
    ] {
        findings.push(supported(name, is_map_supported(kind).map_err(|error| error.to_string())));
    }
    findings.push(match cgroup::netns_cookie() {
        Ok(_) => Finding::fine(GROUP, "network namespace cookies", "present"),
        Err(error) => Finding::failed(GROUP, "network namespace cookies", error.to_string(), UPGRADE),
    });
    findings
}

fn version() -> Finding {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 15) {
        Finding::fine(GROUP, "version", release)
    } else {
        Finding::failed(GROUP, "version", format!("{release} is older than 5.15"), UPGRADE)
    }
}

fn type_information() -> Finding {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(BTF).exists() {
        Finding::fine(GROUP, "type information (BTF)", BTF)
    } else {
        let hint = "use a kernel built with CONFIG_DEBUG_INFO_BTF; socket storage maps need it";
        Finding::failed(GROUP, "type information (BTF)", format!("{BTF} is missing"), hint)
    }
}

fn supported(name: &str, answer: Result<bool, String>) -> Finding {
    match answer {
        Ok(true) => Finding::fine(GROUP, name, "present"),
        Ok(false) => Finding::failed(GROUP, name, "the kernel does not have them", UPGRADE),
        Err(error) => {
            Finding::failed(GROUP, name, format!("could not be probed: {error}"), "run this as root")
        }
    }
}
