//! This gateway's numbers in every shard.

use std::collections::BTreeMap;

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
}

impl Sessions {
    pub(super) fn new(session: SessionId) -> Self {
        Self { session, shards: Mutex::default() }
    }

    /// A number for a new command; `None` while too many are outstanding in this shard.
    pub(super) fn begin(&self, shard: ShardId) -> Option<Ticket<'_>> {
        let (sequence, acked_below) = self.shards.lock().entry(shard).or_default().begin()?;
        Some(Ticket { sessions: self, shard, session: self.session, sequence, acked_below })
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(shard) = self.sessions.shards.lock().get_mut(&self.shard) {
            shard.end(self.sequence);
        }
    }
}
