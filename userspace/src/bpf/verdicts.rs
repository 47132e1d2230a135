//! What the kernel half tells of its verdicts.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use aya::maps::RingBuf;
use murmesh_common::{NO_ROOM, SocketAddress, UNKNOWN_SOURCE, VerdictEvent, VerdictKind};
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};
use tracing::warn;

use super::{BpfError, KernelHalf};
use crate::{
    policy::{Protocol, RuleId},
    workload::Credentials,
};

/// Why the kernel half refused something, or would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A rule.
    Rule(RuleId),
    /// The default of the policy.
    Default,
    /// The agent had not seen the caller's cgroup yet, and the verdict depends on it.
    UnknownSource,
    /// The verdicts about the destination did not fit into the maps.
    NoRoom,
}

/// One refused, or merely reported, connection or datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelVerdict {
    /// What became of it.
    pub kind: VerdictKind,
    /// When.
    pub time: SystemTime,
    /// Why.
    pub reason: Reason,
    /// Process of the caller; 0, as all that is said of the caller, if a connection comes from another host.
    pub pid: u32,
    /// To whom it belongs.
    pub credentials: Credentials,
    /// Name of the calling thread.
    pub command: String,
    /// Where to.
    pub destination: SocketAddr,
    /// Where from, if from another host.
    pub origin: Option<SocketAddr>,
    /// By which protocol; `None` for one that is new to us.
    pub protocol: Option<Protocol>,
}

impl KernelVerdict {
    /// From a record, read `now`, at which the system has been up for `uptime`.
    fn new(kind: VerdictKind, event: &VerdictEvent, now: SystemTime, uptime: Duration) -> Self {
        let age = uptime.saturating_sub(Duration::from_nanos(event.time));
        Self {
            kind,
            time: now.checked_sub(age).unwrap_or(now),
            reason: match event.rule {
                UNKNOWN_SOURCE => Reason::UnknownSource,
                NO_ROOM => Reason::NoRoom,
                rule => RuleId::new(rule).map_or(Reason::Default, Reason::Rule),
            },
            pid: event.pid,
            credentials: Credentials { cgroup: event.cgroup, uid: event.uid, gid: Some(event.gid) },
            command: event.command().to_owned(),
            destination: event.destination.into(),
            origin: (event.origin != SocketAddress::default()).then(|| event.origin.into()),
            protocol: match event.protocol {
                6 => Some(Protocol::Tcp),
                17 => Some(Protocol::Udp),
                _ => None,
            },
        }
    }
}

/// Reads what the kernel half tells of its verdicts until the receiver is dropped. While the queue of the receiver is
/// full the ring buffer fills, and then the kernel half counts what it cannot tell (`Counter::VerdictEventLost`).
///
/// # Errors
/// The ring buffer is taken already or cannot be polled.
pub fn verdict_events(
    half: &mut KernelHalf,
    queue: usize,
) -> Result<mpsc::Receiver<KernelVerdict>, BpfError> {
    const NAME: &str = "VERDICT_EVENTS";
    let ring = RingBuf::try_from(half.take(NAME)?).map_err(BpfError::map(NAME))?;
    // SAFETY: the ring buffer owns its descriptor and keeps it until it is dropped, after the registration.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    let mut ring = ring.map_err(|error| BpfError::system("ring buffer")(error.into()))?;
    let (sender, receiver) = mpsc::channel(queue);
    tokio::spawn(async move {
        loop {
            let Ok(permit) = sender.reserve().await else { return };
            let Ok(mut guard) = ring.readable_mut().await else { return };
            let event = guard.get_inner_mut().next().as_deref().map(VerdictEvent::parse);
            match event {
                Some(Some((kind, event))) => {
                    permit.send(KernelVerdict::new(kind, &event, SystemTime::now(), uptime()));
                }
                Some(None) => warn!("the kernel half sent a verdict that is none"),
                None => guard.clear_ready(),
            }
        }
    });
    Ok(receiver)
}

/// Since the system was started, time asleep included.
pub(super) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_told_in_the_words_of_the_agent() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let destination = "10.0.0.1:80".parse::<SocketAddr>().expect("literal");
        let event = VerdictEvent {
            time: 5_000_000_000,
            rule: 3,
            destination: destination.into(),
            protocol: 17,
            ..VerdictEvent::default()
        };
        let told = KernelVerdict::new(VerdictKind::Denied, &event, now, Duration::from_secs(7));
        assert_eq!(told.time, now - Duration::from_secs(2));
        assert_eq!((told.destination, told.protocol), (destination, Some(Protocol::Udp)));
        assert_eq!(told.reason, Reason::Rule(RuleId::new(3).expect("not 0")));
        let reason = |rule| {
            KernelVerdict::new(VerdictKind::Denied, &VerdictEvent { rule, ..event }, now, Duration::ZERO)
                .reason
        };
        assert_eq!(
            [0, UNKNOWN_SOURCE, NO_ROOM].map(reason),
            [Reason::Default, Reason::UnknownSource, Reason::NoRoom]
        );
    }
}
