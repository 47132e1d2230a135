//! A process in a host, with its output kept.

use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::patience::deadline;

/// A running process, which is killed with its group when this is dropped.
///
/// Both outputs are read as they come. When a test fails, what the process said is printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    closed_outputs: u8,
    exited: bool,
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

impl Process {
    /// Starts `command` in a process group of its own, with both outputs kept; stdin is as the command says.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let shared = Arc::new(Shared::default());
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            Shared::keep(&shared, Stream::Stdout, stdout);
            Shared::keep(&shared, Stream::Stderr, stderr);
        }
        Shared::watch(&shared, Pid::from_raw(child.id().cast_signed()));
        Ok(Self { name, child, shared })
    }

    /// The writing end of stdin, once, if the command was given a pipe. Dropping it is the end of input.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits for a line with `text` on either output, from the start on, and returns it.
    pub fn wait_for_line(&self, text: &str, within: Duration) -> Result<String> {
        let found = self.wait_until(deadline(within), |state| {
            let line = [&state.stdout, &state.stderr].into_iter().find_map(|output| line_with(output, text));
            line.map(Some).or_else(|| (state.exited && state.closed_outputs == 2).then_some(None))
        });
        match found {
            Some(Some(line)) => Ok(line),
            Some(None) => {
                bail!("{} ended without a line with {text:?}. It said:\n{}", self.name, self.said())
            }
            None => {
                bail!("{} had no line with {text:?} for {within:?}. It said:\n{}", self.name, self.said())
            }
        }
    }

    /// Waits until stdout, as far as it has been read, satisfies `condition`.
    pub fn wait_for_stdout(&self, within: Duration, condition: impl Fn(&[u8]) -> bool) -> Result<()> {
        let met = self.wait_until(deadline(within), |state| condition(&state.stdout).then_some(()));
        met.with_context(|| format!("{} did not write what was expected within {within:?}", self.name))
    }

    /// Waits for the process to end.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let exited = self.wait_until(deadline(within), |state| state.exited.then_some(()));
        exited.with_context(|| {
            format!("{} still runs after {within:?}. It said:\n{}", self.name, self.said())
        })?;
        self.child.wait().with_context(|| format!("reaping {}", self.name))
    }

    /// Waits for the process to end and both outputs to be closed, and returns all of it.
    pub fn output(mut self, within: Duration) -> Result<Output> {
        let deadline = deadline(within);
        let status = self.wait(within)?;
        self.wait_until(deadline, |state| (state.closed_outputs == 2).then_some(())).with_context(|| {
            format!("{} ended, and its output is still held open after {within:?}", self.name)
        })?;
        let mut state = self.shared.lock();
        Ok(Output {
            status,
            stdout: std::mem::take(&mut state.stdout),
            stderr: std::mem::take(&mut state.stderr),
        })
    }

    /// Waits for the process to end with status 0, and returns what it wrote to stdout.
    pub fn succeed(self, within: Duration) -> Result<String> {
        let name = self.name.clone();
        let output = self.output(within)?;
        if !output.status.success() {
            bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        String::from_utf8(output.stdout).with_context(|| format!("{name} wrote something that is not text"))
    }

    /// Asks the process to end (SIGTERM) and waits until it has.
    pub fn stop(mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(within)
    }

    /// Sends a signal to the process itself, not to its children.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.group(), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stdout so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.shared.lock().stdout.clone()
    }

    /// What it wrote so far, stdout before stderr.
    pub fn said(&self) -> String {
        let state = self.shared.lock();
        format!("{}{}", String::from_utf8_lossy(&state.stdout), String::from_utf8_lossy(&state.stderr))
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn wait_until<T>(&self, deadline: Instant, check: impl Fn(&State) -> Option<T>) -> Option<T> {
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = check(&state) {
                return Some(found);
            }
            let remaining = deadline.checked_duration_since(Instant::now())?;
            let waited = self.shared.changed.wait_timeout(state, remaining);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group is ours until the child is reaped, and empty groups are no error to anybody.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} (pid {}) said:\n{}", self.name, self.child.id(), self.said());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn keep(shared: &Arc<Self>, stream: Stream, mut source: impl Read + Send + 'static) {
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while let Ok(length @ 1..) = source.read(&mut buffer) {
                shared.update(|state| match stream {
                    Stream::Stdout => state.stdout.extend_from_slice(&buffer[..length]),
                    Stream::Stderr => state.stderr.extend_from_slice(&buffer[..length]),
                });
            }
            shared.update(|state| state.closed_outputs += 1);
        });
    }

    /// Notes the end of the process without reaping it, so that its id isn't another's while we hold it.
    fn watch(shared: &Arc<Self>, process: Pid) {
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            while waitid(Id::Pid(process), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {
            }
            shared.update(|state| state.exited = true);
        });
    }
}

fn line_with(output: &[u8], text: &str) -> Option<String> {
    let complete = &output[..output.iter().rposition(|byte| *byte == b'\n')?];
    let lines = complete.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    lines.into_iter().find(|line| line.contains(text)).map(|line| line.into_owned())
}
