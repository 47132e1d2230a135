//! The side of the agent that takes over.

use std::{os::unix::net::UnixStream, path::Path, time::Duration};

use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    Answer, Hello, Listeners, Older, OlderAgents, PROTOCOL, Request, TAKEOVER_SOCKET, TakeoverError, Terms,
    wire::Connection,
};
use crate::{agent::health::Failing, local::AGENT_SOCKET};

/// How long the running agent may take to answer. It may be busy with another one that wants to take over. One that has
/// offered is waited for as long as it lives: two that both think that they serve would take each other's hooks off.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What a running agent has offered.
pub struct Inheritance {
    /// Copies of its listening sockets.
    pub listeners: Listeners,
    /// The revision of the catalog that it goes by.
    pub revision: u64,
    /// Services of this host whose checks fail.
    pub failing: Failing,
    /// What is to be said when they are used.
    pub claim: Claim,
}

/// Asks the agent that runs with `run_dir` for what it has. `None` if none runs.
///
/// # Errors
/// It refuses, or does not know how to be taken over.
pub async fn ask(run_dir: &Path, terms: &Terms) -> Result<Option<Inheritance>, TakeoverError> {
    if UnixStream::connect(run_dir.join(AGENT_SOCKET)).is_err() {
        info!("no agent runs here that could be taken over");
        return Ok(None);
    }
    let path = run_dir.join(TAKEOVER_SOCKET);
    let connection = Connection::open(&path).map_err(|_| TakeoverError::NotOffered(path))?;
    match timeout(TIMEOUT, receive(connection, terms)).await.unwrap_or(Err(TakeoverError::Busy)) {
        Ok(inheritance) => Ok(Some(inheritance)),
        Err(TakeoverError::Ended) => {
            warn!("the agent that was to be taken over has ended");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn receive(connection: Connection, terms: &Terms) -> Result<Inheritance, TakeoverError> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    connection.send(&Hello { protocol: PROTOCOL, version, terms: terms.clone() }, &[]).await?;
    let (answer, descriptors) = connection.receive().await?.ok_or(TakeoverError::Ended)?;
    // The kernel would tell who made the socket, which may be an agent before it.
    let (pid, version, revision, failing, workers) = match answer {
        Answer::Offer { pid, version, revision, failing, workers } => {
            (pid, version, revision, failing, workers)
        }
        Answer::Refused(reason) => return Err(TakeoverError::Refused(reason)),
        other => return Err(TakeoverError::Protocol(format!("{other:?} instead of an offer"))),
    };
    let failing = failing.into_iter().filter_map(|(name, why)| Some((name.parse().ok()?, why))).collect();
    let listeners = Listeners::receive(&connection, descriptors, workers).await?;
    info!(pid, version, "taking over from a running agent");
    let claim = Claim { connection, older: Older { pid, version, streams: 0 } };
    Ok(Inheritance { listeners, revision, failing, claim })
}

/// The running agent, which waits for this one to serve.
pub struct Claim {
    connection: Connection,
    older: Older,
}

impl Claim {
    /// Whether the running agent goes on by itself. It says nothing else before this one serves.
    pub fn is_refused(&self) -> bool {
        self.connection.has_message()
    }

    /// Says that this agent serves: from now on the other one only carries what is open. `agents` gets to know it, and
    /// those that are older still. An agent that was killed meanwhile leaves everything to this one, too.
    ///
    /// # Errors
    /// It has given up waiting, and goes on.
    pub async fn take(self, agents: &OlderAgents) -> Result<(), TakeoverError> {
        let pid = self.older.pid;
        let sent = self.connection.send(&Request::Taken, &[]).await;
        let answer = loop {
            match timeout(TIMEOUT, self.connection.receive()).await {
                Ok(answer) => break answer,
                Err(_elapsed) => {
                    warn!(pid, "the agent that is taken over does not answer, nor has it ended: waiting")
                }
            }
        };
        match answer {
            Ok(Some((Answer::Yours(older), connections))) => {
                for (agent, connection) in older.into_iter().zip(connections) {
                    agents.follow(agent, Connection::new(connection.into())?);
                }
                agents.follow(self.older, self.connection);
                info!(pid, "has taken over");
                Ok(())
            }
            Ok(Some((Answer::Refused(reason), _))) => Err(TakeoverError::Refused(reason)),
            answer => {
                let answer = answer.map(|answer| answer.map(|(answer, _)| answer));
                warn!(pid, ?sent, ?answer, "has taken over from an agent that ended meanwhile");
                Ok(())
            }
        }
    }
}
