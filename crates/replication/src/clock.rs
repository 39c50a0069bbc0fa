//! The clocks of a host. No other module of a host reads a clock.

use std::time::{SystemTime, UNIX_EPOCH};

use flotilla_failpoints::{Place, number};
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, including suspend; never goes back.
#[must_use]
pub fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Milliseconds since the Unix epoch by the wall clock, which may jump.
#[must_use]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    now.saturating_add_signed(number(Place::ClockWall).unwrap_or(0))
}
