//! One host of a lab.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::capture::Capture;
use crate::entry::Entry;
use crate::murmesh::program_directory;
use crate::namespace::{self, inside, ip_batch};
use crate::patience::deadline;
use crate::process::Process;
use crate::record::{HostRecord, Record};

/// How often a listener is looked for; there is no signal to wait for from outside a program.
const LISTENER_INTERVAL: Duration = Duration::from_millis(5);

/// A host: a network namespace, a cgroup, an `/etc/hosts` and directories.
#[derive(Debug)]
pub struct Host {
    record: HostRecord,
    entry: Entry,
    switch: Entry,
    directory: PathBuf,
    bpf_directory: PathBuf,
    cgroup: PathBuf,
}

impl Host {
    /// Makes the host's cgroup and files; its namespace exists.
    pub(crate) fn create(lab: &Record, record: &HostRecord) -> Result<Self> {
        let host = lab.directory().join(&record.name);
        let bpf = lab.bpf_directory();
        for directory in [&host.join("data"), &host.join("run"), &host.join("log"), &bpf] {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        fs::write(host.join("hosts"), lab.hosts_file())?;
        for cgroup in [lab.cgroup()?.join(&record.name), lab.cgroup()?.join("switch")] {
            fs::create_dir_all(&cgroup).with_context(|| format!("making the cgroup {}", cgroup.display()))?;
        }
        Self::open(lab, record)
    }

    pub(crate) fn open(lab: &Record, record: &HostRecord) -> Result<Self> {
        let directory = lab.directory().join(&record.name);
        let cgroup = lab.cgroup()?.join(&record.name);
        let hosts_file = directory.join("hosts");
        Ok(Self {
            entry: Entry::new(&cgroup, namespace::open(&record.namespace)?, &hosts_file, &record.name)?,
            switch: Entry::new(
                &lab.cgroup()?.join("switch"),
                namespace::open(&lab.switch_namespace())?,
                &hosts_file,
                "switch",
            )?,
            record: record.clone(),
            bpf_directory: lab.bpf_directory().join(&record.name),
            directory,
            cgroup,
        })
    }

    /// A command that will run in this host, as root, with the built `murmesh` and `murmesh-probe`
    /// first in `PATH`.
    ///
    /// Stdin is empty unless changed.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let binary = crate::murmesh_binary()?;
        let path = env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let ours = binary.parent().map(Path::to_path_buf).into_iter().chain([program_directory()?]);
        let directories = ours.chain(env::split_paths(&path));
        let mut command = Command::new(program);
        command
            .env("PATH", env::join_paths(directories.chain(system))?)
            .env("MURMESH_RUN_DIR", self.run_directory())
            .stdin(Stdio::null());
        self.entry.apply(&mut command);
        Ok(command)
    }

    /// Starts a program with arguments, without input.
    pub fn spawn<I: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = I>,
    ) -> Result<Process> {
        Process::spawn(self.command(program)?.args(arguments))
    }

    /// Runs a program with arguments and `input` on stdin until it ends, which must be `within` the time given.
    pub fn run<I: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = I>,
        input: &[u8],
        within: Duration,
    ) -> Result<Output> {
        let mut process = Process::spawn(self.command(program)?.args(arguments).stdin(Stdio::piped()))?;
        let mut stdin = process.take_stdin();
        thread::scope(|scope| {
            // A program that doesn't read all of its input is no failure of ours.
            scope.spawn(|| stdin.take().map(|mut stdin| stdin.write_all(input)));
            process.output(within)
        })
    }

    /// Waits until something in this host listens on TCP `port`.
    pub fn wait_listening(&self, port: u16, within: Duration) -> Result<()> {
        let deadline = deadline(within);
        inside(self.entry.namespace(), || {
            while !is_listening(port)? {
                if Instant::now() >= deadline {
                    bail!("nothing listens on TCP port {port} of {} after {within:?}", self.record.name);
                }
                thread::sleep(LISTENER_INTERVAL);
            }
            Ok(())
        })
    }

    /// Captures what passes between this host and the switch, which is what anybody on the wire can read.
    ///
    /// `filter` is in the language of pcap-filter(7). It returns once packets are being recorded.
    pub fn capture(&self, filter: &str) -> Result<Capture<'_>> {
        Capture::start(self, &self.switch, filter)
    }

    /// Pulls the plug: nothing reaches the host or leaves it any more, and nobody is told.
    pub fn unplug(&self) -> Result<()> {
        inside(self.switch.namespace(), || ip_batch(None, &[format!("link set {} down", self.name())]))
    }

    /// Puts the plug back in.
    pub fn plug_in(&self) -> Result<()> {
        inside(self.switch.namespace(), || ip_batch(None, &[format!("link set {} up", self.name())]))
    }

    /// Sends nothing to `other` any more, which is told to nobody; what `other` sends arrives.
    pub fn cut_off_from(&self, other: &Host) -> Result<()> {
        let lines = other.addresses().map(|address| format!("route add blackhole {address}"));
        self.configure(&lines)
    }

    /// Runs `lines` of ip(8) in this host.
    pub(crate) fn configure(&self, lines: &[String]) -> Result<()> {
        ip_batch(Some(&self.record.namespace), lines)
    }

    /// Runs `work` on a thread in this host's network namespace. The thread is in the caller's cgroup, which no
    /// hook of the lab sees.
    pub fn in_namespace<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        inside(self.entry.namespace(), work)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Ipv4Addr {
        self.record.ipv4
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.record.ipv6
    }

    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.record.ipv4.into(), self.record.ipv6.into()]
    }

    /// `--data-dir` of its daemons.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// `--checks-dir` of its agent; it is there when a test has made it.
    pub fn checks_directory(&self) -> PathBuf {
        self.directory.join("checks")
    }

    /// `--run-dir` of its daemons.
    pub fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// Where daemons that outlive their starter write what they say.
    pub fn log_directory(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// `--bpf-dir` of its agent.
    pub fn bpf_directory(&self) -> &Path {
        &self.bpf_directory
    }

    /// The cgroup that all its processes are in.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

/// Whether a TCP socket listens on `port` in this thread's namespace (proc_net(5): state 0A is LISTEN).
fn is_listening(port: u16) -> Result<bool> {
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let text = fs::read_to_string(table).with_context(|| format!("reading {table}"))?;
        let ending = format!(":{port:04X}");
        let listens = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next().is_some_and(|local| local.ends_with(&ending)) && fields.nth(1) == Some("0A")
        };
        if text.lines().any(listens) {
            return Ok(true);
        }
    }
    Ok(false)
}
