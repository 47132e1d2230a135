//! One thing that happened to a connection or a datagram.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use crate::{
    identity::{NodeName, Subject},
    policy::{Protocol, RuleId},
};

/// What became of it, as filters name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was made through the mesh, or would only be refused by a rule that is not in force.
    Allowed,
    /// The rules, or a strict service, refused it.
    Denied,
    /// It was let in, in clear.
    Plaintext,
    /// It was allowed, and failed.
    Error,
}

/// Who called. It may be gone by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Thread group.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What it was called, if it was there to be asked. A process chooses its name: no identity.
    pub name: Option<String>,
}

impl Process {
    /// What the process `pid` is called now.
    pub fn name_of(pid: u32) -> Option<String> {
        let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
        Some(String::from_utf8_lossy(&name).trim_end().to_owned())
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Bytes from the application on this host.
    pub sent: u64,
    /// Bytes to it.
    pub received: u64,
    /// From open to close.
    pub duration: Duration,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub time: SystemTime,
    /// What became of it.
    pub outcome: Outcome,
    /// The process on this host that called.
    pub process: Option<Process>,
    /// Whom the caller is known as.
    pub caller: Option<Subject>,
    /// The caller's address, where it is known.
    pub source: Option<SocketAddr>,
    /// The host of the mesh that has the destination.
    pub node: Option<NodeName>,
    /// Where to.
    pub destination: SocketAddr,
    /// By which protocol; `None` for one that has no name here.
    pub protocol: Option<Protocol>,
    /// The rule that decided, or would have.
    pub rule: Option<RuleId>,
    /// What happened, in words.
    pub what: String,
    /// Set when a stream has ended.
    pub end: Option<End>,
}

#[cfg(test)]
impl Event {
    /// A refusal by rule 1.
    pub fn example() -> Self {
        Self {
            time: SystemTime::UNIX_EPOCH,
            outcome: Outcome::Denied,
            process: Some(Process { pid: 7, uid: 0, name: Some("nc".to_owned()) }),
            caller: Some(Subject::Workload(
                "fcc00".parse().expect("a name"),
                "user-root".parse().expect("a name"),
            )),
            source: None,
            node: Some("fcs00".parse().expect("a name")),
            destination: ([10, 0, 0, 1], 8181).into(),
            protocol: Some(Protocol::Tcp),
            rule: RuleId::new(1),
            what: "refused".to_owned(),
            end: None,
        }
    }
}
