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
