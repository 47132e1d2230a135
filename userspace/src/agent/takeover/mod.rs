//! A new agent process takes over from a running one, and no connection notices.
//!
//! The two talk over a socket in the run directory, in this order:
//!
//! 1. the new one says hello, with the version of this protocol and what both must agree on;
//! 2. the old one checks who asks, and offers: copies of its listening sockets, and what only it knows;
//! 3. the new one puts its programs in the place of the old one's, hook by hook, and serves;
//! 4. it says that it has taken over: this is the point of no return;
//! 5. the old one accepts and publishes no more, carries what is open until it ends, and tells how much that is.
//!
//! Until the fourth step the old one does all that it did before, beside the new one, and if that ends it puts its own
//! programs back. Both listen on the same sockets meanwhile, so nothing is ever refused. Whichever process is killed,
//! the other goes on, and the hooks stay in force.

mod entrance;
mod listeners;
mod older;
mod predecessor;
mod successor;
mod upgrade;
mod wire;

use std::{collections::BTreeMap, io, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use entrance::Entrance;
pub use listeners::{Listeners, takeover_listener};
pub use older::OlderAgents;
pub use predecessor::{Predecessor, Taken};
pub use successor::{Claim, Inheritance, ask};
pub use upgrade::Upgrade;

use super::AgentOptions;
use crate::cgroup::{self, CgroupError};

/// Version of the protocol. A first message is understood by all.
const PROTOCOL: u32 = 1;

/// The socket in the run directory.
pub const TAKEOVER_SOCKET: &str = "agent.takeover.sock";

/// Why a running agent cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// One answers that does not know how.
    #[error("an agent runs that cannot be taken over: nothing answers on {0}; stop it, and start this one")]
    NotOffered(PathBuf),
    /// It says no, for this reason.
    #[error("the running agent is not taken over, it goes on: {0}")]
    Refused(String),
    /// It has closed the connection.
    #[error("it has ended")]
    Ended,
    /// It does not answer in time.
    #[error("the running agent does not answer: is another one taking over? Try again in a minute")]
    Busy,
    /// What it says is not understood.
    #[error("the other agent does not keep to the protocol: {0}")]
    Protocol(String),
    /// The socket fails.
    #[error("the take-over socket fails: {0}")]
    Socket(#[from] io::Error),
}

/// What both agents must agree on: the sockets and the hooks of the one are those of the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms(BTreeMap<String, String>);

/// The name of one of them.
const OWN_CGROUP: &str = "cgroup of the process";

/// What the new agent says.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// It serves.
    Taken,
    /// Streams are not to go on for long.
    Stop,
}

/// What the old agent says.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// It goes on.
    Refused(String),
    /// With the sockets of the run directory; the listeners of so many workers follow.
    Offer { pid: i32, version: String, revision: u64, failing: BTreeMap<String, String>, workers: usize },
    /// With one worker's listeners, the one for tunnels first.
    Worker,
    /// It has given up everything but its streams; with the connections to agents that are older still.
    Yours(Vec<Older>),
    /// What it still carries.
    Draining(u64),
}

/// An agent that carries what was open when it was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Older {
    /// Its process.
    pub pid: i32,
    /// Its version.
    pub version: String,
    /// Streams that it still carries.
    pub streams: u64,
}

/// The first message. This much of it never changes.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    version: String,
    terms: Terms,
}

impl Terms {
    /// Those of an agent with these options, in this process.
    ///
    /// # Errors
    /// The cgroup or the network namespace of this process cannot be told.
    pub fn new(options: &AgentOptions) -> anyhow::Result<Self> {
        let mut terms = BTreeMap::from([
            ("--data-dir".to_owned(), options.data_dir.display().to_string()),
            ("--tunnel-port".to_owned(), options.tunnel_port.to_string()),
        ]);
        if let super::Capture::Kernel(kernel) = &options.capture {
            terms.extend([
                ("--cgroup".to_owned(), kernel.cgroup.display().to_string()),
                ("--bpf-dir".to_owned(), kernel.bpf_dir.display().to_string()),
                ("--mark".to_owned(), kernel.mark.to_string()),
                ("--outbound-port".to_owned(), kernel.outbound_port.to_string()),
                ("network namespace".to_owned(), cgroup::netns_cookie()?.to_string()),
                // By which the hooks know the agent's own sockets.
                (OWN_CGROUP.to_owned(), own_cgroup()?),
            ]);
        }
        Ok(Self(terms))
    }

    /// Those of now: an agent may have been moved to another cgroup since its start.
    fn at_present(&self) -> Result<Self, CgroupError> {
        let mut terms = self.0.clone();
        if let Some(cgroup) = terms.get_mut(OWN_CGROUP) {
            *cgroup = own_cgroup()?;
        }
        Ok(Self(terms))
    }

    /// The first in which `other` differs, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        let names = self.0.keys().chain(other.0.keys());
        names.into_iter().find_map(|name| {
            let (own, theirs) = (self.0.get(name), other.0.get(name));
            let shown = |value: Option<&String>| value.map_or("not set".to_owned(), Clone::clone);
            (own != theirs).then(|| {
                format!(
                    "its {name} is {}, and that of the new one {}; give both the same",
                    shown(own),
                    shown(theirs)
                )
            })
        })
    }
}

fn own_cgroup() -> Result<String, CgroupError> {
    Ok(cgroup::own(&cgroup::root()?)?.display().to_string())
}
