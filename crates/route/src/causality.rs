//! Causal order of commands across shards: what a client has seen is earlier than what it writes then.
//!
//! Invariant: no time that is far ahead of the wall clock is passed on. A shard that once ran under a wrong
//! clock stays ahead of all others, and must not drag them along.

use flotilla_types::Timestamp;

/// How far ahead of the wall clock a time may be that is passed on, in milliseconds: as far as clocks of nodes
/// may differ at all.
pub const AHEAD_MS_MAX: u64 = 500;

/// The latest hybrid time that this sender has received from any shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard(Timestamp);

impl Heard {
    /// Records a shard's time from its answer.
    pub fn observe(&mut self, clock: Timestamp, wall_ms: u64) {
        if is_plausible(clock, wall_ms) {
            self.0 = self.0.max(clock);
        }
    }

    /// The time that the next command must follow; zero for none.
    #[must_use]
    pub fn after(self, wall_ms: u64) -> Timestamp {
        // The wall clock may have been set back since.
        if is_plausible(self.0, wall_ms) { self.0 } else { Timestamp::ZERO }
    }
}

fn is_plausible(clock: Timestamp, wall_ms: u64) -> bool {
    clock.millis() <= wall_ms.saturating_add(AHEAD_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_time_of_any_shard_is_passed_on() {
        let mut heard = Heard::default();
        assert_eq!(heard.after(1_000), Timestamp::ZERO);
        for millis in [900, 1_200, 1_100] {
            heard.observe(Timestamp::from_millis(millis), 1_000);
        }
        assert_eq!(heard.after(1_000), Timestamp::from_millis(1_200));
    }

    #[test]
    fn a_time_far_ahead_of_the_wall_clock_is_not_passed_on() {
        let mut heard = Heard::default();
        heard.observe(Timestamp::from_millis(1_500), 1_000);
        heard.observe(Timestamp::from_millis(1_501), 1_000);
        heard.observe(Timestamp(u64::MAX), 1_000);
        assert_eq!(heard.after(1_000), Timestamp::from_millis(1_500), "from a shard that ran under a wrong clock");
        assert_eq!(heard.after(999), Timestamp::ZERO, "the wall clock was set back");
    }
}
