//! Tells the server who of this host connects to whom, while somebody looks at its page.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::warn;

use super::backoff::jitter;
use crate::api::v1;
use crate::api::v1::mesh_client::MeshClient;
use crate::flows::Flows;
use crate::identity::token::ServerAddress;

/// The first report comes within this part of an interval: all agents are asked at once.
const FIRST_SHARE: u32 = 4;

/// Reports while the server wants it. Nothing else depends on it: a server that does not take it is told no more.
pub async fn report(
    server: &ServerAddress,
    client: MeshClient<Channel>,
    flows: &mut watch::Receiver<Option<Arc<Flows>>>,
) -> Infallible {
    let counted = flows.wait_for(Option::is_some).await.ok().and_then(|flows| flows.clone());
    if let Some(flows) = counted
        && let Err(status) = converse(client, &flows).await
        && !matches!(status.code(), Code::Unimplemented | Code::Unavailable | Code::Cancelled | Code::Unknown)
    {
        warn!(%server, "the server does not take who connects to whom: {}", status.message());
    }
    std::future::pending().await
}

async fn converse(mut client: MeshClient<Channel>, flows: &Flows) -> Result<(), Status> {
    let (reports, outgoing) = mpsc::channel(1);
    let mut wanted = client.flows(ReceiverStream::new(outgoing)).await?.into_inner();
    while let Some(interval) = next_interval(&mut wanted).await? {
        tell(&mut wanted, interval, flows, &reports).await?;
    }
    Ok(())
}

/// `None` at the end.
async fn next_interval(wanted: &mut Streaming<v1::FlowsWanted>) -> Result<Option<Duration>, Status> {
    while let Some(told) = wanted.message().await? {
        if told.interval_ms > 0 {
            return Ok(Some(Duration::from_millis(told.interval_ms)));
        }
    }
    Ok(None)
}

/// Reports what is new, until it is not wanted any more.
async fn tell(
    wanted: &mut Streaming<v1::FlowsWanted>,
    mut interval: Duration,
    flows: &Flows,
    reports: &mpsc::Sender<v1::FlowReport>,
) -> Result<(), Status> {
    let (mut last, mut due) = (None, Instant::now() + interval.mul_f64(jitter().abs()) / FIRST_SHARE);
    loop {
        tokio::select! {
            told = wanted.message() => match told?.map(|told| told.interval_ms) {
                Some(0) | None => return Ok(()),
                Some(milliseconds) => interval = Duration::from_millis(milliseconds),
            },
            () = sleep_until(due) => {
                let report = flows.report();
                // One that the server has not read yet would only be older.
                if last.as_ref() != Some(&report.flows) && reports.try_send(report.clone()).is_ok() {
                    last = Some(report.flows);
                }
                due = Instant::now() + interval;
            }
        }
    }
}
