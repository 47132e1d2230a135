//! Network namespaces, kept by `ip netns` under /run/netns.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps them.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// Opens the namespace called `name`.
pub(crate) fn open(name: &str) -> Result<File> {
    let path = PathBuf::from(DIRECTORY).join(name);
    File::open(&path).with_context(|| format!("opening the network namespace {}", path.display()))
}

/// Runs `work` on a thread of its own inside `namespace`.
pub(crate) fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `lines` through `ip -batch`, in the namespace called `name` or else in our own.
pub(crate) fn ip_batch(name: Option<&str>, lines: &[String]) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(name.into_iter().flat_map(|name| ["-n", name])).args(["-batch", "-"]);
    let mut child = ip
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (Debian's package iproute2; `cargo xtask setup` installs it)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.join("\n").as_bytes()).context("writing to ip")?;
    }
    let output = child.wait_with_output().context("waiting for ip")?;
    if !output.status.success() {
        bail!(
            "ip failed in {}: {}",
            name.unwrap_or("our namespace"),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
