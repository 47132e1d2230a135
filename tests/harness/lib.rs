//! The lab: hosts as network namespaces on one machine.
//!
//! A [`Lab`] is a set of named [`Host`]s on one switch. Each has a network namespace, a cgroup, an `/etc/hosts` that
//! knows all the others, and its own directories for Murmesh. Everything a lab made is removed when it is dropped;
//! what a killed process left behind is removed when the next lab is made. Labs don't see each other, so tests
//! run side by side although all of them use the same names and addresses.
//!
//! Making a lab needs root, cgroup v2 (also beside v1 controllers), and the programs that `cargo xtask setup`
//! installs.

mod capture;
mod cgroup;
mod distance;
#[cfg(test)]
mod edge_cases;
mod endpoints;
mod entry;
mod etcd;
mod host;
mod interrupt;
mod lab;
mod machine;
mod mesh;
mod murmesh;
mod namespace;
mod patience;
mod process;
mod record;
mod steady;
mod sweep;
mod switch;
mod topology;
mod trace;

pub use capture::Capture;
pub use distance::Distance;
pub use endpoints::{add_endpoints, add_rules};
pub use etcd::share_seal_key;
pub use host::Host;
pub use interrupt::{on_interrupt, wait_if_interrupted};
pub use lab::Lab;
pub use machine::Machine;
pub use mesh::{DEADLINE, Mesh, services, status, unavailable, wait_for_availability, wait_for_endpoint};
pub use murmesh::{TUNNEL_PORT, murmesh_binary};
pub use patience::{TIME_FACTOR, deadline, patience};
pub use process::Process;
pub use record::existing_labs;
pub use steady::{Steady, SteadyOutcome};
pub use sweep::{remove, sweep};
pub use topology::Topology;
pub use trace::{Packet, Stream, TlsRecord, Trace, contains, tls_records};

/// Whether this process may make labs.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
