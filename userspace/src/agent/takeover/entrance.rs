//! How an agent comes to its sockets: it makes them, or has them from the agent that it takes over.

use std::{os::unix::net::UnixListener, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{sync::watch, time::timeout};
use tracing::warn;

use super::{Claim, Inheritance, Listeners, Predecessor, TAKEOVER_SOCKET, Terms, ask, takeover_listener};
use crate::{
    agent::{AgentOptions, Capture, Interception, health::Failing},
    catalog::Catalog,
    control::Control,
    local::{LocalSocket, SocketFile},
    proxy::{BoundWorkers, Listening, WorkerListeners, Workers},
};

/// How long the catalog may take to be as new as that of the agent that is taken over. No server may answer, and what is
/// on disk is hardly older.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(5);

/// What an agent begins with.
pub struct Entrance {
    /// For the command line.
    pub socket: LocalSocket,
    /// For the next agent; a sidecar has none.
    pub takeover: Option<UnixListener>,
    /// To be said when this agent serves in the place of another one.
    pub claim: Option<Claim>,
    /// What fails as far as that one knows.
    pub failing: Failing,
    terms: Terms,
    revision: u64,
    workers: Option<Vec<WorkerListeners>>,
}

impl Entrance {
    /// From the agent that runs, if it is to be taken over and there is one; else new.
    ///
    /// # Errors
    /// A socket cannot be made, or the running agent cannot be taken over.
    pub async fn open(options: &AgentOptions, terms: Terms) -> anyhow::Result<Self> {
        if options.take_over
            && let Some(inheritance) = ask(&options.run_dir, &terms).await?
        {
            return Self::inherit(options, terms, inheritance);
        }
        let socket = LocalSocket::bind(&options.run_dir, options.capture.socket_name())?;
        let takeover = match options.capture {
            Capture::Kernel(_) => {
                let path = options.run_dir.join(TAKEOVER_SOCKET);
                Some(takeover_listener(&path).with_context(|| path.display().to_string())?)
            }
            Capture::Sidecar(_) => None,
        };
        let failing = Failing::default();
        Ok(Self { socket, takeover, claim: None, failing, terms, revision: 0, workers: None })
    }

    fn inherit(options: &AgentOptions, terms: Terms, inheritance: Inheritance) -> anyhow::Result<Self> {
        let Inheritance { listeners, revision, failing, claim } = inheritance;
        let Listeners { local, takeover, workers } = listeners;
        Ok(Self {
            socket: LocalSocket::inherited(local, &options.run_dir, options.capture.socket_name())?,
            takeover: Some(takeover),
            claim: Some(claim),
            failing,
            terms,
            revision,
            workers: Some(workers),
        })
    }

    /// The file of the socket for the next agent, which goes when this one stops.
    pub fn takeover_file(&self, options: &AgentOptions) -> Option<SocketFile> {
        let path = options.run_dir.join(TAKEOVER_SOCKET);
        self.takeover.as_ref().map(|_| SocketFile::new(path, self.socket.ownership()))
    }

    /// The listeners of the data path.
    ///
    /// # Errors
    /// A port is in use.
    pub fn workers(&mut self, options: &AgentOptions) -> anyhow::Result<BoundWorkers> {
        match self.workers.take() {
            Some(listeners) => Ok(BoundWorkers::inherited(listeners)),
            None => Workers::bind(&options.capture.listen(options.tunnel_port), options.capture.mark()),
        }
    }

    /// What lets the next agent take over from this one, and what its workers listen on; a sidecar has nothing to hand
    /// over.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn predecessor(
        &self,
        workers: Option<Arc<Listening>>,
        interception: Option<&Interception>,
        control: &Control,
        failing: &watch::Sender<Failing>,
    ) -> anyhow::Result<Option<Predecessor>> {
        let (Some(takeover), Some(workers)) = (&self.takeover, workers) else { return Ok(None) };
        Ok(Some(Predecessor {
            terms: self.terms.clone(),
            local: self.socket.copy()?,
            takeover: takeover.try_clone()?,
            workers,
            kernel: interception
                .map(|interception| anyhow::Ok((interception.programs()?, interception.half())))
                .transpose()?,
            catalog: control.catalog.clone(),
            failing: failing.subscribe(),
        }))
    }

    /// Waits until `catalog` is as new as that of the agent that is taken over.
    pub async fn catch_up(&self, mut catalog: watch::Receiver<Arc<Catalog>>) {
        let caught_up = catalog.wait_for(|catalog| catalog.revision >= self.revision);
        if timeout(CATALOG_TIMEOUT, caught_up).await.is_err() {
            warn!(wanted = self.revision, "no server tells the catalog, going on with what is on disk");
        }
    }
}
