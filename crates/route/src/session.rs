//! Sequence numbers of one session in one shard, and which of them still await an outcome.

use std::collections::BTreeSet;

/// Commands of one session that may be outstanding in one shard. Fewer than the outcomes that shards remember
/// per session, so that a retry always finds its outcome.
pub const WINDOW_MAX: usize = 4_000;

/// The number of one command in its session and shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// One session's commands in one shard.
#[derive(Debug, Default)]
pub struct ShardSession {
    last: u64,
    outstanding: BTreeSet<u64>,
    /// The latest time seen in the shard's answers, in Unix milliseconds.
    clock_ms: u64,
}

impl ShardSession {
    /// Starts a command. Returns its number and the number below which every outcome was received; `None`
    /// while the window is full.
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

    /// Whether no command awaits an outcome.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// The number that was taken last; zero before the first.
    #[must_use]
    pub fn last(&self) -> Sequence {
        Sequence(self.last)
    }

    /// Takes no number up to this one, in a session that has not begun a command yet.
    pub fn skip(&mut self, up_to: Sequence) {
        self.last = self.last.max(up_to.0);
    }

    /// Records the shard's time when it answered (Unix milliseconds of its hybrid clock).
    pub fn observe_clock(&mut self, clock_ms: u64) {
        self.clock_ms = self.clock_ms.max(clock_ms);
    }

    /// The start of a new command's lifetime: the wall clock, or the shard's time if that is ahead. A shard
    /// that once ran under a wrong clock never goes backwards, and would refuse every command dated by a
    /// correct clock.
    #[must_use]
    pub fn now_ms(&self, wall_ms: u64) -> u64 {
        self.clock_ms.max(wall_ms)
    }

    /// Ends a command: its outcome was received, or no caller waits for it any more.
    pub fn finish(&mut self, sequence: Sequence) {
        self.outstanding.remove(&sequence.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_acknowledged_up_to_the_first_missing_one() {
        let mut session = ShardSession::default();
        let first = session.begin().unwrap();
        let second = session.begin().unwrap();
        assert_eq!((first, second), ((Sequence(1), 1), (Sequence(2), 1)));
        session.finish(second.0);
        assert_eq!(session.begin(), Some((Sequence(3), 1)));
        session.finish(first.0);
        assert_eq!(session.begin(), Some((Sequence(4), 3)));
    }

    #[test]
    fn shard_time_ahead_of_the_wall_clock_is_used_and_never_goes_backwards() {
        let mut session = ShardSession::default();
        assert_eq!(session.now_ms(100), 100);
        session.observe_clock(500);
        session.observe_clock(400);
        assert_eq!((session.now_ms(100), session.now_ms(600)), (500, 600));
    }

    #[test]
    fn unfinished_command_fills_the_window() {
        let mut session = ShardSession::default();
        session.begin();
        let more = std::iter::from_fn(|| session.begin()).take(2 * WINDOW_MAX).count();
        assert_eq!(more, WINDOW_MAX - 1);
    }
}
