//! The side of the agent that is taken over.

use std::{
    io,
    os::unix::net,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::unistd::geteuid;
use tokio::{
    net::UnixListener,
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{error, info, warn};

use super::{
    Answer, Hello, Listeners, OlderAgents, PROTOCOL, Request, TakeoverError, Terms, wire::Connection,
};
use crate::{
    agent::health::Failing,
    bpf::{KernelHalf, Programs},
    catalog::Catalog,
    proxy::Listening,
};

/// How long the new agent may take to load its programs and to be ready. It goes on from what is on disk, so nothing of
/// that waits for a server.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long one message may take.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the new agent is told what is still carried.
const TELL_INTERVAL: Duration = Duration::from_millis(500);

/// Lets another agent take over.
pub struct Predecessor {
    /// What that must agree with.
    pub terms: Terms,
    /// What it gets: where the command line is answered,
    pub local: net::UnixListener,
    /// where it may be taken over itself,
    pub takeover: net::UnixListener,
    /// and what the workers listen on.
    pub workers: Arc<Listening>,
    /// Our programs, to be put back if it ends too early, and what would otherwise do so at once.
    pub kernel: Option<(Programs, Arc<Mutex<KernelHalf>>)>,
    /// What it must know before it serves.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// Services of this host whose checks fail: they are not to count as well because another process looks.
    pub failing: watch::Receiver<Failing>,
}

/// The agent that has taken over.
pub struct Taken {
    connection: Connection,
    pid: i32,
}

impl Predecessor {
    /// Until an agent has taken over.
    ///
    /// # Errors
    /// The socket cannot be listened on.
    pub async fn run(self) -> io::Result<Taken> {
        let listener = tokio_listener(&self.takeover)?;
        loop {
            let connection = match listener.accept().await {
                Ok((stream, _)) => Connection::from(stream),
                Err(error) => {
                    warn!("no agent can take over, trying again: {error}");
                    tokio::time::sleep(MESSAGE_TIMEOUT).await;
                    continue;
                }
            };
            let pid = connection.peer().map_or(0, |(pid, _)| pid);
            match self.offer(&connection).await {
                Ok(()) => return Ok(Taken { connection, pid }),
                Err(error) => warn!(pid, "another agent has not taken over, this one goes on: {error}"),
            }
        }
    }

    async fn offer(&self, connection: &Connection) -> Result<(), TakeoverError> {
        let hello = timeout(MESSAGE_TIMEOUT, connection.receive::<Hello>()).await;
        let (hello, _) = hello.map_err(|_| TakeoverError::Ended)??.ok_or(TakeoverError::Ended)?;
        let (pid, uid) = connection.peer()?;
        if let Some(reason) = self.objection(&hello, uid) {
            connection.send(&Answer::Refused(reason.clone()), &[]).await?;
            return Err(TakeoverError::Refused(reason));
        }
        info!(pid, version = hello.version, "another agent takes over");
        self.set_handing_over(true);
        let taken = timeout(PATIENCE, self.hand_over(connection)).await;
        let taken = taken.unwrap_or_else(|_| {
            Err(TakeoverError::Protocol(format!("it was not ready within {PATIENCE:?}")))
        });
        if let Err(error) = &taken {
            // Whoever hears nothing more takes us for dead.
            let _ = connection.send(&Answer::Refused(error.to_string()), &[]).await;
            self.put_back();
        }
        taken
    }

    async fn hand_over(&self, connection: &Connection) -> Result<(), TakeoverError> {
        let listeners = Listeners {
            local: self.local.try_clone()?,
            takeover: self.takeover.try_clone()?,
            workers: self.workers.copies()?,
        };
        let offer = Answer::Offer {
            pid: std::process::id().cast_signed(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.catalog.borrow().revision,
            failing: self
                .failing
                .borrow()
                .iter()
                .map(|(name, why)| (name.to_string(), why.clone()))
                .collect(),
            workers: listeners.workers.len(),
        };
        listeners.send(connection, &offer).await?;
        drop(listeners);
        match connection.receive::<Request>().await?.ok_or(TakeoverError::Ended)? {
            (Request::Taken, _) => ensure_there(connection).await,
            (Request::Stop, _) => Err(TakeoverError::Protocol("it stops what it has not taken".to_owned())),
        }
    }

    fn objection(&self, hello: &Hello, uid: u32) -> Option<String> {
        if uid != 0 && uid != geteuid().as_raw() {
            return Some(format!("user {uid} may not: only root and the agent's own user"));
        }
        if hello.protocol != PROTOCOL {
            let theirs = hello.protocol;
            return Some(format!(
                "it speaks version {PROTOCOL} of the take-over protocol, and the new one ({}) version {theirs}; stop \
                 it, and start the new one",
                hello.version
            ));
        }
        match self.terms.at_present() {
            Ok(terms) => terms.difference(&hello.terms),
            Err(error) => Some(error.to_string()),
        }
    }

    fn put_back(&self) {
        if let Some(Err(error)) = self.kernel.as_ref().map(|(programs, _)| programs.put_back()) {
            error!("this agent's programs cannot be put back, restart it: {error}");
        }
        self.set_handing_over(false);
    }

    fn set_handing_over(&self, is_handing_over: bool) {
        if let Some((_, half)) = &self.kernel {
            half.lock().unwrap_or_else(PoisonError::into_inner).hand_over(is_handing_over);
        }
    }
}

/// One that has ended since it said so serves nobody.
async fn ensure_there(connection: &Connection) -> Result<(), TakeoverError> {
    match timeout(Duration::ZERO, connection.receive::<Request>()).await {
        // It has nothing more to say until it hears from this agent.
        Err(_elapsed) => Ok(()),
        Ok(Ok(Some(_))) => Err(TakeoverError::Protocol("it goes on before it is told to".to_owned())),
        Ok(_) => Err(TakeoverError::Ended),
    }
}

fn tokio_listener(listener: &net::UnixListener) -> io::Result<UnixListener> {
    let listener = listener.try_clone()?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

impl Taken {
    /// The process of the agent that has taken over.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells it that all is its own, agents that are older still with it.
    pub async fn give(&self, older: &OlderAgents) {
        let given = timeout(MESSAGE_TIMEOUT, older.pass_on(&self.connection)).await;
        if !matches!(given, Ok(Ok(()))) {
            warn!(pid = self.pid, "the agent that has taken over does not listen any more");
        }
    }

    /// Tells it what `streams` says is still carried, until it wants that to end.
    pub async fn tell(&self, streams: impl Fn() -> u64) {
        let mut ticks = interval(TELL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    // One that was killed does not keep our streams from ending as they would.
                    if self.connection.send(&Answer::Draining(streams()), &[]).await.is_err() {
                        return std::future::pending().await;
                    }
                }
                heard = self.connection.receive::<Request>() => match heard {
                    Ok(Some((Request::Stop, _))) => return,
                    Ok(Some(_)) => {}
                    _ => return std::future::pending().await,
                }
            }
        }
    }
}
