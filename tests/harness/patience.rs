//! How long tests wait, which depends on how fast the machine is.

use std::env;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The environment variable with the whole number that every time limit of the tests is multiplied by, for machines
/// that are slow by themselves: an emulated one takes ten times as long for everything.
pub const TIME_FACTOR: &str = "MURMESH_TEST_TIME_FACTOR";

static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let Ok(factor) = env::var(TIME_FACTOR) else { return 1 };
    factor.parse().unwrap_or_else(|_| panic!("{TIME_FACTOR}={factor} is no whole number"))
});

/// What `limit` comes to on this machine.
pub fn patience(limit: Duration) -> Duration {
    limit * *FACTOR
}

/// When `limit`, begun now, is over on this machine.
pub fn deadline(limit: Duration) -> Instant {
    Instant::now() + patience(limit)
}
