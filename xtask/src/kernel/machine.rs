//! The emulated machine, and the directory that it shares with us for writing.

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use murmesh_lab::TIME_FACTOR;

use super::package::Kernel;

const TESTS: &str = include_str!("guest/tests.sh");

/// How much slower than a machine everything is in an emulated one, time limits of tests included. The environment
/// of this command overrides it.
const SLOWNESS: &str = "10";

/// What one test may take.
const TEST_LIMIT: Duration = Duration::from_secs(900);

/// What may pass without a word: a test, and starting or stopping.
const SILENCE_LIMIT: Duration = Duration::from_secs(1000);

/// What the machine reads its tests from and writes what they say to.
pub struct Share {
    directory: PathBuf,
    console: PathBuf,
}

impl Share {
    /// Makes it in `directory`.
    pub fn make(directory: &Path, program: &Path, tests: &[String]) -> Result<Self> {
        let share = Self { directory: directory.join("share"), console: directory.join("console.log") };
        fs::create_dir_all(share.directory.join("said"))?;
        let factor = env::var(TIME_FACTOR).unwrap_or_else(|_| SLOWNESS.to_owned());
        let settings = format!(
            "export {TIME_FACTOR}={factor}\nLIMIT={}\nPROGRAM='{}'\n",
            TEST_LIMIT.as_secs(),
            program.display()
        );
        fs::write(share.directory.join("settings"), settings)?;
        fs::write(share.directory.join("tests"), tests.join("\n") + "\n")?;
        fs::write(share.directory.join("tests.sh"), TESTS)?;
        Ok(share)
    }

    /// What a test said that has ended.
    pub fn said(&self, test: &str) -> String {
        let said = fs::read(self.directory.join("said").join(test)).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    /// What the kernel said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}

/// A machine that runs, and is ended when this is dropped.
pub struct Machine {
    emulator: Child,
    lines: Receiver<String>,
}

impl Machine {
    /// Starts it. Of its two serial lines, one is the console, and what comes over the other is read here.
    pub fn boot(kernel: &Kernel, initramfs: &Path, share: &Share) -> Result<Self> {
        // Whatever becomes of this process, no machine is left.
        let mut emulator = Command::new("setpriv");
        emulator
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G", "-M", "q35"])
            .args(["-nodefaults", "-nic", "none", "-display", "none", "-no-reboot", "-kernel"])
            .arg(kernel.image())
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 panic=-1 loglevel=5"])
            .args(["-serial", &format!("file:{}", share.console.display()), "-serial", "stdio"])
            .args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"])
            .arg("-virtfs")
            .arg(format!("local,path={},mount_tag=guest,security_model=none", share.directory.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut emulator = emulator.spawn().context("starting the emulator")?;
        let output = BufReader::new(emulator.stdout.take().context("the emulator has an output")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { emulator, lines })
    }

    /// The next line; none once the machine has stopped, by itself or because it said nothing for too long.
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(SILENCE_LIMIT) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("the machine said nothing for {SILENCE_LIMIT:?} and is stopped");
                None
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }
}
