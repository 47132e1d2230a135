//! One agent of the crowd.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use murmesh::catalog::{Catalog, Listener, Report};
use murmesh::control::{self, Control, ControlOptions};
use murmesh::identity::{JoinToken, NodeName};
use murmesh::seal::KeySource;
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Port of the first listener of each.
const FIRST_PORT: u16 = 10_000;

/// More than an agent without a data plane needs.
const STACK_BYTES: usize = 512 << 10;

/// An agent that has joined. It goes on until the process ends.
#[derive(Clone)]
pub struct Agent {
    /// From 0 on.
    pub number: u16,
    control: Arc<Control>,
    /// When its first certificate was replaced; `None` until then.
    renewed: watch::Receiver<Option<Instant>>,
    joined: Instant,
}

impl Agent {
    /// Joins by `token`, and reports so many `listeners`. Each agent has a thread of its own: as on hosts of their own, none
    /// waits until all others have read what they were told.
    pub async fn join(number: u16, listeners: u16, token: JoinToken, directory: PathBuf) -> Result<Self> {
        let (sender, joined) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            runtime.block_on(async {
                // Nobody waits for it any more when the others have failed.
                let _ = sender.send(Self::start(number, listeners, token, directory).await);
                std::future::pending::<()>().await;
            });
        })?;
        joined.await.context("its thread has ended")?
    }

    async fn start(number: u16, listeners: u16, token: JoinToken, directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let options = ControlOptions {
            remembered_from: 0,
            seal: KeySource::choose(None, None, &directory),
            data_dir: directory,
            join: Some(token),
            node: name(number)?,
            mark: None,
        };
        let control = control::start(options, CancellationToken::new()).await?;
        control.report.send_replace(Some(report(number, listeners)));
        let (sender, renewed) = watch::channel(None);
        let mut identity = control.identity.clone();
        let first = identity.borrow_and_update().not_after;
        tokio::spawn(async move {
            // Other roots come with a new identity, too.
            let replaced = identity.wait_for(|identity| identity.not_after != first).await.is_ok();
            sender.send_replace(replaced.then(Instant::now));
            sender.closed().await;
        });
        Ok(Self { number, control: Arc::new(control), renewed, joined: Instant::now() })
    }

    /// Reports one more listener.
    pub fn listen(&self, number: u16) {
        self.control.report.send_modify(|report| {
            report.iter_mut().for_each(|report| report.listeners.push(listener(number)));
        });
    }

    /// Waits until the catalog has so many hosts with so many listeners each.
    pub async fn wait_for_all(&self, hosts: u16, listeners: u16) -> Result<()> {
        self.wait_for_catalog(|catalog| {
            let mut known = catalog.hosts.values();
            catalog.hosts.len() == usize::from(hosts)
                && known.all(|host| host.report.listeners.len() == usize::from(listeners))
        })
        .await
    }

    /// Waits until the catalog has that listener of the first host, and says how long it took since `begun`.
    pub async fn wait_for_change(&self, number: u16, begun: Instant) -> Result<Duration> {
        let (first, wanted) = (name(0)?, listener(number));
        self.wait_for_catalog(|catalog| {
            catalog.hosts.get(&first).is_some_and(|host| host.report.listeners.contains(&wanted))
        })
        .await?;
        Ok(begun.elapsed())
    }

    /// Waits until it has, or has not, a server.
    pub async fn wait_connected(&self, wanted: bool) -> Result<()> {
        let mut status = self.control.status.clone();
        status.wait_for(|status| status.connected.is_some() == wanted).await.context("it has ended")?;
        Ok(())
    }

    /// Waits until its first certificate was replaced, and says how long after it had joined that was.
    pub async fn wait_renewed(&self) -> Result<Duration> {
        let mut renewed = self.renewed.clone();
        let at = *renewed.wait_for(Option::is_some).await.context("it has ended")?;
        Ok(at.context("it was renewed")?.duration_since(self.joined))
    }

    async fn wait_for_catalog(&self, condition: impl Fn(&Catalog) -> bool) -> Result<()> {
        let mut catalog = self.control.catalog.clone();
        catalog.wait_for(|catalog| condition(catalog)).await.context("it has ended")?;
        Ok(())
    }
}

fn name(number: u16) -> Result<NodeName> {
    Ok(format!("crowd{number:05}").parse()?)
}

fn report(number: u16, listeners: u16) -> Report {
    let [high, low] = number.to_be_bytes();
    Report {
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 100, high, low))],
        tunnel_port: 9191,
        listeners: (0..listeners).map(listener).collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        failing: std::collections::BTreeMap::new(),
    }
}

fn listener(number: u16) -> Listener {
    Listener {
        address: (Ipv4Addr::UNSPECIFIED, FIRST_PORT + number).into(),
        ipv6_only: false,
        workload: None,
    }
}
