//! What the units of the package promise to systemd, and how little they leave to the daemons.

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{Host, Lab, Process, Topology};
use nix::sys::signal::Signal;

use crate::support::{DEADLINE, Daemons, skipped, text};

#[test]
fn daemons_say_that_they_are_ready_that_they_live_and_that_they_stop() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let (first, client) = (lab.host("murmesh00")?, lab.host("fcc00")?);
    watch(first, first.server_command()?)?;
    let mut daemons = Daemons::server_only(&lab)?;
    watch(client, client.agent_command(&daemons.token(client)?)?)
}

/// Starts a daemon as systemd does, with a watchdog that is to hear of it several times, and stops it.
fn watch(host: &Host, mut command: Command) -> Result<()> {
    let path = host.log_directory().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(DEADLINE))?;
    let daemon = Process::spawn(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000"))?;
    let received = || -> Result<String> {
        let mut message = [0; 64];
        let length = manager.recv(&mut message).with_context(|| daemon.said())?;
        Ok(text(&message[..length]))
    };
    let (mut ready, mut alive) = (0, 0);
    while ready == 0 || alive < 5 {
        let message = received()?;
        ready += usize::from(message == "READY=1");
        alive += usize::from(message == "WATCHDOG=1");
    }
    ensure!(ready == 1, "it said {ready} times that it is ready");
    daemon.signal(Signal::SIGTERM)?;
    while received()? != "STOPPING=1" {}
    ensure!(daemon.stop(DEADLINE)?.success(), "a clean stop is no failure");
    Ok(())
}
