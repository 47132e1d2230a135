//! What becomes of a connection from this host to an address: looked up, and tried over a new tunnel to the service.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::whois;
use crate::{
    api::v1::{self, Path},
    catalog::Catalog,
    identity::{SpiffeId, tls},
    policy::{Action, Mode},
    proxy::{Route, Shared},
    socket,
    tunnel::{
        DialError, Received, Timed, Tunnel, TunnelError, dial_timed,
        frame::{Frame, Open, RefusalReason, ResetReason},
    },
};

/// How long the other agent may take to answer, which first connects to the service.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// How long the stream may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Tries it, for the process `pid`.
pub async fn ping(
    pid: u32,
    destination: SocketAddr,
    shared: &Arc<Shared>,
    catalog: &Arc<Catalog>,
) -> v1::PingResponse {
    let is_here = shared.services.load().addresses.contains(&destination.ip());
    if is_here || destination.ip().is_loopback() {
        return ended(Path::Local, "an address of this host: what is sent there never leaves it");
    }
    let Some(route) = shared.routes.load().get(destination).cloned() else {
        return ended(Path::Plaintext, &unknown(destination, catalog));
    };
    if catalog.policy.mode_at(&route.peer.node, destination.port()) == Mode::Observe {
        return ended(Path::Plaintext, "the service is in mode observe");
    }
    let (found, known) = (shared.clone(), catalog.clone());
    let caller = tokio::task::spawn_blocking(move || whois::identity_of(pid, &found, &known)).await;
    let Some(caller) = caller.ok().flatten().map(Arc::new) else {
        return ended(Path::Plaintext, "this command runs outside of the cgroup that is intercepted");
    };
    let response = v1::PingResponse {
        node: route.peer.node.to_string(),
        caller: caller.to_string(),
        peer: route.peer.id.to_string(),
        ..v1::PingResponse::default()
    };
    let rules = shared.rules.load_full();
    let verdict = rules.find(&caller, &route.peer.node, destination).map(|found| rules.judge(&found));
    let rule = verdict.and_then(|verdict| verdict.rule).map(|rule| rule.number());
    let response = v1::PingResponse { rule, ..response };
    if verdict.is_none_or(|verdict| verdict.action == Action::Deny) {
        let why = rule.map_or("no rule allows it".to_owned(), |rule| format!("rule {rule} forbids it"));
        return v1::PingResponse { path: Path::Refused.into(), why, ..response };
    }
    let tried = Try { shared, caller, destination, route: &route }.run(response.clone()).await;
    tried.unwrap_or_else(|why| v1::PingResponse { path: Path::Refused.into(), why, ..response })
}

fn ended(path: Path, why: &str) -> v1::PingResponse {
    v1::PingResponse { path: path.into(), why: why.to_owned(), ..v1::PingResponse::default() }
}

/// Why there is no way through the mesh.
fn unknown(destination: SocketAddr, catalog: &Catalog) -> String {
    match catalog.addresses().get(&destination.ip()) {
        Some(node) => format!(
            "{} is an address of {node}, which has no service of the mesh on port {}; `murmesh services` lists them",
            destination.ip(),
            destination.port()
        ),
        None => format!("no host of the mesh has the address {}", destination.ip()),
    }
}

/// One attempt.
struct Try<'a> {
    shared: &'a Shared,
    caller: Arc<SpiffeId>,
    destination: SocketAddr,
    route: &'a Route,
}

impl Try<'_> {
    async fn run(self, response: v1::PingResponse) -> Result<v1::PingResponse, String> {
        let choice = self.route.choose(self.destination, &[]);
        let choice =
            choice.ok_or("no instance of the service takes connections; `murmesh services` tells why")?;
        let (mut tunnel, timed) = self.open(choice.peer, choice.address.port()).await?;
        let client = tunnel.socket().local_addr().map_err(|error| error.to_string())?;
        let open = Open {
            destination: choice.address,
            client: SocketAddr::new(client.ip().to_canonical(), client.port()),
        };
        let answer = timeout(ANSWER_TIMEOUT, answer(&mut tunnel, open)).await;
        let answer = answer.map_err(|_| "the other agent did not answer".to_owned())?;
        let response = v1::PingResponse {
            node: choice.peer.node.to_string(),
            instance: choice.address.to_string(),
            peer: tunnel.peer().id.to_string(),
            handshake: Some(handshake(&timed)),
            round_trip_us: socket::round_trip(tunnel.socket()).map_or(0, microseconds),
            ..response
        };
        Ok(match answer {
            Ok(Ok(took)) => {
                v1::PingResponse { path: Path::Mesh.into(), answer_us: Some(microseconds(took)), ..response }
            }
            Ok(Err(reason)) => {
                let why = format!("the other host refused it: {}", reason.name());
                v1::PingResponse { path: Path::Refused.into(), why, ..response }
            }
            Err(error) => return Err(error.to_string()),
        })
    }

    async fn open(&self, peer: &crate::proxy::Peer, port: u16) -> Result<(Box<Tunnel>, Timed), String> {
        let identity = self.shared.identities.get(&self.caller).await;
        let identity = identity.ok_or_else(|| DialError::NoCertificate(self.caller.clone()).to_string())?;
        let config = tls::tunnel_client(&identity.identity, &peer.id).map_err(|error| error.to_string())?;
        let opened = dial_timed(peer.address, config, Some(port), self.shared.mark).await;
        let (tunnel, timed) = opened.map_err(|error| error.to_string())?;
        if self.shared.refuses(tunnel.peer()) {
            return Err(DialError::Removed(tunnel.peer().id.clone()).to_string());
        }
        Ok((tunnel, timed))
    }
}

/// How long it takes until the other agent has connected to the service; that connection is broken off at once.
async fn answer(tunnel: &mut Tunnel, open: Open) -> Result<Result<Duration, RefusalReason>, TunnelError> {
    let begun = Instant::now();
    tunnel.send(&Frame::Open(open)).await?;
    // The other agent need not answer before there is something to say.
    tunnel.send(&Frame::Reset(ResetReason::ByPeer)).await?;
    let answer = loop {
        match tunnel.receive().await? {
            Received::Frame(Frame::Accepted) => break Ok(begun.elapsed()),
            Received::Frame(Frame::Refused(reason)) => break Err(reason),
            Received::Frame(_) => {}
            Received::Data => tunnel.consume(tunnel.data().map(|piece| piece.len()).sum()),
            Received::Closed => return Err(TunnelError::Closed),
        }
    };
    // What is learnt is learnt.
    let _ = timeout(END_TIMEOUT, tunnel.drain()).await;
    Ok(answer)
}

fn handshake(timed: &Timed) -> v1::Handshake {
    let name = |text: Option<String>| text.unwrap_or_default();
    v1::Handshake {
        version: name(timed.agreed.version.and_then(|version| version.as_str().map(str::to_owned))),
        key_exchange: name(
            timed.agreed.key_exchange.map(|group| group.as_str().unwrap_or("unknown").to_owned()),
        ),
        cipher: name(timed.agreed.cipher.and_then(|cipher| cipher.as_str().map(str::to_owned))),
        connect_us: microseconds(timed.connect),
        handshake_us: microseconds(timed.handshake),
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
