//! Cleaning up on Ctrl-C.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP run `cleanup` and end this process with 128 + the signal's number.
///
/// Call it before starting threads. Processes in hosts get Ctrl-C from nobody: each has a group of its own.
pub fn on_interrupt(cleanup: impl FnOnce() + Send + 'static) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        INTERRUPTED.store(true, Ordering::SeqCst);
        cleanup();
        exit(128 + signal as i32);
    });
    Ok(())
}

/// Keeps a thread quiet whose work fails because the process is being interrupted.
pub fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}
