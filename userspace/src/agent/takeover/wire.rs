//! Messages between two agents on one host, with descriptors: JSON on a Unix socket that keeps messages apart.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net as unix,
    },
    path::Path,
};

use nix::{
    cmsg_space,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        bind, connect, listen, recv, recvmsg, sendmsg, socket,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::Interest, net::UnixStream};

use super::TakeoverError;

/// Descriptors that one message may bring: what Linux allows (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;

/// The longest message.
const MAX_BYTES: usize = 128 * 1024;

/// One end of a conversation.
pub struct Connection(UnixStream);

impl Connection {
    /// Over an accepted or connected socket.
    ///
    /// # Errors
    /// The socket cannot be polled. Needs a tokio runtime.
    pub fn new(stream: unix::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(stream)?))
    }

    /// Connects to the agent that listens at `path`.
    ///
    /// # Errors
    /// Nobody does.
    pub fn open(path: &Path) -> io::Result<Self> {
        let descriptor = seqpacket()?;
        connect(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(descriptor.into())
    }

    /// The process at the other end, and its user.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn peer(&self) -> io::Result<(i32, u32)> {
        let credentials = self.0.peer_cred()?;
        Ok((credentials.pid().unwrap_or_default(), credentials.uid()))
    }

    /// Whether there is a message that was not received.
    pub fn has_message(&self) -> bool {
        let peeked = recv(self.0.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        peeked.is_ok_and(|length| length > 0)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other end is closed, or reads nothing.
    pub async fn send(&self, message: &impl Serialize, descriptors: &[RawFd]) -> Result<(), TakeoverError> {
        let bytes =
            serde_json::to_vec(message).map_err(|error| TakeoverError::Protocol(error.to_string()))?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights: &[_] = if descriptors.is_empty() { &[] } else { &rights };
        let send = || {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let sent = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], rights, flags, None);
            sent.map_err(io::Error::from)
        };
        self.0.async_io(Interest::WRITABLE, send).await?;
        Ok(())
    }

    /// The next message, with what descriptors came with it; `None` at the end.
    ///
    /// # Errors
    /// The socket fails, or something else than such a message came.
    pub async fn receive<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, TakeoverError> {
        let (bytes, descriptors) = self.0.async_io(Interest::READABLE, || self.read()).await?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let message =
            serde_json::from_slice(&bytes).map_err(|error| TakeoverError::Protocol(error.to_string()))?;
        Ok(Some((message, descriptors)))
    }

    fn read(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut bytes = vec![0; MAX_BYTES];
        let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let received = recvmsg::<()>(self.0.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = message {
                // SAFETY: descriptors that the kernel has just made for us.
                descriptors.extend(rights.into_iter().map(|right| unsafe { OwnedFd::from_raw_fd(right) }));
            }
        }
        let (length, is_cut) =
            (received.bytes, received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
        if is_cut {
            return Err(io::Error::other("a message is too long, or no descriptor is left"));
        }
        bytes.truncate(length);
        Ok((bytes, descriptors))
    }
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Self {
        Self(stream)
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A listener at `path`, which is not there yet.
///
/// # Errors
/// It cannot be made.
pub fn listener(path: &Path) -> io::Result<unix::UnixListener> {
    let descriptor = seqpacket()?;
    bind(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&descriptor, Backlog::new(16)?)?;
    Ok(descriptor.into())
}

fn seqpacket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}
