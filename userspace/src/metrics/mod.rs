//! Figures for Prometheus: a page in the OpenMetrics text format, made when it is asked for from what is counted
//! anyway.

pub mod definitions;
mod page;
mod process;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE};
use tokio::net::TcpListener;
use tracing::{info, warn};

pub use page::{Page, number, seconds};

use crate::http;
use definitions::{BUILD, CERTIFICATE_EXPIRES};

/// Where an agent has its figures unless told otherwise.
pub const AGENT_ADDRESS: &str = "127.0.0.1:9192";

/// Where a server has them.
pub const SERVER_ADDRESS: &str = "127.0.0.1:9193";

/// Pause before an address is tried again: an agent that is taken over gives it up a moment later.
const BIND_PAUSE: Duration = Duration::from_secs(1);

/// After so many it is worth a word.
const PATIENT_TRIES: u32 = 5;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Where figures are to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Nowhere.
    Off,
    /// Here.
    At(SocketAddr),
}

/// A daemon that has figures.
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// What there is now.
    async fn figures(&self, page: &mut Page);

    /// What is wrong, in words; empty while all is well.
    async fn problems(&self) -> Vec<String>;
}

/// Serves `/metrics` and `/healthz` for as long as it is run. While the address cannot be had that is tried again and
/// again: nothing else depends on it.
pub async fn serve(address: MetricsAddress, source: Arc<dyn Source>) {
    let MetricsAddress::At(address) = address else { return };
    let started = SystemTime::now();
    let listener = bind(address).await;
    info!(%address, "metrics are served");
    http::serve(listener, http::Limits::default(), move |request| answer(request, source.clone(), started))
        .await;
}

async fn bind(address: SocketAddr) -> TcpListener {
    let mut tries = 0;
    loop {
        let error = match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => error,
        };
        tries += 1;
        if tries == PATIENT_TRIES {
            warn!("no metrics at {address} yet: {error}; choose another address with --metrics, or \"off\"");
        }
        tokio::time::sleep(BIND_PAUSE).await;
    }
}

async fn answer(request: Request<Incoming>, source: Arc<dyn Source>, started: SystemTime) -> http::Answer {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return with(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".to_owned());
    }
    match request.uri().path() {
        "/metrics" => {
            let mut page = Page::default();
            source.figures(&mut page).await;
            process::figures(&mut page, started);
            with(StatusCode::OK, OPEN_METRICS, page.text())
        }
        "/healthz" => match source.problems().await {
            problems if problems.is_empty() => with(StatusCode::OK, TEXT, "ok\n".to_owned()),
            problems => with(StatusCode::SERVICE_UNAVAILABLE, TEXT, problems.join("\n") + "\n"),
        },
        _ => with(StatusCode::NOT_FOUND, TEXT, "there are /metrics and /healthz\n".to_owned()),
    }
}

fn with(status: StatusCode, content: &'static str, text: String) -> http::Answer {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content));
    answer
}

/// What every daemon tells of itself; `expires` is the end of its certificate.
pub fn daemon(page: &mut Page, role: &str, expires: SystemTime) {
    page.gauge(&BUILD, &[role, env!("CARGO_PKG_VERSION")], 1.0);
    page.gauge(&CERTIFICATE_EXPIRES, &["own"], seconds(expires));
}

impl MetricsAddress {
    /// The port that is listened on.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address.port()),
        }
    }
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::At).map_err(|_| format!("{text:?} is neither IP:PORT nor \"off\"")),
        }
    }
}
