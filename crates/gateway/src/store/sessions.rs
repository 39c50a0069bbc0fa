//! This gateway's numbers in every shard.

use std::collections::BTreeMap;

use flotilla_replication::clock;
use flotilla_route::{Sequence, ShardSession};
use flotilla_types::{SessionId, ShardId};
use parking_lot::Mutex;

/// One session, with a window of numbers for each shard.
pub(super) struct Sessions {
    session: SessionId,
    shards: Mutex<BTreeMap<ShardId, ShardSession>>,
}

/// A number in use. Dropping it says that nobody waits for the outcome any more.
pub(super) struct Ticket<'a> {
    sessions: &'a Sessions,
    shard: ShardId,
    pub(super) session: SessionId,
    pub(super) sequence: Sequence,
    pub(super) acked_below: u64,
    /// Unix milliseconds: the wall clock's, unless the shard is ahead of it.
    pub(super) now_ms: u64,
}

impl Sessions {
    pub(super) fn new(session: SessionId) -> Self {
        Self { session, shards: Mutex::default() }
    }

    /// A number for a new command; `None` while too many are outstanding in this shard.
    pub(super) fn begin(&self, shard: ShardId) -> Option<Ticket<'_>> {
        let mut shards = self.shards.lock();
        let numbers = shards.entry(shard).or_default();
        let (sequence, acked_below) = numbers.begin()?;
        let now_ms = numbers.now_ms(clock::wall_ms());
        Some(Ticket { sessions: self, shard, session: self.session, sequence, acked_below, now_ms })
    }
}

impl Ticket<'_> {
    /// The shard was at this time when it answered.
    pub(super) fn heard(&self, clock_ms: u64) {
        if let Some(shard) = self.sessions.shards.lock().get_mut(&self.shard) {
            shard.heard(clock_ms);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(shard) = self.sessions.shards.lock().get_mut(&self.shard) {
            shard.end(self.sequence);
        }
    }
}
