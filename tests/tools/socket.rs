//! Making connections, and what they are called.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// How a connection is made.
#[derive(Clone, Debug, Default)]
pub struct Dial {
    /// Interface to bind first (`SO_BINDTODEVICE`).
    pub interface: Option<String>,
    /// Address to bind first.
    pub from: Option<SocketAddr>,
    /// Connect without blocking, then wait until it is writable.
    pub nonblocking: bool,
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// Which way leads to the connection.
    pub by: Way,
}

/// Ways to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// connect(2).
    #[default]
    Connect,
    /// sendto(2) with `MSG_FASTOPEN`, which sends [`FAST_OPEN`] with the first packet if it may.
    FastOpen,
    /// connect(2) of an MPTCP socket.
    Mptcp,
    /// An operation of an io_uring(7).
    IoUring,
}

/// What is sent together with the connection.
const FAST_OPEN: &[u8] = b"fast open\n";

impl Dial {
    /// Connects. The socket's family is that of `destination` as written: `::ffff:10.0.0.1` makes an IPv6 socket.
    pub fn connect(self, destination: SocketAddr) -> io::Result<TcpStream> {
        let protocol = (self.by == Way::Mptcp).then_some(Protocol::MPTCP);
        let socket = Socket::new(Domain::for_address(destination), Type::STREAM, protocol)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        if let Some(from) = self.from {
            socket.bind(&from.into())?;
        }
        match self.by {
            Way::FastOpen => {
                let sent = socket.send_to_with_flags(FAST_OPEN, &destination.into(), libc::MSG_FASTOPEN)?;
                assert_eq!(sent, FAST_OPEN.len(), "a few bytes are sent at once");
            }
            Way::IoUring => connect_by_ring(&socket, destination)?,
            Way::Connect | Way::Mptcp if self.nonblocking => connect_without_blocking(&socket, destination)?,
            Way::Connect | Way::Mptcp => socket.connect(&destination.into())?,
        }
        Ok(socket.into())
    }
}

fn connect_by_ring(socket: &Socket, destination: SocketAddr) -> io::Result<()> {
    let mut ring = IoUring::new(1)?;
    let address = SockAddr::from(destination);
    let connect = opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len());
    // SAFETY: the socket and the address outlive the operation, which has completed before this returns.
    unsafe { ring.submission().push(&connect.build()) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let completed = ring.completion().next().ok_or_else(|| io::Error::other("nothing completed"))?;
    if completed.result() < 0 { Err(io::Error::from_raw_os_error(-completed.result())) } else { Ok(()) }
}

/// connect(2), EINPROGRESS: poll for writability, then the error is in `SO_ERROR`.
fn connect_without_blocking(socket: &Socket, destination: SocketAddr) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&destination.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        immediate => return immediate.and_then(|()| Err(io::Error::other("it did not say EINPROGRESS"))),
    }
    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)
}

/// The addresses of a connection, by each call that tells them.
#[derive(Debug, Serialize)]
pub struct Names {
    /// What `accept` returned.
    pub accepted: Option<SocketAddr>,
    /// getpeername(2).
    pub peer: SocketAddr,
    /// getsockname(2).
    pub local: SocketAddr,
}

impl Names {
    /// Asks for the addresses of `stream`.
    pub fn of(stream: &TcpStream, accepted: Option<SocketAddr>) -> Result<Self> {
        let peer = stream.peer_addr().context("getpeername")?;
        Ok(Self { accepted, peer, local: stream.local_addr().context("getsockname")? })
    }
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    Ok(())
}

/// Waits without reading or writing until both directions are closed, and returns the error if there is one.
///
/// A reset is ECONNRESET, and EPIPE after the end of the other direction (`tcp_reset` in the kernel).
pub fn wait_until_broken(stream: &TcpStream) -> io::Result<()> {
    poll(&mut [PollFd::new(stream.as_fd(), PollFlags::empty())], PollTimeout::NONE)?;
    stream.take_error()?.map_or(Ok(()), Err)
}

/// `ECONNRESET` rather than a sentence.
pub fn errno(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |code| format!("{:?}", Errno::from_raw(code)))
}

/// Checks that an outcome is the error with this name.
pub fn ensure_fails<T>(outcome: io::Result<T>, expected: &str) -> Result<()> {
    let found = outcome.map_or_else(|error| errno(&error), |_| "success".to_owned());
    ensure!(found == expected, "expected {expected}, got {found}");
    Ok(())
}
