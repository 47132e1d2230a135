//! The store of several servers: an etcd cluster.
//!
//! Everything of a mesh is below one prefix. A revision of the store is one of the cluster, so it grows by more than
//! one between two transactions. A member that is gone is left for the next one; see [`Members`] for how long, and
//! [`Receipts`] for why a transaction may be sent again.

mod members;
mod receipts;
mod session;
#[cfg(test)]
pub mod testing;
mod transaction;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use etcd_client::{Certificate, GetOptions, Identity, KeyValue, TlsOptions};
use tokio::sync::watch as channel;
use tokio::task::AbortHandle;

use super::{Entry, Outcome, Store, StoreError, Transaction, Watch};
use members::Members;
use receipts::Receipts;
use session::Session;
use transaction::Prepared;
use watch::EtcdWatch;

/// Records of a cluster grow with the mesh; the client's own limit of 4 MiB is too low for a list of them.
const MAX_RESPONSE_BYTES: usize = 256 << 20;

/// Where the cluster is, and who asks.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// URLs of the members, `http://HOST:PORT` or `https://HOST:PORT`; the first is preferred.
    pub endpoints: Vec<String>,
    /// What all keys of this mesh begin with.
    pub prefix: String,
    /// How members are known, and this server to them.
    pub tls: EtcdTls,
    /// Name of this server, no other's.
    pub name: String,
}

/// PEM files for connections to `https://` members.
#[derive(Debug, Clone, Default)]
pub struct EtcdTls {
    /// Certificates of the authorities that members are trusted by.
    pub ca: Option<PathBuf>,
    /// This server's certificate chain and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A store in an etcd cluster.
pub struct EtcdStore {
    members: Arc<Members>,
    session: Arc<Session>,
    receipts: Receipts,
    prefix: String,
    keeper: AbortHandle,
}

impl EtcdStore {
    /// A store in the cluster, which is not asked for anything yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// When an endpoint or a file for TLS is not usable.
    pub async fn open(options: &EtcdOptions) -> Result<Self, StoreError> {
        let members = Arc::new(Members::new(&options.endpoints, tls(&options.tls)?).await?);
        let session = Arc::new(Session::new(members.clone()));
        let keeper = tokio::spawn(session.clone().keep()).abort_handle();
        let prefix = format!("{}/data/", options.prefix.trim_end_matches('/'));
        let receipts = format!("{}/receipts/{}", options.prefix.trim_end_matches('/'), options.name);
        Ok(Self { members, session, receipts: Receipts::new(receipts), prefix, keeper })
    }

    fn entry(&self, found: &KeyValue) -> Result<Entry, StoreError> {
        let key = found.key_str().map_err(|error| StoreError::Database(error.to_string()))?;
        let key = key.strip_prefix(&self.prefix).unwrap_or(key).to_owned();
        Ok(Entry { key, value: found.value().to_vec(), revision: found.mod_revision().cast_unsigned() })
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

#[tonic::async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = &format!("{}{key}", self.prefix);
        let answer =
            self.members.call(|client| async move { client.kv_client().get(key.as_str(), None).await });
        answer.await?.kvs().first().map(|found| self.entry(found)).transpose()
    }

    async fn list(&self, prefix: &str) -> Result<(u64, Vec<Entry>), StoreError> {
        let prefix = &format!("{}{prefix}", self.prefix);
        let all = || Some(GetOptions::new().with_prefix());
        let answer = self.members.call(|client| async move {
            let mut client = client.kv_client().max_decoding_message_size(MAX_RESPONSE_BYTES);
            client.get(prefix.as_str(), all()).await
        });
        let answer = answer.await?;
        let entries = answer.kvs().iter().map(|found| self.entry(found)).collect::<Result<_, _>>()?;
        Ok((transaction::revision(answer.header()), entries))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let lease = if transaction.announces() { Some(self.session.lease().await?) } else { None };
        let receipt = self.receipts.take();
        let prepared = &Prepared::new(&self.prefix, &transaction, lease, &receipt);
        let answer = self.members.call(|client| async move { client.kv_client().txn(prepared.txn()).await });
        let outcome = prepared.outcome(&answer.await?);
        // Only now is it known that nobody will write into its place any more.
        self.receipts.give_back(receipt);
        Ok(outcome)
    }

    fn watch(&self, revision: u64) -> Box<dyn Watch> {
        Box::new(EtcdWatch::new(self.members.clone(), self.prefix.clone(), revision))
    }

    fn sessions(&self) -> channel::Receiver<u64> {
        self.session.numbers()
    }

    fn answers(&self) -> channel::Receiver<bool> {
        self.session.answers()
    }

    async fn close(&self) {
        self.keeper.abort();
        self.session.end().await;
    }
}

fn tls(files: &EtcdTls) -> Result<Option<TlsOptions>, StoreError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| StoreError::Settings(format!("{}: {error}", path.display())))
    };
    if files.ca.is_none() && files.client.is_none() {
        return Ok(None);
    }
    let mut tls = TlsOptions::new();
    if let Some(ca) = &files.ca {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    if let Some((certificate, key)) = &files.client {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(Some(tls))
}
