//! How long to wait before trying again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);

/// Grows from 0.2 to 5 seconds; each pause is drawn between half of it and all of it, so that hosts that
/// lost the same server do not return together.
pub struct Backoff(Duration);

impl Backoff {
    pub fn new() -> Self {
        Self(FIRST)
    }

    /// Waits, longer each time.
    pub async fn pause(&mut self) {
        let pause = self.0.mul_f64(0.75 + 0.25 * jitter());
        self.0 = LONGEST.min(self.0 * 2);
        tokio::time::sleep(pause).await;
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.0 = FIRST;
    }
}

/// A number that is another one at each start, for a first choice among a few.
pub fn random_index() -> usize {
    let mut bytes = [0; 2];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u16::from_ne_bytes(bytes).into(),
        Err(_) => 0,
    }
}

/// A number drawn evenly between −1 and 1; 0 if the operating system gives no randomness.
pub fn jitter() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(i32::from_ne_bytes(bytes)) / f64::from(i32::MAX),
        Err(_) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::identity::Identity;
    use crate::identity::fixture;

    const AGENTS: u32 = 1000;

    /// How many of `AGENTS` come in the busiest of the slices of time that `when` spreads them over.
    fn busiest(slice: Duration, when: impl Fn(f64) -> SystemTime) -> u32 {
        let first = when(-1.0);
        let mut slices = HashMap::<u128, u32>::new();
        for _ in 0..AGENTS {
            let after = when(jitter()).duration_since(first).unwrap_or_default();
            *slices.entry(after.as_millis() / slice.as_millis()).or_default() += 1;
        }
        slices.into_values().max().unwrap_or_default()
    }

    #[test]
    fn a_thousand_agents_that_joined_at_once_do_not_renew_at_once() {
        let identity = fixture::host(&fixture::authority(), "here");
        // Over 720 seconds 1.4 come in a second on average.
        assert!(busiest(Duration::from_secs(1), |jitter| identity.renew_at(jitter)) <= 12);
        let now = SystemTime::now();
        // When another root signs: over 30 seconds, 33 in a second.
        assert!(busiest(Duration::from_secs(1), |jitter| Identity::renew_soon(&identity, now, jitter)) <= 75);
    }
}
