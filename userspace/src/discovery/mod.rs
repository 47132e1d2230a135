//! What this host serves, and by which addresses: the reports of the kernel half are completed by dumps,
//! which also find what listened before the agent started.

mod addresses;
mod connections;
mod listeners;
mod sock_diag;

use std::io;

pub use addresses::{host_addresses, link_local_addresses};
pub use connections::{Connection, Resets, connections, reset};
pub use listeners::{ExemptPorts, Listeners};
pub use sock_diag::{ListeningSocket, listening_sockets};

/// Why the host could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// A system call on the socket to the kernel's socket monitor.
    #[error("cannot {action} the kernel's socket monitor (NETLINK_SOCK_DIAG): {error}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The kernel cannot list TCP sockets.
    #[error("the kernel cannot list TCP sockets; load its module with `modprobe tcp_diag`")]
    Unsupported,
    /// The kernel cannot end connections of others.
    #[error("this kernel cannot reset connections (CONFIG_INET_DIAG_DESTROY is not set)")]
    NoReset,
    /// The kernel refused the dump, or to reset a connection.
    #[error("the kernel refused to list or reset TCP sockets: {0}")]
    Refused(io::Error),
    /// An answer that is not what `linux/inet_diag.h` describes.
    #[error("cannot read the kernel's list of TCP sockets: {0}")]
    Malformed(String),
    /// `getifaddrs` failed.
    #[error("cannot list the host's addresses: {0}")]
    Addresses(io::Error),
}
