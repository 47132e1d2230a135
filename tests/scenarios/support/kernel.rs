//! What the kernel says about BPF programs, maps and links. Asked by bpftool, not by Murmesh.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::Host;
use serde_json::Value;

use super::{text, wait_until};

/// How many programs an agent attaches to its cgroup.
pub const HOOKS: usize = 9;

/// Attach types of the programs on a host's cgroup, one entry for each program.
pub fn hooks(host: &Host) -> Result<Vec<String>> {
    let cgroup = host.cgroup().display().to_string();
    let programs = bpftool(&["cgroup", "show", &cgroup])?;
    let kinds =
        programs.as_array().into_iter().flatten().filter_map(|program| program["attach_type"].as_str());
    Ok(kinds.map(str::to_owned).collect())
}

/// Something of BPF, by the kernel's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    kind: &'static str,
    id: String,
}

/// Every link and map that the agent of `host` has pinned, and the programs on its cgroup.
pub fn objects(host: &Host) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    for (directory, kind) in [("links", "link"), ("maps", "map")] {
        for pin in std::fs::read_dir(host.bpf_directory().join(directory))? {
            objects.push(Object { kind, id: pinned(kind, &pin?.path())? });
        }
    }
    let cgroup = host.cgroup().display().to_string();
    for program in bpftool(&["cgroup", "show", &cgroup])?.as_array().into_iter().flatten() {
        objects.push(Object { kind: "prog", id: program["id"].to_string() });
    }
    Ok(objects)
}

/// Waits until the kernel has freed all of them, which it may do a moment after the last use.
pub fn wait_until_freed(objects: &[Object]) -> Result<()> {
    ensure!(!objects.is_empty(), "there was nothing to be freed");
    for object in objects {
        wait_until(&format!("{object:?} is freed"), || {
            Ok(bpftool(&[object.kind, "show", "id", &object.id]).is_err())
        })?;
    }
    Ok(())
}

/// Records of connections whose handshake is not over, on a host with an agent.
pub fn records_in_flight(host: &Host) -> Result<usize> {
    entries(host, "HANDSHAKES")
}

/// How many entries a map has, on a host with an agent.
pub fn entries(host: &Host, map: &str) -> Result<usize> {
    let map = host.bpf_directory().join("maps").join(map);
    let entries = bpftool(&["map", "dump", "pinned", &map.display().to_string()])?;
    entries.as_array().map(Vec::len).context("bpftool printed no list")
}

/// Takes a hook off by its pinned link, which stays where it is.
pub fn detach(host: &Host, hook: &str) -> Result<()> {
    let link = host.bpf_directory().join("links").join(hook);
    bpftool(&["link", "detach", "pinned", &link.display().to_string()]).map(drop)
}

/// Pins an empty map beside those of the agent of `host`, like the one called `like`, as one that takes over does first.
pub fn pin_empty_map(host: &Host, like: &str) -> Result<()> {
    let maps = host.bpf_directory().join("maps");
    let path = |name: &str| maps.join(name).display().to_string();
    let shown = bpftool(&["map", "show", "pinned", &path(like)])?;
    let words = ["type", "bytes_key", "bytes_value", "max_entries"].map(|name| match &shown[name] {
        Value::String(word) => word.clone(),
        number => number.to_string(),
    });
    let [kind, key, value, entries] = words.each_ref().map(String::as_str);
    let mut create =
        vec!["map", "create", "", "type", kind, "key", key, "value", value, "entries", entries, "name", like];
    let pin = path(&format!("{like}_next"));
    create[2] = &pin;
    // A hash map whose entries are made when they are put there.
    create.extend(if kind == "hash" { &["flags", "1"][..] } else { &[] });
    bpftool(&create).map(drop)
}

/// Attaches the program that is at `hook` on the cgroup of `host` a second time, without a link. It stays until the cgroup
/// is removed.
pub fn attach_twice(host: &Host, hook: &str) -> Result<()> {
    let cgroup = host.cgroup().display().to_string();
    let programs = bpftool(&["cgroup", "show", &cgroup])?;
    let name = format!("murmesh_{hook}");
    let program = programs.as_array().into_iter().flatten().find(|program| program["name"] == name);
    let id = program.with_context(|| format!("no {name} in {programs}"))?["id"].to_string();
    bpftool(&["cgroup", "attach", &cgroup, hook, "id", &id, "multi"]).map(drop)
}

/// Has the process `id` in a cgroup from now on.
pub fn move_to(cgroup: &Path, id: u32) -> Result<()> {
    std::fs::write(cgroup.join("cgroup.procs"), id.to_string()).with_context(|| cgroup.display().to_string())
}

fn pinned(kind: &str, pin: &Path) -> Result<String> {
    let shown = bpftool(&[kind, "show", "pinned", &pin.display().to_string()])?;
    // Links come as a list of one.
    let object = shown.get(0).unwrap_or(&shown);
    Ok(object["id"].to_string())
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let output = Command::new("/usr/sbin/bpftool").arg("-j").args(arguments).output();
    let output = output.context("`cargo xtask setup` installs bpftool")?;
    ensure!(output.status.success(), "bpftool {}: {}", arguments.join(" "), text(&output.stdout));
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).context("reading what bpftool says")
}
