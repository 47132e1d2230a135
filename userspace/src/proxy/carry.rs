//! Carries a stream to whoever serves it: over a tunnel at rest or a new one, and to another instance of a named
//! service where one cannot be reached. Until a byte has got to a service nothing has happened that could happen
//! twice; afterwards nothing is tried again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use super::{
    access::AccessRecord,
    held::Held,
    instances::Load,
    judge::Connection,
    live::Place,
    pool::{Ends, Lease},
    relay::{self, RelayError, relay},
    routes::{Choice, Route},
    worker::Worker,
};
use crate::{
    flows::FlowId,
    identity::SpiffeId,
    policy::Action,
    tunnel::{
        DialError, TunnelError,
        frame::{Frame, Open, RefusalReason, ResetReason},
    },
};

/// Instances that are tried for one stream.
const MAX_TRIED: usize = 8;

/// How long a tunnel may take where another instance can be tried.
const TUNNEL_TIMEOUT: Duration = Duration::from_secs(1);

/// What is to be carried.
pub struct Stream {
    /// Who connects.
    pub caller: Arc<SpiffeId>,
    /// What is said of it in the end.
    pub access: AccessRecord,
    /// Where its destination leads.
    pub route: Route,
    /// Where it is counted.
    pub flow: FlowId,
}

/// What became of a stream.
pub struct Carried {
    /// The instance that it was carried to, or that was tried last; `None` if there is none.
    pub instance: Option<SocketAddr>,
    /// What was relayed.
    pub totals: relay::Totals,
    /// How it ended.
    pub result: Result<(), Box<CarryError>>,
}

impl Carried {
    /// To no instance.
    fn failed(error: CarryError) -> Self {
        Self { instance: None, totals: relay::Totals::default(), result: Err(error.into()) }
    }
}

/// Why a stream did not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// There is no tunnel.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// There is no tunnel yet, and another instance is as good.
    #[error("no tunnel to {0} within {TUNNEL_TIMEOUT:?}")]
    Slow(SocketAddr),
    /// There was one.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Nobody serves it.
    #[error("no instance of the service takes connections from here; `murmesh services` tells why")]
    NoInstance,
}

/// Relays `application` to one of the instances that `stream` may go to.
pub async fn carry(worker: &Worker, application: &mut TcpStream, stream: &Stream) -> Carried {
    let several = stream.route.choices() > 1;
    if several && let Err(error) = certificate(worker, &stream.caller).await {
        return Carried::failed(error);
    }
    let (mut tried, mut held, mut last) = (Vec::new(), Held::default(), None);
    while tried.len() < MAX_TRIED
        && let Some(choice) = stream.route.choose(stream.access.destination(), &tried)
    {
        tried.push(choice.number);
        let Some(place) = enter(worker, stream, &choice) else { continue };
        let others = several && tried.len() < MAX_TRIED.min(stream.route.choices());
        let attempt = Attempt { worker, stream, choice, place: &place, others };
        let wanted = others || held.is_some();
        let carried = attempt.run(application, wanted.then_some(&mut held)).await;
        if !(others && attempt.may_go_elsewhere(&carried, &held)) {
            return carried;
        }
        // Streams that the first instance takes have no room for this in their tasks.
        last = Some(Box::new(carried));
    }
    last.map_or_else(|| Carried::failed(CarryError::NoInstance), |carried| *carried)
}

/// Takes note of the stream, if the rules allow it there: they may tell instances apart by their hosts.
fn enter<'a>(worker: &'a Worker, stream: &Stream, choice: &Choice<'_>) -> Option<Place<'a>> {
    let node = choice.peer.node.clone();
    let connection = Connection { caller: stream.caller.clone(), node, destination: choice.address };
    let judged = worker.judge.judge(&connection)?;
    (judged.verdict.action == Action::Allow).then(|| worker.live.enter(judged.found, stream.flow))
}

/// An instance is not to be blamed for what its caller lacks, nor is the time to be counted.
async fn certificate(worker: &Worker, caller: &Arc<SpiffeId>) -> Result<(), CarryError> {
    match worker.shared.identities.get(caller).await {
        Some(_) => Ok(()),
        None => Err(DialError::NoCertificate(caller.clone()).into()),
    }
}

/// One instance is tried.
struct Attempt<'a> {
    worker: &'a Worker,
    stream: &'a Stream,
    choice: Choice<'a>,
    place: &'a Place<'a>,
    others: bool,
}

/// What one tunnel did.
struct Relayed {
    totals: relay::Totals,
    result: Result<(), RelayError>,
    /// The tunnel was lost before anything has happened.
    lost_unused: bool,
    is_answered: bool,
}

impl Attempt<'_> {
    async fn run(&self, application: &mut TcpStream, held: Option<&mut Held>) -> Carried {
        let _open = self.choice.load.map(Load::open);
        let (totals, result) = match self.relay(application, held).await {
            Ok(relayed) => {
                if relayed.is_answered
                    && let Some(load) = self.choice.load
                {
                    load.succeeded();
                }
                let result = self.place.explained(relayed.result).await;
                (relayed.totals, result.map_err(|error| Box::new(error.into())))
            }
            Err(error) => (relay::Totals::default(), Err(error.into())),
        };
        let carried = Carried { instance: Some(self.choice.address), totals, result };
        if let (Some(load), Err(error)) = (self.choice.load, &carried.result)
            && is_fault_of_instance(error, &carried.totals)
        {
            load.failed(&error.to_string());
        }
        carried
    }

    /// Over a tunnel at rest, and over a new one if that one turns out to have died at rest.
    async fn relay(
        &self,
        application: &mut TcpStream,
        mut held: Option<&mut Held>,
    ) -> Result<Relayed, CarryError> {
        let port = self.choice.address.port();
        let ends = Ends { caller: self.stream.caller.clone(), peer: self.choice.peer.clone() };
        if let Some(lease) = self.worker.pool.recycle(&ends, port) {
            let relayed = self.over(application, &ends, lease, held.as_deref_mut()).await;
            if !relayed.lost_unused {
                return Ok(relayed);
            }
        }
        // Streams that need no handshake have no room for one in their tasks.
        let lease = Box::pin(self.open(&ends, port)).await?;
        Ok(self.over(application, &ends, lease, held).await)
    }

    /// A new tunnel.
    async fn open(&self, ends: &Ends, port: u16) -> Result<Lease, CarryError> {
        let tunnel = self.worker.pool.open(ends, port);
        if !self.others {
            return Ok(tunnel.await?);
        }
        let tunnel = timeout(TUNNEL_TIMEOUT, tunnel).await;
        Ok(tunnel.map_err(|_| CarryError::Slow(self.choice.peer.address))??)
    }

    /// One stream on one tunnel, which goes back to the pool if it came to rest.
    async fn over(
        &self,
        application: &mut TcpStream,
        ends: &Ends,
        mut lease: Lease,
        held: Option<&mut Held>,
    ) -> Relayed {
        let (destination, client) = (self.choice.address, self.stream.access.client());
        if let Err(error) = lease.tunnel.send(&Frame::Open(Open { destination, client })).await {
            let (totals, result) = (relay::Totals::default(), Err(error.into()));
            return Relayed { totals, result, lost_unused: true, is_answered: false };
        }
        let watchdog = &self.worker.watchdog;
        let (totals, result) = relay(application, &mut lease.tunnel, watchdog, self.place, held, None).await;
        let is_answered = lease.tunnel.is_answered();
        let lost = matches!(&result, Err(RelayError::Tunnel(TunnelError::Broken(_) | TunnelError::Closed)));
        let lost_unused = lost && totals == relay::Totals::default() && !is_answered;
        // The other host may wait for the rule that has cut the stream, and keep what follows on the tunnel waiting.
        if !matches!(result, Err(RelayError::Forbidden(_))) {
            self.worker.pool.put_back(ends, lease);
        }
        Relayed { totals, result, lost_unused, is_answered }
    }

    /// Whether nothing of the stream has got to a service, or came from one, and all of it is here still.
    fn may_go_elsewhere(&self, carried: &Carried, held: &Held) -> bool {
        let Err(error) = &carried.result else { return false };
        let nothing = carried.totals == relay::Totals::default();
        match &**error {
            CarryError::Relay(RelayError::Refused(reason)) => is_about_instance(*reason) && held.is_whole(),
            CarryError::Relay(
                RelayError::Reset(ResetReason::ByPeer | ResetReason::Shutdown)
                | RelayError::Tunnel(TunnelError::Broken(_) | TunnelError::Closed),
            ) => nothing,
            CarryError::Dial(DialError::NoCertificate(_)) => false,
            CarryError::Dial(_) | CarryError::Slow(_) => true,
            CarryError::Relay(_) | CarryError::NoInstance => false,
        }
    }
}

/// Others are tried before it for a while.
fn is_fault_of_instance(error: &CarryError, totals: &relay::Totals) -> bool {
    match error {
        CarryError::Dial(DialError::NoCertificate(_) | DialError::AnotherService(_))
        | CarryError::NoInstance => false,
        CarryError::Dial(_) | CarryError::Slow(_) => true,
        CarryError::Relay(RelayError::Refused(RefusalReason::AnotherService)) => false,
        CarryError::Relay(RelayError::Refused(reason)) => is_about_instance(*reason),
        CarryError::Relay(RelayError::Tunnel(TunnelError::Broken(_) | TunnelError::Closed)) => {
            *totals == relay::Totals::default()
        }
        CarryError::Relay(_) => false,
    }
}

/// Another one may do better.
fn is_about_instance(reason: RefusalReason) -> bool {
    match reason {
        RefusalReason::NotAService
        | RefusalReason::ConnectionRefused
        | RefusalReason::Unreachable
        | RefusalReason::TimedOut
        | RefusalReason::Draining
        | RefusalReason::Internal
        | RefusalReason::AnotherService => true,
        RefusalReason::SourceNotAllowed | RefusalReason::Denied | RefusalReason::Unknown(_) => false,
    }
}
