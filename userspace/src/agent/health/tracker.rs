//! How many results of a check in a row decide.

use crate::policy::Check;

/// What an instance's checks have come to. It is well until they say otherwise: somebody listens.
#[derive(Debug, Default)]
pub struct Tracker {
    failing: bool,
    /// Results in a row that speak against what is held for true.
    against: u32,
}

/// What becomes of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// It fails now, for this reason.
    Failing(String),
    /// It is well again.
    Well,
}

impl Tracker {
    /// Of an instance of which it is known whether it fails.
    pub fn new(failing: bool) -> Self {
        Self { failing, against: 0 }
    }

    /// Takes a result, and tells if that was the one that decides.
    pub fn take(&mut self, check: &Check, result: Result<(), String>) -> Option<Turn> {
        if result.is_err() == self.failing {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if self.failing { check.successes } else { check.failures };
        if self.against < needed {
            return None;
        }
        *self = Self::new(result.is_err());
        Some(result.map_or_else(Turn::Failing, |()| Turn::Well))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Probe;

    #[test]
    fn only_enough_in_a_row_decide() {
        let check = Check { failures: 3, successes: 2, ..Check::from(Probe::Tcp) };
        let mut tracker = Tracker::default();
        let mut take = |results: &str| -> Vec<Option<Turn>> {
            let result = |bad: char| if bad == '-' { Err("refused".to_owned()) } else { Ok(()) };
            results.chars().map(|bad| tracker.take(&check, result(bad))).collect()
        };
        assert!(take("+--+--").iter().all(Option::is_none));
        assert_eq!(take("-"), [Some(Turn::Failing("refused".to_owned()))]);
        assert!(take("-+-+").iter().all(Option::is_none));
        assert_eq!(take("++"), [Some(Turn::Well), None]);
    }
}
