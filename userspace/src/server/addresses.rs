//! Who owns which address: the host that claimed it first, for as long as it claims it.
//!
//! Keys of the store: `addresses/IP`, whose value is the owner's name. They change together with the owner's
//! catalog entry, which holds no address that is not its own: a host that reports another's address, by
//! mistake or on purpose, changes nothing for the other. Many addresses change in several steps, for each of which that
//! holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use super::records::HOSTS;
use super::registry::RegistryError;
use crate::identity::NodeName;
use crate::limited_log::LimitedLog;
use crate::store::{Change, Condition, Store, Transaction};

/// A host can make the same news again and again, by claiming and letting go.
static CONTESTED: LimitedLog = LimitedLog::new();

const ADDRESSES: &str = "addresses/";
/// Changes in one transaction; etcd takes 128 operations unless told otherwise.
const BATCH: usize = 100;

/// What becomes of the addresses that a host reports.
#[derive(Debug, Default)]
pub struct Claims {
    /// Those that it owns once [`Self::transaction`] is applied, each once, in the order of the report.
    pub owned: Vec<IpAddr>,
    /// Those that another host claimed first, with that host.
    pub contested: BTreeMap<IpAddr, NodeName>,
    /// Takes what nobody owns and lets go of what is not claimed any more. What is let go was read without
    /// a condition of its own: the caller adds one on the host's catalog entry, which every report changes.
    pub transaction: Transaction,
    /// There is more to take or to let go than goes into one transaction: settle again after it.
    pub unfinished: bool,
}

impl Claims {
    /// Settles the claim of `node` on `wanted`, where its catalog entry has the addresses `before`.
    ///
    /// # Errors
    /// When a record is damaged or the store fails.
    pub async fn settle(
        store: &dyn Store,
        node: &NodeName,
        before: &[String],
        wanted: &[IpAddr],
    ) -> Result<Self, RegistryError> {
        let (mut claims, mut seen) = (Self::default(), BTreeSet::new());
        // First, so that the host never has more than it may have.
        let left = claims.let_go(store, node, before, wanted).await?;
        for address in wanted.iter().filter(|address| seen.insert(**address)) {
            let key = format!("{ADDRESSES}{address}");
            let condition = match owner(store, &key).await? {
                Some((owner, _)) if owner == *node => None,
                Some((owner, _)) if is_member(store, &owner).await? => {
                    claims.contested.insert(*address, owner);
                    continue;
                }
                Some((_, revision)) => Some(Condition::Unchanged(key.clone(), revision)),
                None => Some(Condition::Absent(key.clone())),
            };
            if let Some(condition) = condition {
                if !claims.has_room() {
                    continue;
                }
                claims.transaction.conditions.push(condition);
                claims.transaction.changes.push(Change::Put(key, node.as_str().into()));
            }
            claims.owned.push(*address);
        }
        claims.owned.extend(left);
        Ok(claims)
    }

    /// Lets go of what is not wanted any more; returns what there is no room for yet.
    async fn let_go(
        &mut self,
        store: &dyn Store,
        node: &NodeName,
        before: &[String],
        wanted: &[IpAddr],
    ) -> Result<Vec<IpAddr>, RegistryError> {
        let (wanted, mut left): (BTreeSet<_>, _) =
            (wanted.iter().map(ToString::to_string).collect(), Vec::new());
        for address in before.iter().filter(|address| !wanted.contains(*address)) {
            let key = format!("{ADDRESSES}{address}");
            let is_ours = owner(store, &key).await?.is_some_and(|(owner, _)| owner == *node);
            if is_ours && self.has_room() {
                self.transaction.changes.push(Change::Delete(key));
            } else if is_ours {
                left.extend(address.parse::<IpAddr>());
            }
        }
        Ok(left)
    }

    fn has_room(&mut self) -> bool {
        self.unfinished |= self.transaction.changes.len() >= BATCH;
        !self.unfinished
    }
}

/// With the revision at which it became the owner.
async fn owner(store: &dyn Store, key: &str) -> Result<Option<(NodeName, u64)>, RegistryError> {
    let Some(entry) = store.get(key).await? else { return Ok(None) };
    let owner: Option<NodeName> = String::from_utf8(entry.value).ok().and_then(|name| name.parse().ok());
    owner.map(|owner| Some((owner, entry.revision))).ok_or_else(|| RegistryError::Damaged(key.to_owned()))
}

/// What a host claimed that was removed is free.
async fn is_member(store: &dyn Store, node: &NodeName) -> Result<bool, RegistryError> {
    Ok(store.get(&format!("{HOSTS}{node}")).await?.is_some())
}

/// Which contests the log has told of. Reports are repeated while something is contested; the log is not.
#[derive(Default)]
pub struct ToldContests(Mutex<HashMap<NodeName, BTreeMap<IpAddr, NodeName>>>);

impl ToldContests {
    /// Warns of what `claimant` cannot have now, as far as that is new.
    pub fn tell(&self, claimant: &NodeName, contested: &BTreeMap<IpAddr, NodeName>) {
        let news = self.news(claimant, contested);
        if !news.is_empty()
            && let Some(withheld) = CONTESTED.permit()
        {
            warn!(host = %claimant, addresses = ?news, withheld, "a host reports addresses that others claimed first; they stay with those");
        }
    }

    /// As `ADDRESS of OWNER`.
    fn news(&self, claimant: &NodeName, contested: &BTreeMap<IpAddr, NodeName>) -> Vec<String> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if contested.is_empty() {
            told.remove(claimant)
        } else {
            told.insert(claimant.clone(), contested.clone())
        };
        let before = before.unwrap_or_default();
        let new = contested.iter().filter(|(address, owner)| before.get(address) != Some(owner));
        new.map(|(address, owner)| format!("{address} of {owner}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contest_is_news_once_and_again_after_it_ended_or_moved() {
        let told = ToldContests::default();
        let claimant: NodeName = "late".parse().unwrap();
        let by = |owner: &str| BTreeMap::from([("10.0.0.1".parse().unwrap(), owner.parse().unwrap())]);
        assert_eq!(told.news(&claimant, &by("first")), ["10.0.0.1 of first"]);
        assert!(told.news(&claimant, &by("first")).is_empty());
        assert_eq!(told.news(&claimant, &by("second")), ["10.0.0.1 of second"]);
        assert!(told.news(&claimant, &BTreeMap::new()).is_empty());
        assert_eq!(told.news(&claimant, &by("second")), ["10.0.0.1 of second"]);
    }
}
