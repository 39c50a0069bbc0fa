//! Numbers this gateway's commands: one session for each shard.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use flotilla_control::clock;
use flotilla_route::{GatewayStart, Sequence, ShardSession};
use flotilla_types::{SessionId, ShardId};
use parking_lot::Mutex;

/// The sessions of one gateway start.
pub(super) struct Sessions {
    start: GatewayStart,
    shards: Mutex<BTreeMap<ShardId, ShardSession>>,
    /// The highest number that was taken for a shard since forgotten. A caller with an old map may return to
    /// such a shard, and must not use a number twice.
    forgotten: AtomicU64,
}

/// A sequence number in use. It belongs to its command wherever that is sent, also to another shard. Dropping
/// it acknowledges the outcome: the command is not sent again.
pub(super) struct Ticket<'a> {
    sessions: &'a Sessions,
    /// The shard for whose session the number was taken.
    shard: ShardId,
    pub(super) session: SessionId,
    pub(super) sequence: Sequence,
    pub(super) acked_below: u64,
    /// Unix milliseconds by the wall clock, or by the shard's clock if that is ahead.
    pub(super) now_ms: u64,
}

impl Sessions {
    pub(super) fn new(start: GatewayStart) -> Self {
        Self { start, shards: Mutex::default(), forgotten: AtomicU64::new(0) }
    }

    /// Takes a number for a new command; `None` while too many commands are outstanding in this shard.
    pub(super) fn begin(&self, shard: ShardId) -> Option<Ticket<'_>> {
        let mut shards = self.shards.lock();
        let window = shards.entry(shard).or_insert_with(|| self.session(shard));
        let (sequence, acked_below) = window.begin()?;
        let now_ms = window.now_ms(clock::wall_ms());
        Some(Ticket { sessions: self, shard, session: window.id(), sequence, acked_below, now_ms })
    }

    /// The session of a shard that has none yet.
    fn session(&self, shard: ShardId) -> ShardSession {
        let mut session = ShardSession::new(self.start, shard);
        session.skip(Sequence(self.forgotten.load(Ordering::Relaxed)));
        session
    }

    /// Forgets shards that are gone and have no command outstanding.
    pub(super) fn retain(&self, exists: impl Fn(ShardId) -> bool) {
        self.shards.lock().retain(|shard, session| {
            let keep = exists(*shard) || !session.is_idle();
            if !keep {
                self.forgotten.fetch_max(session.last().0, Ordering::Relaxed);
            }
            keep
        });
    }

    /// The time from which a new command of this shard lives; see [`Ticket::now_ms`].
    pub(super) fn now_ms(&self, shard: ShardId) -> u64 {
        let wall_ms = clock::wall_ms();
        self.shards.lock().get(&shard).map_or(wall_ms, |session| session.now_ms(wall_ms))
    }

    /// Notes a shard's clock as of its answer.
    pub(super) fn observe_clock(&self, shard: ShardId, clock_ms: u64) {
        let mut shards = self.shards.lock();
        shards.entry(shard).or_insert_with(|| self.session(shard)).observe_clock(clock_ms);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(shard) = self.sessions.shards.lock().get_mut(&self.shard) {
            shard.finish(self.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_shard_is_forgotten_when_idle_and_its_numbers_are_never_used_again() {
        let sessions = Sessions::new(GatewayStart(1));
        let numbers = |shard: u64| sessions.begin(ShardId(shard)).expect("room").sequence;
        assert_eq!((numbers(1), numbers(1), numbers(2)), (Sequence(1), Sequence(2), Sequence(1)));
        let outstanding = sessions.begin(ShardId(1)).expect("room");
        sessions.retain(|_| false);
        assert_eq!(sessions.shards.lock().len(), 1, "a command is outstanding");
        drop(outstanding);
        sessions.retain(|shard| shard == ShardId(3));
        assert!(sessions.shards.lock().is_empty());
        assert_eq!((numbers(1), numbers(2)), (Sequence(4), Sequence(4)), "also for a shard that returns");
    }
}
