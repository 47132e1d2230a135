//! What hosts tell other servers: those are asked for it while somebody looks at the page of this one.
//!
//! They are asked together, and as often as hosts report. One that does not answer in time, or with more than it may, has
//! told nothing: the page names its hosts.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::super::credentials::Credentials;
use super::super::feed::Feed;
use super::{ByHost, HostFlows, InvalidFlows, MAX_FLOWS, Told, by_clock, check};
use crate::api::v1::mesh_client::MeshClient;
use crate::api::{time_from_unix, unix_seconds, v1};
use crate::control::{DialError, dial};
use crate::identity::token::ServerAddress;

/// For connection and answer together.
const DEADLINE: Duration = Duration::from_secs(3);
/// Bytes of an answer: as many flows as there may be, and the names of thirty thousand hosts.
const MAX_BYTES: usize = 4 << 20;

/// Asks the other servers of the mesh.
pub struct OtherServers {
    /// The name of this server.
    pub name: String,
    pub feed: Arc<Feed>,
    pub flows: Arc<HostFlows>,
    pub credentials: Arc<Credentials>,
}

/// One of them.
#[derive(Default)]
struct Other {
    client: Option<MeshClient<Channel>>,
    /// What it told last.
    told: Vec<v1::FlowsOfHost>,
    /// It did not answer when it was asked last.
    is_silent: bool,
}

/// Why a server has told nothing.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("no answer in 3 seconds")]
    Late,
    #[error("it has no address")]
    NoAddress,
    #[error(transparent)]
    Unreachable(#[from] DialError),
    #[error("{}", .0.message())]
    Refused(#[from] Status),
    #[error(transparent)]
    Invalid(#[from] InvalidFlows),
}

impl OtherServers {
    /// Asks while somebody looks at the page of this server, for as long as it is run.
    pub async fn ask(self) {
        loop {
            self.flows.seen_here().await;
            self.ask_while_seen().await;
        }
    }

    async fn ask_while_seen(&self) {
        let mut others = BTreeMap::<String, Other>::new();
        while let Some(interval) = self.flows.interval_here() {
            let running = self.running();
            for (gone, _) in others.extract_if(.., |name, _| !running.contains_key(name)) {
                self.flows.learn(&gone, None);
            }
            for name in running.keys() {
                others.entry(name.clone()).or_default();
            }
            let asked = others.iter_mut().map(|(name, other)| self.ask_one(name, &running[name], other));
            join_all(asked).await;
            sleep(interval).await;
        }
        others.keys().for_each(|name| self.flows.learn(name, None));
    }

    /// Those that run, with their addresses.
    fn running(&self) -> BTreeMap<String, Vec<ServerAddress>> {
        let servers = self.feed.read(|view| view.servers.list().servers);
        let others = servers.into_iter().filter(|server| server.connected && server.node != self.name);
        let with_addresses = |server: v1::Server| {
            let addresses = server.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            (server.node, addresses)
        };
        others.map(with_addresses).collect()
    }

    async fn ask_one(&self, name: &str, addresses: &[ServerAddress], other: &mut Other) {
        match self.news(addresses, other).await {
            Ok(news) => {
                if std::mem::take(&mut other.is_silent) {
                    info!(server = name, "another server tells again who connects to whom");
                }
                if news.is_some() {
                    self.flows.learn(name, news);
                }
            }
            Err(error) => {
                if !other.is_silent {
                    warn!(server = name, %error, "another server does not tell who connects to whom");
                    self.flows.learn(name, None);
                }
                *other = Other { is_silent: true, ..Other::default() };
            }
        }
    }

    /// What a server tells, unless that is what it told last.
    async fn news(&self, addresses: &[ServerAddress], other: &mut Other) -> Result<Option<ByHost>, Silence> {
        let call = self.call(other.client.take(), addresses);
        let (client, answer) = timeout(DEADLINE, call).await.map_err(|_| Silence::Late)??;
        other.client = Some(client);
        if other.told == answer.hosts {
            return Ok(None);
        }
        let told = taken(&answer, unix_seconds(SystemTime::now()))?;
        other.told = answer.hosts;
        Ok(Some(told))
    }

    /// Over the connection of the last call, if there is one; that may have ended meanwhile.
    async fn call(
        &self,
        client: Option<MeshClient<Channel>>,
        addresses: &[ServerAddress],
    ) -> Result<(MeshClient<Channel>, v1::ToldFlowsResponse), Silence> {
        if let Some(mut client) = client
            && let Ok(answer) = client.told_flows(v1::ToldFlowsRequest {}).await
        {
            return Ok((client, answer.into_inner()));
        }
        let mut failure = Silence::NoAddress;
        for address in addresses {
            match dial(address, self.credentials.calling(), None).await {
                Ok(client) => {
                    let mut client = client.max_decoding_message_size(MAX_BYTES);
                    let answer = client.told_flows(v1::ToldFlowsRequest {}).await?;
                    return Ok((client, answer.into_inner()));
                }
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }
}

/// What another server is told `now`.
pub fn answer(told: &ByHost, now: u64) -> v1::ToldFlowsResponse {
    let flows_of = |(node, told): (&String, &Told)| v1::FlowsOfHost {
        node: node.clone(),
        certificate_ends: unix_seconds(told.certificate_ends),
        flows: Vec::new(),
        left_out: told.report.left_out.saturating_add(told.report.flows.len() as u64),
    };
    let mut hosts: Vec<_> = told.iter().map(flows_of).collect();
    let reports = told.values().enumerate();
    let mut flows: Vec<_> =
        reports.flat_map(|(host, told)| told.report.flows.iter().map(move |flow| (host, flow))).collect();
    flows.sort_by_key(|(_, flow)| (flow.open == 0, Reverse(flow.last_seen)));
    for (host, flow) in flows.into_iter().take(MAX_FLOWS) {
        hosts[host].flows.push(flow.clone());
        hosts[host].left_out -= 1;
    }
    v1::ToldFlowsResponse { now, hosts }
}

/// What another server has told, as if its hosts had told it here, `now`.
fn taken(answer: &v1::ToldFlowsResponse, now: u64) -> Result<ByHost, InvalidFlows> {
    let taken = answer.hosts.iter().map(|host| {
        let (flows, left_out) = (host.flows.clone(), host.left_out);
        let report = v1::FlowReport { now: answer.now, flows, left_out };
        check(&report)?;
        let certificate_ends = time_from_unix(host.certificate_ends).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok((host.node.clone(), Told { certificate_ends, report: by_clock(report, now).into() }))
    });
    taken.collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    fn told(flows: u64, open: u64) -> Told {
        let flow = |last_seen| report(|flow| (flow.last_seen, flow.open) = (last_seen, open)).flows.remove(0);
        let flows = (0..flows).map(flow).collect();
        let report = Arc::new(v1::FlowReport { now: 1000, flows, left_out: 5 });
        Told { certificate_ends: SystemTime::UNIX_EPOCH + Duration::from_secs(7), report }
    }

    #[test]
    fn another_server_is_told_as_many_flows_as_a_page_shows() {
        let hosts = (0..20).map(|host| (format!("fcs{host:02}"), told(200, u64::from(host == 3)))).collect();
        let answer = answer(&hosts, 1000);
        let flows = |node: usize| answer.hosts[node].flows.len();
        assert_eq!((0..20).map(flows).sum::<usize>(), MAX_FLOWS);
        assert_eq!((answer.hosts[3].flows.len(), answer.hosts[3].left_out), (200, 5), "what is open");
        assert!(answer.hosts[4].flows.iter().all(|flow| flow.last_seen > 100), "what was used last");
        assert_eq!(flows(4) as u64 + answer.hosts[4].left_out, 205);
    }

    #[test]
    fn what_another_server_tells_is_checked_and_set_right_by_the_clock() {
        let mut answer = answer(&[("fcs00".to_owned(), told(10, 0))].into(), 1000);
        let hosts = taken(&answer, 50).unwrap();
        let host = &hosts["fcs00"];
        let seen: Vec<_> = host.report.flows.iter().map(|flow| flow.last_seen).collect();
        assert_eq!((host.certificate_ends, host.report.left_out), (told(0, 0).certificate_ends, 5));
        assert_eq!(seen, [0; 10], "by the other clock 991 seconds ago and more");
        assert_eq!(taken(&answer, 1000).unwrap()["fcs00"].report.flows[0].last_seen, 9);
        answer.hosts[0].flows[0].destination.clear();
        assert_eq!(taken(&answer, 50).err(), Some(InvalidFlows::Party(String::new())));
    }
}
