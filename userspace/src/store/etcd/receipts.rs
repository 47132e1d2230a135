//! Receipts: how a server finds out whether a transaction was applied whose answer was lost.
//!
//! Each transaction writes a number of its own into a place that no other one uses at the same time. When it is sent
//! again and its conditions do not hold any more, the place tells whether that is its own doing.

use std::sync::{Mutex, PoisonError};

use data_encoding::HEXLOWER;

/// The places of one server.
pub struct Receipts {
    prefix: String,
    /// Tells this process from others that had the same name.
    process: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    numbers: u64,
    places: u32,
    free: Vec<u32>,
}

/// A place with what is to be written into it.
pub struct Receipt {
    place: u32,
    /// Key in the cluster.
    pub key: String,
    /// Never used before.
    pub value: String,
}

impl Receipts {
    /// Places below `prefix`.
    pub fn new(prefix: String) -> Self {
        let mut process = [0; 16];
        // Without randomness the number of the process has to do: receipts are compared with those of the same name.
        if aws_lc_rs::rand::fill(&mut process).is_err() {
            process[..4].copy_from_slice(&std::process::id().to_le_bytes());
        }
        Self { prefix, process: HEXLOWER.encode(&process), state: Mutex::default() }
    }

    /// A place that nobody else has. It is lost unless it is given back.
    pub fn take(&self) -> Receipt {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.numbers += 1;
        let place = state.free.pop().unwrap_or_else(|| {
            state.places += 1;
            state.places
        });
        let (key, value) =
            (format!("{}/{place}", self.prefix), format!("{}-{}", self.process, state.numbers));
        Receipt { place, key, value }
    }

    /// Lets others have the place.
    pub fn give_back(&self, receipt: Receipt) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).free.push(receipt.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_by_one_at_a_time_and_numbers_once() {
        let receipts = Receipts::new("r".to_owned());
        let (first, second) = (receipts.take(), receipts.take());
        assert_eq!((first.key.as_str(), second.key.as_str()), ("r/1", "r/2"));
        let number = first.value.clone();
        receipts.give_back(first);
        let third = receipts.take();
        assert_eq!(third.key, "r/1");
        assert!(third.value != number && third.value != second.value);
        assert_ne!(Receipts::new("r".to_owned()).take().value, number, "another process");
    }
}
