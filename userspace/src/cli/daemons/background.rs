//! Daemons where there is no systemd: each with a supervisor, which is a process of ours in the background.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;

use super::{INTERVAL, Role};

/// A log that is longer is put aside when a daemon is started.
const LONGEST_LOG: u64 = 10 << 20;
/// How many of its lines are shown when a daemon fails.
const LAST_LINES: usize = 10;

/// A supervisor that was started here, and where its daemon's log is.
pub struct Background {
    supervisor: Child,
    log: PathBuf,
    role: Role,
}

impl Background {
    /// Starts a supervisor of `murmesh ARGUMENTS`, which goes on when this process ends.
    ///
    /// # Errors
    /// When it cannot be started, or its log cannot be made.
    pub fn start(
        role: Role,
        run_dir: &Path,
        data_dir: &Path,
        arguments: &[OsString],
    ) -> anyhow::Result<Self> {
        let path = data_dir.join(format!("{}.log", role.name()));
        let log = open_log(data_dir, &path).with_context(|| format!("{}", path.display()))?;
        let mut command = Command::new(std::env::current_exe().context("finding our own program")?);
        command.args(["supervise", role.name(), "--run-dir"]).arg(run_dir).arg("--").args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let supervisor = command.spawn().context("the supervisor cannot be started")?;
        Ok(Self { supervisor, log: path, role })
    }

    /// Makes sure that its daemon did not fail.
    ///
    /// # Errors
    /// When the supervisor has given up, with the last lines of the log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.supervisor.try_wait()? else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(LAST_LINES).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        bail!(
            "the {} ended with {status}. {} ends with:\n{}",
            self.role.name(),
            self.log.display(),
            lines.join("\n")
        )
    }
}

fn open_log(data_dir: &Path, path: &Path) -> std::io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    if fs::metadata(path).is_ok_and(|log| log.len() > LONGEST_LOG) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The right to supervise the daemon of a run directory, which one process has at a time.
pub struct Claim {
    path: PathBuf,
    _file: Flock<File>,
}

impl Claim {
    /// Takes it.
    ///
    /// # Errors
    /// When another process has it, or the run directory is unusable.
    pub fn take(role: Role, run_dir: &Path) -> anyhow::Result<Self> {
        let path = claim_path(role, run_dir);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .with_context(|| format!("{}", path.display()))?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("{}", path.display()))?;
        let Ok(mut file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "{} is held: the {} is supervised already; stop it with `murmesh down`",
                path.display(),
                role.name()
            )
        };
        file.set_len(0)?;
        write!(file, "{}", std::process::id())?;
        Ok(Self { path, _file: file })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // It may be gone already, with the whole directory.
        let _ = fs::remove_file(&self.path);
    }
}

fn claim_path(role: Role, run_dir: &Path) -> PathBuf {
    run_dir.join(format!("{}.pid", role.name()))
}

/// Stops the supervisor of a daemon, or the daemon itself if it has none, and waits until it has ended. Returns whether
/// there was one.
///
/// # Errors
/// When it has not ended `within` the time given.
pub fn stop(role: Role, run_dir: &Path, within: Duration) -> anyhow::Result<bool> {
    let Some(process) = supervisor(role, run_dir).or_else(|| daemon(role, run_dir)) else { return Ok(false) };
    kill(process, Signal::SIGTERM).with_context(|| format!("stopping process {process}"))?;
    let deadline = Instant::now() + within;
    while is_running(process) {
        ensure!(
            Instant::now() < deadline,
            "the {} (pid {process}) still runs after {}; look at its log",
            role.name(),
            humantime::format_duration(within)
        );
        thread::sleep(INTERVAL);
    }
    Ok(true)
}

/// Who has the [`Claim`].
fn supervisor(role: Role, run_dir: &Path) -> Option<Pid> {
    let file = File::open(claim_path(role, run_dir)).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err((file, Errno::EWOULDBLOCK)) => {
            std::io::read_to_string(file).ok()?.parse().ok().map(Pid::from_raw)
        }
        Err(_) => None,
    }
}

/// Who listens on the socket of the daemon.
fn daemon(role: Role, run_dir: &Path) -> Option<Pid> {
    let socket = UnixStream::connect(run_dir.join(role.socket())).ok()?;
    let listener = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
    Some(Pid::from_raw(listener.pid()))
}

/// Whether it has not ended; one that nobody has waited for yet has. Source: proc_pid_stat(5).
fn is_running(process: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_supervises() {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().join("run");
        assert_eq!(supervisor(Role::Agent, &run_dir), None);
        let claim = Claim::take(Role::Agent, &run_dir).unwrap();
        assert_eq!(supervisor(Role::Agent, &run_dir), Some(Pid::this()));
        assert_eq!(supervisor(Role::Server, &run_dir), None);
        let refused = Claim::take(Role::Agent, &run_dir).err().unwrap().to_string();
        assert!(refused.contains("murmesh down"), "{refused}");
        drop(claim);
        assert_eq!(supervisor(Role::Agent, &run_dir), None);
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0);
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_has_ended() {
        assert!(is_running(Pid::this()));
        let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        let process = Pid::from_raw(child.id().cast_signed());
        // The end of its output comes with its end, or just before.
        std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
        while is_running(process) {}
        child.wait().unwrap();
        assert!(!is_running(process));
    }
}
