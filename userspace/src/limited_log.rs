//! Log lines that others can cause at will, so that nobody can fill the disk with them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long nothing is logged after a line.
const INTERVAL: Duration = Duration::from_secs(1);

/// Permits for one kind of line: the first at once, then one a second.
#[derive(Debug)]
pub struct LimitedLog(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    withheld: u64,
}

impl LimitedLog {
    /// Nothing was logged yet.
    pub const fn new() -> Self {
        Self(Mutex::new(State { last: None, withheld: 0 }))
    }

    /// `Some` if a line may be written now, with the number of those withheld since the last one.
    pub fn permit(&self) -> Option<u64> {
        self.permit_at(Instant::now())
    }

    fn permit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            state.withheld += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_comes_at_once_and_then_one_a_second_with_a_count() {
        let (log, start) = (LimitedLog::new(), Instant::now());
        let at = |milliseconds| log.permit_at(start + Duration::from_millis(milliseconds));
        assert_eq!(at(0), Some(0));
        assert_eq!([at(1), at(500), at(999)], [None; 3]);
        assert_eq!(at(1000), Some(3));
        assert_eq!(at(1001), None);
        assert_eq!(at(5000), Some(1));
        assert_eq!(at(9000), Some(0));
    }
}
