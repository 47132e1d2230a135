//! Replacing the root of the mesh, in three steps that nothing in use notices.
//!
//! `prepare` makes a new root that everybody trusts beside the old one; `activate` has it sign; `retire` ends the trust
//! in the old one. Each step is one transaction, and waits for the hosts: they report which roots they trust and which
//! have signed what they use (`confirmed/NODE`). While the new root signs, everything that it signs comes with a
//! certificate of it by the old one: who was away, and knows the old one only, accepts it.

use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::feed::Feed;
use super::records::{decode, put, read};
use super::registry::RegistryError;
use super::roots::{Phase, RootRecords};
use crate::api::{time_from_unix, v1};
use crate::identity::{Fingerprint, NodeName};
use crate::store::{Condition, Outcome, Transaction};

/// Prefix of what hosts say they hold, by node.
pub const CONFIRMED: &str = "confirmed/";

/// Why a step is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Steps have an order.
    #[error("{0}")]
    Order(&'static str),
    /// Hosts would be cut off.
    #[error(
        "these hosts are not ready for it: {0}; `murmesh ca status` tells why, and `murmesh host remove` gives one up"
    )]
    Waiting(String),
    /// The database fails, or a record in it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// This server does not follow the store.
    #[error("this server is behind its database; try again, and see its log if that does not help")]
    Behind,
}

/// In hexadecimal.
#[derive(Default, PartialEq, Eq, Serialize, Deserialize)]
struct StoredConfirmation {
    roots: Vec<String>,
    issuers: Vec<String>,
}

/// Rotates, and tells how far that is.
pub struct Rotation {
    pub records: RootRecords,
    pub feed: std::sync::Arc<Feed>,
    /// How long certificates live.
    pub lifetime: Duration,
}

impl Rotation {
    /// Takes a step. One that was taken already is answered in the same way.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn step(&self, step: v1::RotationStep) -> Result<v1::RootsStatus, RotationError> {
        let revision = match step {
            v1::RotationStep::Prepare => self.records.prepare().await?,
            v1::RotationStep::Activate => {
                self.ensure_ready(|host| host.trusts_next, |host| host.connected).await?;
                self.records.activate().await?
            }
            v1::RotationStep::Retire => {
                let recently = SystemTime::now().checked_sub(self.lifetime);
                let counts =
                    |host: &v1::HostTrust| host.connected || time_from_unix(host.last_seen) > recently;
                self.ensure_ready(|host| host.trusts_next && host.uses_next_only, counts).await?;
                self.records.retire().await?
            }
            v1::RotationStep::Unspecified => return Err(RotationError::Order("no step was named")),
        };
        if !self.feed.reached(revision).await {
            return Err(RotationError::Behind);
        }
        self.status().await
    }

    /// How far it is.
    ///
    /// # Errors
    /// The database fails.
    pub async fn status(&self) -> Result<v1::RootsStatus, RotationError> {
        let roots = self.records.load(None).await?;
        let newest = roots.newest();
        let mut hosts = Vec::new();
        let known: Vec<_> = self.feed.read(|view| view.hosts.values().cloned().collect());
        for host in known {
            let key = format!("{CONFIRMED}{}", host.node);
            let confirmed = read::<StoredConfirmation>(&*self.records.store, &key).await?;
            let confirmed = confirmed.map(|(_, confirmed)| confirmed).unwrap_or_default();
            hosts.push(v1::HostTrust {
                node: host.node,
                connected: host.connected,
                last_seen: host.last_seen,
                trusts_next: confirmed.roots.contains(&HEXLOWER.encode(&newest)),
                uses_next_only: confirmed.issuers == [HEXLOWER.encode(&newest)],
            });
        }
        Ok(v1::RootsStatus {
            phase: match roots.phase {
                Phase::Steady => "steady",
                Phase::Prepared => "prepared",
                Phase::Activated => "activated",
            }
            .to_owned(),
            trust: Some(roots.trust()),
            hosts,
        })
    }

    /// Only where another root comes.
    async fn ensure_ready(
        &self,
        is_ready: impl Fn(&v1::HostTrust) -> bool,
        counts: impl Fn(&v1::HostTrust) -> bool,
    ) -> Result<(), RotationError> {
        let status = self.status().await?;
        let waiting = status.hosts.into_iter().filter(|host| counts(host) && !is_ready(host));
        let waiting: Vec<_> = waiting.map(|host| host.node).collect();
        let is_rotating = status.phase != "steady";
        if waiting.is_empty() || !is_rotating {
            Ok(())
        } else {
            Err(RotationError::Waiting(waiting.join(", ")))
        }
    }
}

/// Records what `node` holds.
///
/// # Errors
/// The database fails.
pub async fn confirm(
    records: &RootRecords,
    node: &NodeName,
    roots: &[Fingerprint],
    issuers: &[Fingerprint],
) -> Result<(), RegistryError> {
    let hexadecimal = |list: &[Fingerprint]| list.iter().map(|root| HEXLOWER.encode(root)).collect();
    let wanted = StoredConfirmation { roots: hexadecimal(roots), issuers: hexadecimal(issuers) };
    let key = format!("{CONFIRMED}{node}");
    loop {
        let entry = records.store.get(&key).await?;
        let condition = match &entry {
            Some(entry) if decode::<StoredConfirmation>(entry)? == wanted => return Ok(()),
            Some(entry) => Condition::Unchanged(key.clone(), entry.revision),
            None => Condition::Absent(key.clone()),
        };
        let transaction = Transaction { conditions: vec![condition], changes: vec![put(&key, &wanted)?] };
        if let Outcome::Applied(_) = records.store.commit(transaction).await? {
            return Ok(());
        }
    }
}
