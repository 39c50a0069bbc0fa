//! A gateway's sessions: one for each shard, its sequence numbers, and which of them still await an outcome.
//!
//! Invariant: a session id with a sequence number names one command in the whole cluster, not only in one
//! shard. A command keeps both wherever it is sent again, so that shards which split or merge, and hence copy
//! or unite their tables of sessions, never take one command for another.

use std::collections::BTreeSet;

use flotilla_types::{SessionId, ShardId};

/// Commands of one session that may be outstanding in one shard. Fewer than the outcomes that shards remember
/// per session, so that a retry always finds its outcome.
pub const WINDOW_MAX: usize = 4_000;

/// One start of a gateway: a random number that no other start has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GatewayStart(pub u64);

impl GatewayStart {
    /// The session for the commands that are first sent to this shard. Different for each shard of a start;
    /// two starts share one only by a chance of one in 2^64.
    #[must_use]
    pub fn session_in(self, shard: ShardId) -> SessionId {
        // Both steps are bijections, so no two shards of a start share a session. Only zero, which means no
        // session, is replaced.
        match mix(self.0 ^ mix(shard.0.wrapping_add(GOLDEN_GAMMA))) {
            0 => SessionId(GOLDEN_GAMMA),
            mixed => SessionId(mixed),
        }
    }
}

/// The fractional part of the golden ratio, as an odd 64-bit number.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A bijection in which each bit of the input changes every bit of the output with a probability near one
/// half: the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The number of one command in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// A gateway's session for one shard.
#[derive(Debug)]
pub struct ShardSession {
    id: SessionId,
    last: u64,
    outstanding: BTreeSet<u64>,
    /// The latest time seen in the shard's answers, in Unix milliseconds.
    clock_ms: u64,
}

impl ShardSession {
    /// The session of this gateway start for this shard, without any command yet.
    #[must_use]
    pub fn new(start: GatewayStart, shard: ShardId) -> Self {
        Self { id: start.session_in(shard), last: 0, outstanding: BTreeSet::new(), clock_ms: 0 }
    }

    /// The id that its commands carry.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn session() -> ShardSession {
        ShardSession::new(GatewayStart(7), ShardId(3))
    }

    /// The commands that two starts of a gateway number in many shards.
    #[test]
    fn a_number_never_names_two_commands_in_any_shards() {
        let mut commands = BTreeMap::new();
        for start in [GatewayStart(0), GatewayStart(1), GatewayStart(u64::MAX)] {
            for shard in (0..2_000).chain([u64::MAX - 1, u64::MAX]).map(ShardId) {
                let mut session = ShardSession::new(start, shard);
                for _ in 0..2 {
                    let (sequence, _) = session.begin().expect("room");
                    assert_ne!(session.id(), SessionId(0), "no session");
                    let other = commands.insert((session.id(), sequence), (start, shard));
                    assert_eq!(other, None, "{start:?} {shard}");
                }
            }
        }
    }

    proptest! {
        /// Ids must look random to one another: starts are random, but shards are small numbers.
        #[test]
        fn one_bit_of_the_start_or_the_shard_changes_about_half_of_the_session(
            start: u64,
            shard in 0_u64..1_000_000,
            bit in 0_u32..20,
        ) {
            let id = |start: u64, shard: u64| GatewayStart(start).session_in(ShardId(shard)).0;
            for other in [id(start ^ (1 << bit), shard), id(start, shard ^ (1 << bit))] {
                let changed = (id(start, shard) ^ other).count_ones();
                prop_assert!((8..=56).contains(&changed), "{changed} bits");
            }
        }
    }

    #[test]
    fn outcomes_are_acknowledged_up_to_the_first_missing_one() {
        let mut session = session();
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
        let mut session = session();
        assert_eq!(session.now_ms(100), 100);
        session.observe_clock(500);
        session.observe_clock(400);
        assert_eq!((session.now_ms(100), session.now_ms(600)), (500, 600));
    }

    #[test]
    fn unfinished_command_fills_the_window() {
        let mut session = session();
        session.begin();
        let more = std::iter::from_fn(|| session.begin()).take(2 * WINDOW_MAX).count();
        assert_eq!(more, WINDOW_MAX - 1);
    }
}
