//! The log on its way out. One thread writes it, so that nobody else waits for whoever reads it: what comes while too
//! much is waiting already is dropped, and counted.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::warn;

use crate::limited_log::LimitedLog;

/// Bytes that may wait: some five thousand lines.
const ROOM: usize = 1 << 20;

/// How long lines that are in no hurry are gathered, so that few of those who add some have to wake the writer.
const GATHERING: Duration = Duration::from_millis(20);

/// How long the end of a process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Whoever reads slowly may do so for long.
static LOST: LimitedLog = LimitedLog::new();

/// Where lines of this process go once its log has been started.
static LOG: OnceLock<Arc<LogWriter>> = OnceLock::new();

/// Lines on their way to a descriptor.
pub struct LogWriter {
    state: Mutex<State>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// What was taken is not written yet.
    is_writing: bool,
    /// The writer sleeps until it is told that there is something.
    is_idle: bool,
    /// What waits is to be written at once.
    is_urgent: bool,
}

/// Sees to it that the last lines are written: they are waited for when this is dropped.
#[must_use = "what is logged last is lost without it"]
pub struct LastLines(Arc<LogWriter>);

/// Starts to write the lines of this process to standard output.
///
/// # Errors
/// There is no standard output, or no thread can be started.
pub fn start() -> io::Result<LastLines> {
    let output = io::stdout().as_fd().try_clone_to_owned()?;
    let log = match LOG.get() {
        Some(log) => log.clone(),
        None => LOG.get_or_init(|| Arc::new(LogWriter::new())).clone(),
    };
    log.clone().run(output)?;
    Ok(LastLines(log))
}

/// Adds whole lines that are in no hurry.
pub fn add(lines: &[u8]) {
    if let Some(log) = LOG.get() {
        log.add(lines, false);
    }
}

/// Lines of this process that were dropped so far.
pub fn lost() -> u64 {
    LOG.get().map_or(0, |log| log.lost.load(Relaxed))
}

/// For lines that come one by one, each in one write.
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(log) = LOG.get() {
            log.add(line, true);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogWriter {
    fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), lost: AtomicU64::new(0) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, lines: &[u8], is_urgent: bool) {
        let mut state = self.state();
        if state.waiting.len() + lines.len() > ROOM {
            drop(state);
            self.lose(lines);
            return;
        }
        state.waiting.extend_from_slice(lines);
        let must_wake = state.is_idle || is_urgent && !state.is_urgent;
        state.is_urgent |= is_urgent;
        state.is_idle = false;
        drop(state);
        if must_wake {
            self.changed.notify_all();
        }
    }

    fn lose(&self, lines: &[u8]) {
        let lines = lines.iter().filter(|byte| **byte == b'\n').count();
        self.lost.fetch_add(lines as u64, Relaxed);
    }

    fn run(self: Arc<Self>, output: OwnedFd) -> io::Result<()> {
        let output = File::from(output);
        let write = move || {
            let (mut lines, mut told) = (Vec::new(), 0);
            loop {
                self.take(&mut lines);
                if write_all(&output, &lines).is_err() {
                    self.lose(&lines);
                }
                lines.clear();
                let lost = self.lost.load(Relaxed);
                if lost > told
                    && let Some(_) = LOST.permit()
                {
                    warn!(
                        lost = lost - told,
                        "log lines were dropped: nobody reads standard output fast enough"
                    );
                    told = lost;
                }
            }
        };
        thread::Builder::new().name("log".to_owned()).spawn(write)?;
        Ok(())
    }

    /// Waits until there is something to be written.
    fn take(&self, lines: &mut Vec<u8>) {
        let mut state = self.state();
        state.is_writing = false;
        self.changed.notify_all();
        state.is_idle = state.waiting.is_empty();
        let is_empty = |state: &mut State| state.waiting.is_empty();
        state = self.changed.wait_while(state, is_empty).unwrap_or_else(PoisonError::into_inner);
        let is_gathering = |state: &mut State| !state.is_urgent;
        let gathered = self.changed.wait_timeout_while(state, GATHERING, is_gathering);
        (state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(lines, &mut state.waiting);
        (state.is_writing, state.is_urgent, state.is_idle) = (true, false, false);
    }

    /// Waits until everything is written, or `limit` is over.
    fn finish(&self, limit: Duration) {
        let (mut state, deadline) = (self.state(), Instant::now() + limit);
        while state.is_writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state.is_urgent = true;
            self.changed.notify_all();
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for LastLines {
    fn drop(&mut self) {
        self.0.finish(LAST_LINES);
    }
}

/// Whoever gave us the descriptor may have made it one that does not block.
fn write_all(mut output: &File, mut lines: &[u8]) -> io::Result<()> {
    while !lines.is_empty() {
        match output.write(lines) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => lines = &lines[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    /// A writer, and what reads its lines. Writing does not block in the kernel: it is waited for.
    fn log() -> (Arc<LogWriter>, io::PipeReader) {
        let (reader, writer) = io::pipe().expect("a pipe");
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
        let log = Arc::new(LogWriter::new());
        log.clone().run(writer.into()).expect("a thread");
        (log, reader)
    }

    #[test]
    fn lines_that_wait_are_written_in_their_order() {
        let (log, mut reader) = log();
        log.add(b"one\n", false);
        log.add(b"two\n", true);
        log.add(b"three\n", false);
        log.finish(Duration::from_secs(10));
        let mut read = [0; 14];
        reader.read_exact(&mut read).expect("all of them");
        assert_eq!(&read, b"one\ntwo\nthree\n");
        assert_eq!(log.lost.load(Relaxed), 0);
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_dropped_is_counted() {
        let (log, mut reader) = log();
        let (lines, each) = (4 * ROOM / 64, [&[b'x'; 63][..], b"\n"].concat());
        for _ in 0..lines {
            log.add(&each, false);
        }
        let lost = log.lost.load(Relaxed) as usize;
        assert!(lost > lines / 3, "{lost} of {lines}");
        log.finish(Duration::ZERO);
        let mut read = vec![0; (lines - lost) * each.len()];
        reader.read_exact(&mut read).expect("all that were taken");
        assert!(read.chunks(each.len()).all(|line| line == each));
    }
}
