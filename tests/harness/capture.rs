//! Recording what passes on the wire.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::entry::Entry;
use crate::host::Host;
use crate::process::Process;
use crate::trace::{Trace, contains};

/// The discard port: the packet that ends a recording goes there.
pub(crate) const MARKER_PORT: u16 = 9;

const START_DEADLINE: Duration = Duration::from_secs(10);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// A running recording of one host's wire.
#[derive(Debug)]
pub struct Capture<'a> {
    host: &'a Host,
    tcpdump: Process,
}

impl<'a> Capture<'a> {
    pub(crate) fn start(host: &'a Host, switch: &Entry, filter: &str) -> Result<Self> {
        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .args(["--immediate-mode", "-U", "-n", "-Z", "root", "-B", "32768", "-i", host.name(), "-w", "-"])
            .arg(format!("({filter}) or (udp dst port {MARKER_PORT})"))
            .stdin(Stdio::null());
        switch.apply(&mut tcpdump);
        let tcpdump = Process::spawn(&mut tcpdump).context("`cargo xtask setup` installs tcpdump")?;
        tcpdump.wait_for_line("listening on", START_DEADLINE)?;
        Ok(Self { host, tcpdump })
    }

    /// Ends the recording. Every packet that passed before this call is in it.
    pub fn stop(self) -> Result<Trace> {
        // Packets are recorded in order: once this one is there, so is every earlier one.
        let marker = format!("end of recording {}", self.tcpdump.id());
        self.host.in_namespace(|| {
            let socket = UdpSocket::bind((self.host.ipv4(), 0))?;
            socket.set_broadcast(true)?;
            socket.send_to(marker.as_bytes(), SocketAddr::from(([10, 99, 0, 255], MARKER_PORT)))?;
            Ok(())
        })?;
        let recorded = |bytes: &[u8]| contains(bytes, marker.as_bytes());
        self.tcpdump
            .wait_for_stdout(STOP_DEADLINE, recorded)
            .context("waiting for the end of the recording")?;
        Trace::parse(&self.tcpdump.stdout())
    }
}
