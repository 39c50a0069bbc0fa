//! Sequence numbers of one session in one shard, and which of them are still waited for.

use std::collections::BTreeSet;

/// Commands of one session that may be outstanding in one shard. Below what shards remember per session, so that a
/// retry always finds its outcome.
pub const WINDOW_MAX: usize = 4_000;

/// The number of one command in its session and shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// One session's commands in one shard.
#[derive(Debug, Default)]
pub struct ShardSession {
    last: u64,
    outstanding: BTreeSet<u64>,
    /// The latest time that the shard was heard to be at, Unix milliseconds.
    clock_ms: u64,
}

impl ShardSession {
    /// A number for a new command, and the number below which every outcome was received. `None` while the window is full.
    pub fn begin(&mut self) -> Option<(Sequence, u64)> {
        let lowest = self.outstanding.first().copied().unwrap_or(self.last + 1);
        // The window counts numbers, not commands: shards forget in order.
        if self.last + 1 - lowest >= WINDOW_MAX as u64 {
            return None;
        }
        self.last += 1;
        self.outstanding.insert(self.last);
        Some((Sequence(self.last), self.outstanding.first().copied().unwrap_or(self.last)))
    }

    /// The shard was at this time (Unix milliseconds in hybrid time) when it answered.
    pub fn heard(&mut self, clock_ms: u64) {
        self.clock_ms = self.clock_ms.max(clock_ms);
    }

    /// The time from which a new command's life is counted: the wall clock's, unless the shard is known to be ahead of it.
    /// A shard that once ran under a wrong clock never goes back, and would refuse all that is dated by the right one.
    #[must_use]
    pub fn now_ms(&self, wall_ms: u64) -> u64 {
        self.clock_ms.max(wall_ms)
    }

    /// The outcome was received, or nobody waits for it any more.
    pub fn end(&mut self, sequence: Sequence) {
        self.outstanding.remove(&sequence.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_acknowledged_up_to_the_first_that_is_missing() {
        let mut session = ShardSession::default();
        let first = session.begin().unwrap();
        let second = session.begin().unwrap();
        assert_eq!((first, second), ((Sequence(1), 1), (Sequence(2), 1)));
        session.end(second.0);
        assert_eq!(session.begin(), Some((Sequence(3), 1)));
        session.end(first.0);
        assert_eq!(session.begin(), Some((Sequence(4), 3)));
    }

    #[test]
    fn a_shard_that_is_ahead_is_believed_and_never_taken_back() {
        let mut session = ShardSession::default();
        assert_eq!(session.now_ms(100), 100);
        session.heard(500);
        session.heard(400);
        assert_eq!((session.now_ms(100), session.now_ms(600)), (500, 600));
    }

    #[test]
    fn a_command_that_never_ends_closes_the_window() {
        let mut session = ShardSession::default();
        session.begin();
        let more = std::iter::from_fn(|| session.begin().inspect(|_| ())).take(2 * WINDOW_MAX).count();
        assert_eq!(more, WINDOW_MAX - 1);
    }
}
