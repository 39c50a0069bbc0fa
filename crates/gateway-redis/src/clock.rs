//! The wall clock, for relative expiries and `TIME`. The only place in this crate that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix milliseconds; 0 on a clock before 1970.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Unix microseconds; 0 on a clock before 1970.
pub(crate) fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
