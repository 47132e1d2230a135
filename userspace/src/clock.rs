//! Waiting for a time of day.

use std::time::{Duration, SystemTime};

/// How long the clock may have been set, or the machine have slept, before that is noticed.
const CHECK: Duration = Duration::from_secs(30);

/// Far from busy where the time is almost there.
const SHORTEST: Duration = Duration::from_millis(10);

/// Looks at the clock again every now and then: it may be set, and the machine may sleep.
pub async fn sleep_until(due: SystemTime) {
    while let Some(pause) = pause(due, SystemTime::now()) {
        tokio::time::sleep(pause).await;
    }
}

/// Until the clock is looked at again; `None` when it is time.
fn pause(due: SystemTime, now: SystemTime) -> Option<Duration> {
    let left = due.duration_since(now).ok()?;
    Some(left.clamp(SHORTEST, CHECK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_outlasts_a_clock_that_is_set() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        assert_eq!(pause(now + hour, now), Some(CHECK));
        assert_eq!(pause(now + hour, now + 2 * hour), None);
        assert_eq!(pause(now + hour, now - hour), Some(CHECK));
        let second = Duration::from_secs(1);
        assert_eq!(pause(now + second, now), Some(second));
    }
}
