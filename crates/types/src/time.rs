//! Hybrid logical time: wall-clock milliseconds plus a counter, so that versions grow even if the wall clock
//! does not.
//!
//! After Kulkarni et al., "Logical Physical Clocks" (2014), with both parts in one number. Nothing here reads
//! a clock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A hybrid timestamp: Unix milliseconds in the upper 52 bits, a counter in the lower 12.
///
/// An entry with *n* commands takes *n* consecutive timestamps, so the timestamp of a command is also the
/// version of the records it writes: unique and strictly increasing within a shard. A leader that applies
/// more than 4,096 commands in a millisecond runs ahead of the wall clock, never back. Until the year 2039
/// the number stays below 2^53, and thus exact in JSON readers that use doubles.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Bits of the counter.
    pub const COUNTER_BITS: u32 = 12;
    /// Earlier than every event.
    pub const ZERO: Self = Self(0);

    /// The highest valid timestamp, 30,000 years from now. A later one in decoded bytes is damage; arithmetic
    /// on it could overflow.
    pub const MAX: Self = Self(1 << 62);

    /// The first timestamp of a wall-clock millisecond (milliseconds since the Unix epoch).
    #[must_use]
    pub const fn from_millis(wall_ms: u64) -> Self {
        Self(wall_ms << Self::COUNTER_BITS)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The timestamp `ordinal` steps later: the version that the command with that ordinal in its entry
    /// writes.
    #[must_use]
    pub const fn plus(self, ordinal: u64) -> Self {
        Self(self.0 + ordinal)
    }

    /// The timestamp of the next entry: later than `self`, and not earlier than the wall clock
    /// (milliseconds).
    #[must_use]
    pub fn advance(self, wall_ms: u64) -> Self {
        Self(Self::from_millis(wall_ms).0.max(self.0 + 1))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms+{}", self.millis(), self.0 & ((1 << Self::COUNTER_BITS) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_grow_when_the_wall_clock_stops_or_jumps_back() {
        let first = Timestamp::ZERO.advance(1_000);
        assert_eq!(first.millis(), 1_000);
        let stopped = first.advance(1_000);
        let back = stopped.advance(10);
        assert!(first < stopped && stopped < back);
        assert_eq!(back.advance(2_000), Timestamp::from_millis(2_000));
    }
}
