//! A new agent that fails after its programs run in the place of the old one's: the old one goes on as if nothing had been.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use murmesh_lab::{DEADLINE, Host, Lab, Process, Topology, patience};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    accept, bind, connect, listen, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

use crate::support::kernel::{HOOKS, Object, hooks, objects};
use crate::support::{Daemons, greeting, kill, murmesh, skipped, text, wait_until};

const PORT: u16 = 8181;

/// Between two agents of which one takes over from the other: passes on what they say, as far as it is told to.
struct Between {
    new: OwnedFd,
    old: OwnedFd,
}

impl Between {
    /// Starts an agent that takes over, and passes on everything but that it has.
    fn start(host: &Host, daemons: &mut Daemons<'_>) -> Result<(Self, Process)> {
        let (path, aside) = sockets(host);
        fs::rename(&path, &aside)?;
        let listener = seqpacket()?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&path)?)?;
        listen(&listener, Backlog::new(1)?)?;
        let within = TimeVal::new(i64::try_from(patience(DEADLINE).as_secs())?, 0);
        setsockopt(&listener, sockopt::ReceiveTimeout, &within)?;
        let mut command = host.agent_command(&daemons.token(host)?)?;
        let agent = Process::spawn(command.arg("--take-over"))?;
        let new = accepted(&listener)?;
        setsockopt(&new, sockopt::ReceiveTimeout, &within)?;
        let old = seqpacket()?;
        connect(old.as_raw_fd(), &UnixAddr::new(&aside)?)?;
        let between = Self { new, old };
        pass(&between.new, &between.old)?;
        let offer: Value = serde_json::from_slice(&pass(&between.old, &between.new)?)?;
        for _ in 0..offer["Offer"]["workers"].as_u64().with_context(|| format!("{offer}"))? {
            pass(&between.old, &between.new)?;
        }
        Ok((between, agent))
    }

    /// Waits until the new agent says that it serves, and keeps that.
    fn taken(&self) -> Result<Vec<u8>> {
        let (message, _) = receive(&self.new)?;
        ensure!(text(&message).contains("Taken"), "{}", text(&message));
        Ok(message)
    }

    /// The next agent asks the old one itself again.
    fn go(self, host: &Host) -> Result<()> {
        let (path, aside) = sockets(host);
        Ok(fs::rename(aside, path)?)
    }
}

fn sockets(host: &Host) -> (PathBuf, PathBuf) {
    let directory = host.run_directory();
    (directory.join("agent.takeover.sock"), directory.join("aside.sock"))
}

fn seqpacket() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

fn pass(from: &OwnedFd, to: &OwnedFd) -> Result<Vec<u8>> {
    let (message, descriptors) = receive(from)?;
    let numbers: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let rights: &[_] = if numbers.is_empty() { &[] } else { &rights };
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&message)], rights, MsgFlags::empty(), None)?;
    Ok(message)
}

/// One message. The kernel does not begin anew by itself what has a time limit.
fn receive(from: &OwnedFd) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 128 * 1024];
    let (length, descriptors) = loop {
        let mut space = cmsg_space!([RawFd; 253]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EINTR) => continue,
            received => received?,
        };
        let mut descriptors = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = message {
                // SAFETY: descriptors that the kernel has just made for us.
                descriptors.extend(rights.into_iter().map(|right| unsafe { OwnedFd::from_raw_fd(right) }));
            }
        }
        break (received.bytes, descriptors);
    };
    ensure!(length > 0, "the other agent has ended");
    bytes.truncate(length);
    Ok((bytes, descriptors))
}

fn accepted(listener: &OwnedFd) -> Result<OwnedFd> {
    loop {
        match accept(listener.as_raw_fd()) {
            Err(Errno::EINTR) => {}
            // SAFETY: a descriptor that the kernel has just made for us.
            descriptor => return Ok(unsafe { OwnedFd::from_raw_fd(descriptor?) }),
        }
    }
}

/// The agent of `host` enforces with what it had `before`, and carries connections, and the next one can take over.
fn ensure_unharmed(lab: &Lab, daemons: &mut Daemons<'_>, before: &[Object]) -> Result<()> {
    let (client, service) = (lab.host("fcc00")?, lab.host("fcs00")?);
    daemons.agent(client)?.wait_for_line("has not taken over, this one goes on", DEADLINE)?;
    wait_until("everything in the kernel is as it was", || Ok(objects(client)? == before))?;
    ensure!(hooks(client)?.len() == HOOKS, "{:?}", hooks(client)?);
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    wait_until("status is green", || Ok(murmesh(client, &["status"])?.status.success()))?;

    let mut command = client.agent_command(&daemons.token(client)?)?;
    let agent = Process::spawn(command.arg("--take-over"))?;
    agent.wait_for_line("has taken over", DEADLINE)?;
    let mut older = daemons.replace_agent(client, agent)?;
    ensure!(daemons.ask_through_mesh(client, service, PORT)? == greeting(service));
    ensure!(older.wait(DEADLINE)?.success(), "{}", older.said());
    Ok(())
}

#[test]
fn an_agent_that_fails_after_its_programs_run_gives_way_to_the_old_one_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let before = objects(client)?;
    let capture = client.capture("tcp port 8181")?;
    let (between, agent) = Between::start(client, &mut daemons)?;
    between.taken()?;
    ensure!(objects(client)? != before, "its programs do not run");
    kill(agent)?;
    between.go(client)?;
    ensure_unharmed(&lab, &mut daemons, &before)?;
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}

#[test]
fn an_agent_that_is_gone_when_the_old_one_hears_that_it_serves_has_not_taken_over() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let lab = Lab::new(Topology::default())?;
    let client = lab.host("fcc00")?;
    let (mut daemons, _listener) = Daemons::carrying(&lab, PORT)?;
    let before = objects(client)?;
    let capture = client.capture("tcp port 8181")?;
    let (between, agent) = Between::start(client, &mut daemons)?;
    let taken = between.taken()?;
    kill(agent)?;
    // The old one comes to hear of both at once.
    daemons.agent(client)?.signal(Signal::SIGSTOP)?;
    sendmsg::<()>(between.old.as_raw_fd(), &[IoSlice::new(&taken)], &[], MsgFlags::empty(), None)?;
    between.go(client)?;
    daemons.agent(client)?.signal(Signal::SIGCONT)?;
    ensure_unharmed(&lab, &mut daemons, &before)?;
    ensure!(capture.stop()?.packets().is_empty(), "connections went in clear");
    Ok(())
}
