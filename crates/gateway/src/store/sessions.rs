//! Numbers this gateway's commands: one session for each shard.

use std::collections::BTreeMap;

use flotilla_replication::clock;
use flotilla_route::{GatewayStart, Sequence, ShardSession};
use flotilla_types::{SessionId, ShardId};
use parking_lot::Mutex;

/// The sessions of one gateway start.
pub(super) struct Sessions {
    start: GatewayStart,
    shards: Mutex<BTreeMap<ShardId, ShardSession>>,
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
        Self { start, shards: Mutex::default() }
    }

    /// Takes a number for a new command; `None` while too many commands are outstanding in this shard.
    pub(super) fn begin(&self, shard: ShardId) -> Option<Ticket<'_>> {
        let mut shards = self.shards.lock();
        let window = shards.entry(shard).or_insert_with(|| ShardSession::new(self.start, shard));
        let (sequence, acked_below) = window.begin()?;
        let now_ms = window.now_ms(clock::wall_ms());
        Some(Ticket { sessions: self, shard, session: window.id(), sequence, acked_below, now_ms })
    }

    /// The time from which a new command of this shard lives; see [`Ticket::now_ms`].
    pub(super) fn now_ms(&self, shard: ShardId) -> u64 {
        let wall_ms = clock::wall_ms();
        self.shards.lock().get(&shard).map_or(wall_ms, |session| session.now_ms(wall_ms))
    }

    /// Notes a shard's clock as of its answer.
    pub(super) fn observe_clock(&self, shard: ShardId, clock_ms: u64) {
        let mut shards = self.shards.lock();
        shards.entry(shard).or_insert_with(|| ShardSession::new(self.start, shard)).observe_clock(clock_ms);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(shard) = self.sessions.shards.lock().get_mut(&self.shard) {
            shard.finish(self.sequence);
        }
    }
}
