//! A transaction in etcd's terms.

use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, ResponseHeader, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use super::receipts::Receipt;
use crate::store::{Change, Condition, Outcome, Transaction};

/// A transaction that may be sent more than once, and is applied once at most if it has a condition.
pub struct Prepared {
    conditions: Vec<Compare>,
    changes: Vec<TxnOp>,
    receipt: String,
    key: String,
}

impl Prepared {
    /// What is announced is bound to `lease`.
    pub fn new(prefix: &str, transaction: &Transaction, lease: Option<i64>, receipt: &Receipt) -> Self {
        let conditions = transaction.conditions.iter().map(|condition| match condition {
            Condition::Absent(key) => Compare::create_revision(format!("{prefix}{key}"), CompareOp::Equal, 0),
            Condition::Unchanged(key, revision) => {
                Compare::mod_revision(format!("{prefix}{key}"), CompareOp::Equal, revision.cast_signed())
            }
        });
        let bound = || lease.map(|lease| PutOptions::new().with_lease(lease));
        let changes = transaction.changes.iter().map(|change| match change {
            Change::Put(key, value) => TxnOp::put(format!("{prefix}{key}"), value.as_slice(), None),
            Change::Announce(key, value) => TxnOp::put(format!("{prefix}{key}"), value.as_slice(), bound()),
            Change::Delete(key) => TxnOp::delete(format!("{prefix}{key}"), None),
        });
        let receipted = TxnOp::put(receipt.key.as_str(), receipt.value.as_str(), None);
        Self {
            conditions: conditions.collect(),
            changes: changes.chain([receipted]).collect(),
            receipt: receipt.value.clone(),
            key: receipt.key.clone(),
        }
    }

    /// In the form in which it is sent.
    pub fn txn(&self) -> Txn {
        let look = TxnOp::get(self.key.as_str(), Some(GetOptions::new()));
        Txn::new().when(self.conditions.clone()).and_then(self.changes.clone()).or_else([look])
    }

    /// What became of it, now or when it was sent before.
    pub fn outcome(&self, answer: &TxnResponse) -> Outcome {
        if answer.succeeded() {
            return Outcome::Applied(revision(answer.header()));
        }
        let receipts = answer.op_responses();
        let found = receipts.iter().find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first(),
            _ => None,
        });
        match found.filter(|found| found.value() == self.receipt.as_bytes()) {
            Some(ours) => Outcome::Applied(ours.mod_revision().cast_unsigned()),
            None => Outcome::Conflict,
        }
    }
}

/// The revision that an answer is of.
pub fn revision(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.revision().cast_unsigned())
}
