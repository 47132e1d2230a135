//! A host of a lab as a machine of its own, with systemd and a root file system.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::host::Host;
use crate::patience::patience;
use crate::process::Process;

const SYSTEMD: &str = "/lib/systemd/systemd";
const MACHINE: &str = include_str!("machine.sh");
const BOOT: &str = include_str!("boot.sh");

/// How long several of them may take to boot at once.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// A host whose processes see this machine's files under an overlay of their own, with systemd as process 1 of their
/// namespaces, and all directories of Murmesh where they are on a real host. It ends when this is dropped, and nothing
/// that was written there is left.
#[derive(Debug)]
pub struct Machine<'a> {
    host: &'a Host,
    process: Process,
    /// A pipe that it writes a byte into each time when it has.
    booted: File,
}

impl<'a> Machine<'a> {
    /// Why there can be none here.
    pub fn unavailable() -> Option<String> {
        let reason = || Some(format!("hosts with systemd need {SYSTEMD}, which this machine does not have"));
        if Path::new(SYSTEMD).exists() { None } else { reason() }
    }

    /// Begins to boot `host`. Every machine sees `shared` as /mnt.
    pub fn start(host: &'a Host, shared: &Path) -> Result<Self> {
        let mut machine = host.command("unshare")?;
        machine.args(["--mount", "sh", "-c", MACHINE, "machine"]);
        machine.args([&host.data_directory(), shared]).args([host.name(), BOOT]);
        let pipe = shared.join(format!("booted.{}", host.name()));
        mkfifo(&pipe, Mode::S_IRWXU).with_context(|| format!("making {}", pipe.display()))?;
        // With both ends open here nobody has to wait for the other.
        let booted = OpenOptions::new().read(true).write(true).open(&pipe)?;
        Ok(Self { host, process: Process::spawn(&mut machine)?, booted })
    }

    /// Waits until it has booted: units that have systemd's default dependencies have started if they are enabled.
    pub fn wait(&self) -> Result<()> {
        let mut pipe = [PollFd::new(self.booted.as_fd(), PollFlags::POLLIN)];
        let told = poll(&mut pipe, PollTimeout::try_from(patience(BOOT_DEADLINE))?)?;
        let said = || self.process.said();
        ensure!(told == 1, "{} has not booted after {BOOT_DEADLINE:?}: {}", self.host.name(), said());
        (&self.booted).read_exact(&mut [0]).context("reading that it has booted")
    }

    /// Boots it again. Every process ends, pinned BPF programs are gone, and the network is down; files stay.
    pub fn reboot(&self) -> Result<()> {
        let asked = Process::spawn(self.command("systemctl")?.arg("reboot"))?.output(BOOT_DEADLINE)?;
        // It may be among those processes.
        ensure!(asked.status.code().is_none_or(|code| code == 0), "{asked:?}");
        self.wait()
    }

    /// A command that will run in it, as root, without input.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = self.host.command("nsenter")?;
        command.arg(format!("--target={}", self.first_process()?));
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wdns=/"]);
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games";
        command.args(["env", "--ignore-environment", "HOME=/root", path]).arg(program);
        Ok(command)
    }

    /// The host that it is.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    /// The script's only child is the `unshare` of this boot, whose only child is process 1 in there.
    fn first_process(&self) -> Result<u32> {
        let only_child = |parent: u32| -> Result<u32> {
            let path = format!("/proc/{parent}/task/{parent}/children");
            let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let child = children.split_whitespace().next();
            Ok(child.with_context(|| format!("{} does not run", self.host.name()))?.parse()?)
        };
        only_child(only_child(self.process.id())?)
    }
}
