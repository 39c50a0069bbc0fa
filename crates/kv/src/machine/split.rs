//! A split of the shard: what the machine gives up, and the state of the new shard's machine.
//!
//! The records of the right half are counted by reading them; the left half has the rest of the totals. The new
//! machine starts with the same clock, version and sessions: a command that is repeated after the split may come to
//! either shard, and both know its outcome. What both have of each other's expiries is told in `expiries/owned.rs`.
//!
//! Reads and commands are judged by the shard's range, so the records that this machine gave up count nowhere, also
//! while they are still stored.

use bytes::Bytes;
use flotilla_storage::{MachineError, StateReader};
use flotilla_types::KeyRange;

use super::KvMachine;
use crate::{
    pages::Pages,
    record::StoredRecord,
    stats::{Footprint, Share},
    system::System,
};

impl KvMachine {
    /// See [`StateMachine::split`](flotilla_storage::StateMachine::split).
    pub(super) fn split_off(&mut self, right: &KeyRange, records: &dyn StateReader) -> Result<Bytes, MachineError> {
        let keys = self.stats.expiries.stored().keys();
        let right = keys.intersection(right);
        if right.is_empty() || right.start == keys.start {
            return Err(MachineError::Corrupt("a shard was split at a key that it does not have"));
        }
        let share = count(&right, records)?;
        let expiries = self.stats.split(&right, &share)?;
        let Share { records, bytes, .. } = share;
        Ok(System { version: self.version, clock: self.clock, records, bytes, expiries }.encode(&self.sessions))
    }
}

/// Counts the records of a range, due ones included.
fn count(range: &KeyRange, records: &dyn StateReader) -> Result<Share, MachineError> {
    let mut share = Share::default();
    for record in Pages::new(range.clone(), records) {
        let (key, stored) = record?;
        share.add(&Footprint::of(&key, &StoredRecord::decode(stored)?));
    }
    Ok(share)
}
