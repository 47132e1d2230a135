//! Where an accepted connection was meant to go.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use murmesh_common::ConnectionRecord;
use tokio::net::TcpStream;
use tracing::{error, warn};

use super::{Shared, access::Caller, traffic::Counter};
use crate::{
    bpf::{BpfError, Records},
    limited_log::LimitedLog,
    workload::Credentials,
};

/// Anybody on this host can connect to the outbound listener.
static NO_DESTINATION: LimitedLog = LimitedLog::new();

/// What tells the original destination of connections to the outbound listener.
pub enum Origin {
    /// The record that the kernel half left on the accepted socket.
    Kernel(Records),
    /// A sidecar's one upstream; `None` until the catalog knows it.
    Upstream(Arc<ArcSwapOption<SocketAddr>>),
}

/// A connection's two ends as its client means them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Original {
    /// The address that the client dialled.
    pub destination: SocketAddr,
    /// The address that the client has, or would have on a plain connection; `None` where only the route tells.
    pub client: Option<SocketAddr>,
    /// Who connected, where the kernel tells.
    pub caller: Option<Caller>,
}

impl Origin {
    /// The ends of `accepted`, whose peer is `peer`. `None`, and counted, when there is no record: the caller
    /// resets the connection, because any destination would be a guess.
    pub fn of(&self, accepted: &TcpStream, peer: SocketAddr, shared: &Shared) -> Option<Original> {
        match self {
            Self::Upstream(upstream) => match &*upstream.load() {
                Some(upstream) => Some(Original { destination: **upstream, client: None, caller: None }),
                None => {
                    if let Some(withheld) = NO_DESTINATION.permit() {
                        warn!(%peer, withheld, "reset: the catalog does not have the sidecar's upstream yet");
                    }
                    None
                }
            },
            Self::Kernel(records) => match records.of(accepted) {
                Ok(Some(record)) => {
                    let source = visible_source(peer.ip(), SocketAddr::from(record.source).ip());
                    Some(Original {
                        destination: record.peer.into(),
                        client: source.map(|source| SocketAddr::new(source, peer.port())),
                        caller: Some(Caller { pid: record.pid, credentials: credentials(&record) }),
                    })
                }
                Ok(None) => {
                    shared.traffic.add(Counter::MissingRecords, 1);
                    if let Some(withheld) = NO_DESTINATION.permit() {
                        warn!(%peer, withheld, "reset: no original destination is recorded for this connection");
                    }
                    None
                }
                Err(error) => {
                    shared.traffic.add(Counter::MissingRecords, 1);
                    if let Some(withheld) = NO_DESTINATION.permit() {
                        error!(%peer, withheld, "reset: {error}");
                    }
                    None
                }
            },
        }
    }

    /// Makes the service that `socket` is about to dial see `client`. A sidecar cannot.
    ///
    /// # Errors
    /// The kernel has no memory for the record.
    pub fn announce(&self, socket: &tokio::net::TcpSocket, client: SocketAddr) -> Result<(), BpfError> {
        match self {
            Self::Kernel(records) => records.announce(socket, client),
            Self::Upstream(_) => Ok(()),
        }
    }
}

fn credentials(record: &ConnectionRecord) -> Credentials {
    Credentials { cgroup: record.cgroup, uid: record.uid, gid: Some(record.gid) }
}

/// A client that bound its socket keeps that address; any other arrives from loopback, where it was redirected.
/// `None` if no route told its address then.
fn visible_source(peer: IpAddr, source: IpAddr) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    let visible = if peer.is_loopback() { source } else { peer };
    (!visible.is_unspecified()).then_some(visible)
}
