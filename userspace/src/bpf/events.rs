//! The kernel half's messages: listeners that open and close, and aya-log lines.

use std::io;

use aya::maps::RingBuf;
use aya_log::EbpfLogger;
use murmesh_common::{ListenerChange, ListenerEvent};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::JoinHandle,
};
use tracing::{error, warn};

use super::{BpfError, KernelHalf};

/// Listener events waiting to be handled. A full queue loses nothing: the periodic dump repairs it.
const QUEUE: usize = 1024;

/// Reads listener events until the receiver is dropped.
///
/// # Errors
/// The ring buffer is taken already or cannot be polled.
pub fn listener_events(half: &mut KernelHalf) -> Result<mpsc::Receiver<(ListenerChange, u64)>, BpfError> {
    let ring = RingBuf::try_from(half.take("EVENTS")?).map_err(BpfError::map("EVENTS"))?;
    // SAFETY: the ring buffer owns its descriptor and keeps it until it is dropped, after the registration.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    let mut ring = ring.map_err(|error| BpfError::system("ring buffer")(error.into()))?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let Ok(mut guard) = ring.readable_mut().await else { return };
            while let Some(item) = guard.get_inner_mut().next() {
                match ListenerEvent::parse(&item) {
                    Some(event) => match sender.try_send(event) {
                        Err(mpsc::error::TrySendError::Closed(_)) => return,
                        Err(mpsc::error::TrySendError::Full(_)) | Ok(()) => {}
                    },
                    None => warn!("the kernel half sent an event of {} bytes that is none", item.len()),
                }
            }
            guard.clear_ready();
        }
    });
    Ok(receiver)
}

/// Passes the programs' own log lines on to the agent's log, until aborted.
///
/// # Errors
/// The buffer cannot be polled.
pub fn forward_log(half: &mut KernelHalf) -> Result<JoinHandle<()>, BpfError> {
    let failed = BpfError::system("log of the kernel half");
    let logger =
        EbpfLogger::init(half.ebpf_mut()).map_err(|error| failed(io::Error::other(error.to_string())))?;
    // SAFETY: the logger owns its descriptor and keeps it until it is dropped, after the registration.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.map_err(|error| failed(error.into()))?;
    Ok(tokio::spawn(async move {
        loop {
            match logger.readable_mut().await {
                Ok(mut guard) => {
                    guard.get_inner_mut().flush();
                    guard.clear_ready();
                }
                Err(error) => return error!("the kernel half's log cannot be read any more: {error}"),
            }
        }
    }))
}
