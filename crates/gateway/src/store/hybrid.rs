//! The time of day by the clocks of the shards.
//!
//! Shards never go back: when the wall clocks of the nodes were ahead once, the shards stay there until wall clocks have caught up. Whoever says when a
//! command expires must say it in the shards' time, or everything it sends has expired already.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use flotilla_types::Timestamp;

/// The latest time that any shard was heard to be at.
#[derive(Debug, Default)]
pub(super) struct HybridNow(AtomicU64);

impl HybridNow {
    /// Unix milliseconds: the wall clock's, or the shards', whichever is later.
    pub(super) fn now_ms(&self, wall_ms: u64) -> u64 {
        wall_ms.max(self.0.load(Relaxed))
    }

    /// A shard gave this timestamp.
    pub(super) fn heard(&self, timestamp: Timestamp) {
        self.heard_ms(timestamp.millis());
    }

    /// A shard said that it is so late, in Unix milliseconds.
    pub(super) fn heard_ms(&self, clock_ms: u64) {
        self.0.fetch_max(clock_ms, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_late_as_the_latest_of_all_clocks() {
        let hybrid = HybridNow::default();
        assert_eq!(hybrid.now_ms(100), 100);
        hybrid.heard(Timestamp::from_millis(500));
        hybrid.heard_ms(300);
        assert_eq!((hybrid.now_ms(100), hybrid.now_ms(600)), (500, 600));
    }
}
