//! How records are kept: the keys of the store that more than one module knows, and their forms.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::registry::RegistryError;
use crate::store::{Change, Entry, Store};

/// Prefix of the catalog's entries, by node: `v1::Host`.
pub const HOSTS: &str = "hosts/";
/// Prefix of the rules, by number: `v1::Rule`.
pub const RULES: &str = "rules/";
/// Prefix of the named services, by name: `v1::Service`.
pub const SERVICES: &str = "services/";
/// Prefix of what hosts have seen of connections in clear, by node: `v1::PlaintextReport`.
pub const PLAINTEXT: &str = "plaintext/";
/// Prefix of hosts that were removed, by node: `v1::RemovedHost`.
pub const REMOVED: &str = "removed/";
/// Prefix of the keys of hosts, by node.
pub const NODES: &str = "nodes/";
/// What holds where no rule speaks: `v1::Defaults`.
pub const DEFAULTS: &str = "settings/policy";
/// Hosts that take no new connections: `v1::Drained`.
pub const DRAINED: &str = "settings/drained";
/// What every change of the policy changes too.
pub const CHANGES: &str = "settings/changes";
/// Prefix of the servers, by name: `v1::Server`.
pub const SERVERS: &str = "servers/";
/// Prefix of what running servers announce, by name; without a value.
pub const RUNNING: &str = "alive/servers/";
/// Prefix of what servers announce of the hosts that are connected to them: `SERVER/NODE`; without a value.
pub const CONNECTED: &str = "alive/hosts/";
/// What the leading server announces: its name, a space, and a number that nobody else has.
pub const LEADER: &str = "alive/leader";

/// Reads a record that is kept as JSON.
///
/// # Errors
/// When the store fails or the record is damaged.
pub async fn read<T: DeserializeOwned>(
    store: &dyn Store,
    key: &str,
) -> Result<Option<(Entry, T)>, RegistryError> {
    let Some(entry) = store.get(key).await? else { return Ok(None) };
    let value = decode(&entry)?;
    Ok(Some((entry, value)))
}

/// The change that keeps a record as JSON.
///
/// # Errors
/// When it has no form in JSON.
pub fn put(key: &str, record: &impl Serialize) -> Result<Change, RegistryError> {
    let value = serde_json::to_vec(record).map_err(|_| RegistryError::Damaged(key.to_owned()))?;
    Ok(Change::Put(key.to_owned(), value))
}

/// # Errors
/// When the record is damaged.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, RegistryError> {
    serde_json::from_slice(&entry.value).map_err(|_| RegistryError::Damaged(entry.key.clone()))
}
