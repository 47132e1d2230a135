//! The server's figures for Prometheus, and what is counted for them: calls of hosts, signed certificates, and how long
//! the database takes.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;
use tonic::{Code, Status, codegen::Service, codegen::http};

use super::{credentials::Credentials, feed::Feed, mesh::OUT_OF_TOUCH, view::View};
use crate::{
    admission::Refusals,
    identity::{NodeName, Subject},
    metrics::{
        self, Page, Source,
        definitions::{
            CATALOG_REVISION, SERVER_CALLS, SERVER_CERTIFICATES, SERVER_HOSTS, SERVER_LEADER,
            SERVER_REFUSALS, SERVER_RULES, SERVER_SERVICES, SERVER_STORE_ERRORS, SERVER_STORE_SECONDS,
            SERVER_STORE_UP, SERVER_WATCHES, SERVERS,
        },
        number,
    },
    store::{Entry, Outcome, Store, StoreError, Transaction, Watch},
};

/// Calls that hosts and other servers make. Whatever else somebody calls is counted under the last.
const CALLS: [&str; 10] = [
    "Join",
    "Renew",
    "Watch",
    "Report",
    "SignWorkload",
    "ReportPlaintext",
    "Confirm",
    "Flows",
    "ToldFlows",
    "unknown",
];

/// Whom certificates are signed for.
const SUBJECTS: [&str; 3] = ["host", "workload", "service"];

/// What the database is asked.
const OPERATIONS: [&str; 3] = ["get", "list", "commit"];
const GET: usize = 0;
const LIST: usize = 1;
const COMMIT: usize = 2;

/// In seconds.
const BUCKETS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// What a server counts.
#[derive(Debug)]
pub struct Counted {
    /// By call and result.
    calls: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    signed: [AtomicU64; SUBJECTS.len()],
    store_seconds: [Histogram; OPERATIONS.len()],
    store_errors: [AtomicU64; OPERATIONS.len()],
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            calls: Mutex::default(),
            signed: Default::default(),
            store_seconds: std::array::from_fn(|_| Histogram::new(BUCKETS)),
            store_errors: Default::default(),
        }
    }
}

impl Counted {
    /// A certificate was signed.
    pub fn signed(&self, subject: &Subject) {
        let place = match subject {
            Subject::Host(_) | Subject::Server(_) => 0,
            Subject::Workload(..) => 1,
            Subject::Service(_) => 2,
        };
        self.signed[place].fetch_add(1, Relaxed);
    }

    fn called(&self, call: &'static str, code: Code) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls.entry((call, code_name(code))).or_default() += 1;
    }

    async fn asked<T>(
        &self,
        operation: usize,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answer = answer.await;
        self.store_seconds[operation].observe(begun.elapsed().as_secs_f64());
        if answer.is_err() {
            self.store_errors[operation].fetch_add(1, Relaxed);
        }
        answer
    }

    fn figures(&self, page: &mut Page) {
        for ((call, result), count) in &*self.calls.lock().unwrap_or_else(PoisonError::into_inner) {
            page.counter(&SERVER_CALLS, &[call, result], *count);
        }
        for (subject, signed) in SUBJECTS.iter().zip(&self.signed) {
            page.counter(&SERVER_CERTIFICATES, &[subject], signed.load(Relaxed));
        }
        let store = self.store_seconds.iter().zip(&self.store_errors);
        for (operation, (seconds, errors)) in OPERATIONS.iter().zip(store) {
            page.histogram(&SERVER_STORE_SECONDS, &[operation], seconds);
            page.counter(&SERVER_STORE_ERRORS, &[operation], errors.load(Relaxed));
        }
    }
}

/// All that a server tells.
pub struct Figures {
    pub name: NodeName,
    pub counted: Arc<Counted>,
    pub credentials: Arc<Credentials>,
    pub feed: Arc<Feed>,
    pub refusals: Arc<Refusals>,
}

#[tonic::async_trait]
impl Source for Figures {
    async fn figures(&self, page: &mut Page) {
        metrics::daemon(page, "server", self.credentials.not_after());
        self.counted.figures(page);
        for (reason, count) in self.refusals.all() {
            page.counter(&SERVER_REFUSALS, &[reason.name()], count);
        }
        let answers = *self.feed.answers().borrow();
        page.gauge(&SERVER_STORE_UP, &[], f64::from(u8::from(answers)));
        self.feed.read(|view| self.view(page, view));
    }

    async fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !*self.feed.answers().borrow() {
            problems.push(OUT_OF_TOUCH.to_owned());
        }
        if self.credentials.not_after() <= SystemTime::now() {
            problems.push("the server's certificate has expired".to_owned());
        }
        problems
    }
}

impl Figures {
    fn view(&self, page: &mut Page, view: &View) {
        page.gauge(&CATALOG_REVISION, &[], number(view.revision));
        let hosts = |wanted: (bool, bool)| {
            number(view.hosts.values().filter(|host| (host.connected, host.lost) == wanted).count())
        };
        for (state, wanted) in
            [("connected", (true, false)), ("away", (false, false)), ("lost", (false, true))]
        {
            page.gauge(&SERVER_HOSTS, &[state], hosts(wanted));
        }
        page.gauge(&SERVER_WATCHES, &[], number(view.connections.values().sum::<usize>()));
        let servers = view.servers.list().servers;
        for (state, connected) in [("connected", true), ("away", false)] {
            let count = servers.iter().filter(|server| server.connected == connected).count();
            page.gauge(&SERVERS, &[state], number(count));
        }
        let leads = servers.iter().any(|server| server.leader && server.node == self.name.as_str());
        page.gauge(&SERVER_LEADER, &[], f64::from(u8::from(leads)));
        page.gauge(&SERVER_RULES, &[], number(view.policy.rules().len()));
        let mut modes = BTreeMap::<_, usize>::new();
        for service in view.policy.services().values() {
            *modes.entry(service.mode.unwrap_or(view.policy.defaults.mode).to_string()).or_default() += 1;
        }
        for (mode, count) in modes {
            page.gauge(&SERVER_SERVICES, &[&mode], number(count));
        }
    }
}

/// A store, whose answers are timed.
pub struct Timed {
    pub store: Arc<dyn Store>,
    pub counted: Arc<Counted>,
}

#[tonic::async_trait]
impl Store for Timed {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.counted.asked(GET, self.store.get(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError> {
        self.counted.asked(LIST, self.store.list(prefix)).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        self.counted.asked(COMMIT, self.store.commit(transaction)).await
    }

    fn watch(&self, revision: u64) -> Box<dyn Watch> {
        self.store.watch(revision)
    }

    fn sessions(&self) -> watch::Receiver<u64> {
        self.store.sessions()
    }

    fn answers(&self) -> watch::Receiver<bool> {
        self.store.answers()
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

/// Counts calls on their way to a service.
#[derive(Clone)]
pub struct CountCalls<S> {
    inner: S,
    counted: Arc<Counted>,
}

/// Puts [`CountCalls`] around a service.
#[derive(Clone)]
pub struct CountCallsLayer(pub Arc<Counted>);

impl<S> tower::Layer<S> for CountCallsLayer {
    type Service = CountCalls<S>;

    fn layer(&self, inner: S) -> CountCalls<S> {
        CountCalls { inner, counted: self.0.clone() }
    }
}

impl<S, Q, A> Service<http::Request<Q>> for CountCalls<S>
where
    S: Service<http::Request<Q>, Response = http::Response<A>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<A>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let call = CALLS.into_iter().find(|call| *call == name).unwrap_or(CALLS[CALLS.len() - 1]);
        let (counted, answer) = (self.counted.clone(), self.inner.call(request));
        Box::pin(async move {
            let answer = answer.await?;
            // What goes well says so only at its end.
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            counted.called(call, code);
            Ok(answer)
        })
    }
}

/// As the gRPC specification has it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}
