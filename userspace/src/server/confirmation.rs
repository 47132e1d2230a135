//! Takes back modes that nobody confirmed in time. What is left to do is in the store: a server that was down does it
//! when it is back, and of several servers whichever comes first.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message;
use tracing::{info, warn};

use super::policy::{PolicyChangeError, PolicyRecords};
use super::records::{DEFAULTS, SERVICES};
use crate::api::v1;
use crate::clock::sleep_until;
use crate::policy::{Defaults, Policy, Service, Unconfirmed};
use crate::store::Change;

/// How long a failed attempt waits for the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Services in one transaction; the others are next.
const AT_ONCE: usize = 64;

/// Runs until it is dropped.
pub async fn run(policy: Arc<PolicyRecords>) {
    let mut changes = policy.feed.changes();
    loop {
        let Some(until) = policy.feed.read(|view| earliest(&view.policy)) else {
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = sleep_until(until) => take_back(&policy).await,
        }
    }
}

async fn take_back(policy: &PolicyRecords) {
    match policy.take_back_overdue().await {
        Ok(taken_back) => taken_back.iter().for_each(|what| info!("not confirmed in time: {what}")),
        Err(error) => {
            warn!(%error, "a mode that nobody confirmed could not be taken back, trying again");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl PolicyRecords {
    /// Lets the mode of a service stay.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn confirm_service(&self, name: &str) -> Result<Service, PolicyChangeError> {
        let name = name.parse()?;
        self.change(|view, _| {
            let service = view.policy.services().get(&name);
            let service = service.ok_or_else(|| PolicyChangeError::UnknownService(name.clone()))?;
            if service.unconfirmed.is_none() {
                return Err(PolicyChangeError::NothingToConfirm(format!("the mode of {name}")));
            }
            let service = Service { unconfirmed: None, ..Service::clone(service) };
            Ok((vec![put_service(&service)], service))
        })
        .await
    }

    /// Lets the default mode stay.
    ///
    /// # Errors
    /// As [`Self::confirm_service`].
    pub async fn confirm_defaults(&self) -> Result<Defaults, PolicyChangeError> {
        self.change(|view, _| {
            if view.policy.defaults.unconfirmed.is_none() {
                return Err(PolicyChangeError::NothingToConfirm("the default mode".to_owned()));
            }
            let defaults = Defaults { unconfirmed: None, ..view.policy.defaults };
            Ok((vec![put_defaults(defaults)], defaults))
        })
        .await
    }

    /// Takes back what was to be confirmed by now, and says what that is.
    async fn take_back_overdue(&self) -> Result<Vec<String>, PolicyChangeError> {
        self.change(|view, _| {
            let now = SystemTime::now();
            let overdue = |unconfirmed: Option<Unconfirmed>| unconfirmed.filter(|it| it.until <= now);
            let (mut changes, mut said) = (Vec::new(), Vec::new());
            let services = view.policy.services().values();
            let services = services.filter_map(|service| Some((service, overdue(service.unconfirmed)?.mode)));
            for (service, mode) in services.take(AT_ONCE) {
                let service = Service { mode, unconfirmed: None, ..Service::clone(service) };
                changes.push(put_service(&service));
                said.push(format!("service {service}"));
            }
            let defaults = view.policy.defaults;
            if let Some(Unconfirmed { mode, .. }) = overdue(defaults.unconfirmed) {
                let mode = mode.unwrap_or_default();
                changes.push(put_defaults(Defaults { mode, unconfirmed: None, ..defaults }));
                said.push(format!("services are {mode} by default"));
            }
            Ok((changes, said))
        })
        .await
    }
}

fn earliest(policy: &Policy) -> Option<SystemTime> {
    let services = policy.services().values().filter_map(|service| service.unconfirmed);
    services.chain(policy.defaults.unconfirmed).map(|unconfirmed| unconfirmed.until).min()
}

/// The change that keeps a service.
pub fn put_service(service: &Service) -> Change {
    Change::Put(format!("{SERVICES}{}", service.name), v1::Service::from(service).encode_to_vec())
}

/// The change that keeps the defaults.
pub fn put_defaults(defaults: Defaults) -> Change {
    Change::Put(DEFAULTS.to_owned(), v1::Defaults::from(defaults).encode_to_vec())
}
