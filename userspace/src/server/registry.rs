//! What the server has on record: join tokens, hosts and their reports.
//!
//! Keys of the store: `tokens/HASH`, `nodes/NODE` (the key of each host), `hosts/NODE` (its
//! catalog entry), [`addresses/IP`](super::addresses), [those of servers](super::servers) and [those of the policy](super::records). Secrets of tokens are kept as SHA-256 only.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::addresses::{Claims, ToldContests};
use super::plaintext;
use super::records::{HOSTS, NODES, REMOVED, RUNNING, SERVERS, decode, put, read};
use crate::api::{unix_seconds, v1};
use crate::catalog::Report;
use crate::identity::token::sha256;
use crate::identity::{IdentityError, JoinToken, NameError, NodeName};
use crate::seal::SealError;
use crate::store::{Change, Condition, Entry, Outcome, Store, StoreError, Transaction};

const TOKENS: &str = "tokens/";
/// How long an expired token is remembered, so that the answer to it can say more than "unknown".
const TOKEN_MEMORY: Duration = Duration::from_secs(24 * 3600);
/// What was seen so short a time ago need not be seen again; every server tells of the same departures.
const JUST_NOW: u64 = 2;
/// How long a server is remembered that is gone, in seconds. Until then agents try its addresses, too.
const SERVER_MEMORY: u64 = 24 * 3600;
/// Deletions in one transaction; etcd takes 128 operations unless told otherwise.
const BATCH: usize = 100;
const NEW_TOKEN: &str = "make a new one on a server with `murmesh token create`";

/// Why a request to the registry is refused, in words for the operator of the host that asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such token.
    #[error("this server does not know the join token; {NEW_TOKEN}")]
    UnknownToken,
    /// Its time is over.
    #[error("the join token has expired; {NEW_TOKEN}")]
    ExpiredToken,
    /// Another host, or another key, has used it.
    #[error("the join token was already used by host {0}; each host needs its own: {NEW_TOKEN}")]
    UsedToken(String),
    /// Another key is registered under the name.
    #[error(
        "host {0} is already a member with another key; join under another name (--node), or with the data directory that it joined with"
    )]
    NodeTaken(NodeName),
    /// The host never joined.
    #[error(
        "host {0} is not a member of this mesh; join with a token (--join), made by `murmesh token create`"
    )]
    NotJoined(NodeName),
    /// A record cannot be understood.
    #[error("the record {0} in the server's database is damaged")]
    Damaged(String),
    /// The database fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority fails.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A name is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A secret cannot be sealed or opened.
    #[error(transparent)]
    Seal(#[from] SealError),
}

#[derive(Serialize, Deserialize)]
struct StoredToken {
    expires_at: u64,
    used_by: Option<StoredNode>,
}

/// `key` is the SHA-256 of the public key, in hexadecimal.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredNode {
    node: String,
    key: String,
}

/// The records, over any store.
pub struct Registry {
    store: Arc<dyn Store>,
    told: ToldContests,
}

/// What the registry made of a report.
pub struct Recorded {
    /// From here on the catalog has it.
    pub revision: u64,
    /// The reported addresses that another host claimed first: the catalog has them as the other's only.
    pub contested: Vec<IpAddr>,
}

impl Registry {
    /// The registry in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, told: ToldContests::default() }
    }

    /// Records a token by the hash of its secret.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn add_token(&self, secret: &[u8], expires_at: SystemTime) -> Result<(), RegistryError> {
        let token = StoredToken { expires_at: unix_seconds(expires_at), used_by: None };
        let changes = vec![put(&token_key(secret), &token)?];
        self.store.commit(Transaction { conditions: vec![], changes }).await?;
        Ok(())
    }

    /// Forgets tokens that expired, and servers that were last seen, a day before `now`. Returns whether `fence` held
    /// all the time.
    ///
    /// # Errors
    /// When a record is damaged or the store fails.
    pub async fn keep_house(&self, fence: &Condition, now: SystemTime) -> Result<bool, RegistryError> {
        let (now, mut stale) = (unix_seconds(now), Vec::new());
        for entry in self.store.list(TOKENS).await?.1 {
            if decode::<StoredToken>(&entry)?.expires_at + TOKEN_MEMORY.as_secs() < now {
                stale.push(Change::Delete(entry.key));
            }
        }
        for entry in self.store.list(SERVERS).await?.1 {
            let name = entry.key.trim_start_matches(SERVERS);
            let runs = self.store.get(&format!("{RUNNING}{name}")).await?.is_some();
            if !runs && decode_server(&entry)?.last_seen + SERVER_MEMORY < now {
                stale.push(Change::Delete(entry.key));
            }
        }
        for batch in stale.chunks(BATCH) {
            let transaction = Transaction { conditions: vec![fence.clone()], changes: batch.to_vec() };
            if self.store.commit(transaction).await? == Outcome::Conflict {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Records where agents find this server. `alone` forgets all others: with this store there can be none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn add_server(&self, server: &v1::Server, alone: bool) -> Result<(), RegistryError> {
        let key = format!("{SERVERS}{}", server.node);
        let mut changes = vec![Change::Put(key.clone(), server.encode_to_vec())];
        if alone {
            let others = self.store.list(SERVERS).await?.1.into_iter().filter(|entry| entry.key != key);
            changes.extend(others.map(|entry| Change::Delete(entry.key)));
        }
        self.store.commit(Transaction { conditions: vec![], changes }).await?;
        Ok(())
    }

    /// Records that the server `name` was there until now.
    ///
    /// # Errors
    /// When a record is damaged or the store fails.
    pub async fn server_seen(&self, name: &str) -> Result<(), RegistryError> {
        let Some(entry) = self.store.get(&format!("{SERVERS}{name}")).await? else { return Ok(()) };
        let (server, now) = (decode_server(&entry)?, unix_seconds(SystemTime::now()));
        if server.last_seen + JUST_NOW >= now {
            return Ok(());
        }
        let changed = v1::Server { last_seen: now, ..server }.encode_to_vec();
        let conditions = vec![Condition::Unchanged(entry.key.clone(), entry.revision)];
        self.store.commit(Transaction { conditions, changes: vec![Change::Put(entry.key, changed)] }).await?;
        Ok(())
    }

    /// Uses up the token and registers the host's key, both or neither. The host that used a token
    /// may use it again with the same name and key, in case the answer was lost, for as long as it is a member.
    /// Returns [what tells the membership](crate::identity::authority::Issue::joined_after) from earlier ones.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn join(
        &self,
        secret: &[u8],
        node: &NodeName,
        public_key: &[u8],
    ) -> Result<SystemTime, RegistryError> {
        let caller = StoredNode { node: node.to_string(), key: key_hash(public_key) };
        loop {
            let (removed, condition) = self.removed(node).await?;
            if self.try_join(secret, node, &caller, condition).await? != Outcome::Conflict {
                return Ok(removed);
            }
        }
    }

    /// When `node` was last removed, the epoch if it never was, and that this is still so. It is to be read before the
    /// host's own record, which a removal deletes: who has that later has stayed a member meanwhile, or gets a
    /// certificate that is refused.
    async fn removed(&self, node: &NodeName) -> Result<(SystemTime, Condition), RegistryError> {
        let key = format!("{REMOVED}{node}");
        let Some(entry) = self.store.get(&key).await? else {
            return Ok((UNIX_EPOCH, Condition::Absent(key)));
        };
        let host = v1::RemovedHost::decode(entry.value.as_slice()).ok();
        let at = host.and_then(|host| UNIX_EPOCH.checked_add(Duration::from_secs(host.removed_at)));
        let at = at.ok_or_else(|| RegistryError::Damaged(key.clone()))?;
        Ok((at, Condition::Unchanged(key, entry.revision)))
    }

    async fn try_join(
        &self,
        secret: &[u8],
        node: &NodeName,
        caller: &StoredNode,
        removed: Condition,
    ) -> Result<Outcome, RegistryError> {
        let token_key = token_key(secret);
        let token = read::<StoredToken>(&*self.store, &token_key).await?;
        let (entry, token) = token.ok_or(RegistryError::UnknownToken)?;
        let node_key = format!("{NODES}{node}");
        let known = read::<StoredNode>(&*self.store, &node_key).await?;
        let is_member = known.as_ref().is_some_and(|(_, known)| known == caller);
        match token.used_by {
            // The record of a token outlives the removal of its host, which it must not let in again.
            Some(user) if user == *caller && is_member => return Ok(Outcome::Applied(entry.revision)),
            Some(user) => return Err(RegistryError::UsedToken(user.node)),
            None if token.expires_at <= unix_seconds(SystemTime::now()) => {
                return Err(RegistryError::ExpiredToken);
            }
            None => {}
        }
        let used = StoredToken { expires_at: token.expires_at, used_by: Some(caller.clone()) };
        let mut conditions = vec![Condition::Unchanged(token_key.clone(), entry.revision), removed];
        let mut changes = vec![put(&token_key, &used)?];
        match known {
            Some((_, known)) if known != *caller => return Err(RegistryError::NodeTaken(node.clone())),
            Some((entry, _)) => conditions.push(Condition::Unchanged(node_key, entry.revision)),
            None => {
                changes.push(put(&node_key, caller)?);
                changes.push(put_host(node, None));
                conditions.push(Condition::Absent(node_key));
            }
        }
        Ok(self.store.commit(Transaction { conditions, changes }).await?)
    }

    /// Whether `node` is a member now, whatever this server has heard of.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn is_member(&self, node: &NodeName) -> Result<bool, RegistryError> {
        Ok(self.store.get(&format!("{NODES}{node}")).await?.is_some())
    }

    /// Whether the certificate of `node` may be renewed for this key: only the one it joined with. Returns what
    /// [`Self::join`] does.
    ///
    /// # Errors
    /// A refusal, or a failure of the store.
    pub async fn authorise_renewal(
        &self,
        node: &NodeName,
        public_key: &[u8],
    ) -> Result<SystemTime, RegistryError> {
        let (removed, _) = self.removed(node).await?;
        match read::<StoredNode>(&*self.store, &format!("{NODES}{node}")).await? {
            Some((_, known)) if known.key == key_hash(public_key) => Ok(removed),
            Some(_) => Err(RegistryError::NodeTaken(node.clone())),
            None => Err(RegistryError::NotJoined(node.clone())),
        }
    }

    /// Records what `node` says about itself, but for addresses that another host claimed first.
    ///
    /// # Errors
    /// When the host never joined, or the store fails.
    pub async fn report(&self, node: &NodeName, report: &Report) -> Result<Recorded, RegistryError> {
        loop {
            let (entry, host) = self.host(node).await?;
            let before = host.report.as_ref().map_or(&[][..], |report| &report.addresses);
            let claims = Claims::settle(&*self.store, node, before, &report.addresses).await?;
            let stored = v1::HostReport::from(&Report { addresses: claims.owned, ..report.clone() });
            let mut transaction = claims.transaction;
            let outcome = if transaction.changes.is_empty() && host.report.as_ref() == Some(&stored) {
                Outcome::Applied(entry.revision)
            } else {
                transaction.conditions.push(Condition::Unchanged(entry.key, entry.revision));
                transaction.changes.push(put_host(node, Some(stored)));
                self.store.commit(transaction).await?
            };
            if let Outcome::Applied(revision) = outcome
                && !claims.unfinished
            {
                self.told.tell(node, &claims.contested);
                return Ok(Recorded { revision, contested: claims.contested.into_keys().collect() });
            }
        }
    }

    /// Records what `node` has seen of connections in clear.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn plaintext(&self, node: &NodeName, report: v1::PlaintextReport) -> Result<(), RegistryError> {
        plaintext::record(&self.store, node, report).await
    }

    /// Records that `node` was heard of until now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn seen(&self, node: &NodeName) -> Result<(), RegistryError> {
        let (entry, host) = self.host(node).await?;
        if host.last_seen + JUST_NOW >= unix_seconds(SystemTime::now()) {
            return Ok(());
        }
        // On a conflict somebody has just recorded something newer.
        let conditions = vec![Condition::Unchanged(entry.key, entry.revision)];
        self.store.commit(Transaction { conditions, changes: vec![put_host(node, host.report)] }).await?;
        Ok(())
    }

    async fn host(&self, node: &NodeName) -> Result<(Entry, v1::Host), RegistryError> {
        let entry = self.store.get(&format!("{HOSTS}{node}")).await?;
        let entry = entry.ok_or_else(|| RegistryError::NotJoined(node.clone()))?;
        let host = v1::Host::decode(entry.value.as_slice());
        let host = host.map_err(|_| RegistryError::Damaged(entry.key.clone()))?;
        Ok((entry, host))
    }
}

fn decode_server(entry: &Entry) -> Result<v1::Server, RegistryError> {
    v1::Server::decode(entry.value.as_slice()).map_err(|_| RegistryError::Damaged(entry.key.clone()))
}

fn token_key(secret: &[u8]) -> String {
    format!("{TOKENS}{}", HEXLOWER.encode(&JoinToken::secret_hash(secret)))
}

fn key_hash(public_key: &[u8]) -> String {
    HEXLOWER.encode(&sha256(public_key))
}

/// The catalog entry of a host that was heard of just now.
fn put_host(node: &NodeName, report: Option<v1::HostReport>) -> Change {
    let last_seen = unix_seconds(SystemTime::now());
    let host = v1::Host { node: node.to_string(), report, last_seen, ..v1::Host::default() };
    Change::Put(format!("{HOSTS}{node}"), host.encode_to_vec())
}
