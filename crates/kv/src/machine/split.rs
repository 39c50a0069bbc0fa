//! A split of the shard: what the machine gives up, and the state of the new shard's machine.
//!
//! The records of the right half are counted by reading them; the left half has the rest of the totals. The new
//! machine starts with the same clock, version and sessions: a command that is repeated after the split may come to
//! either shard, and both know its outcome. What both have of each other's expiries is told in `expiries/owned.rs`.
//!
//! Reads and commands are judged by the shard's range, so the records that this machine gave up count nowhere, also
//! while they are still stored.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flotilla_storage::{CountAhead, MachineError, StateReader};
use flotilla_types::KeyRange;

use super::KvMachine;
use crate::{
    pages::Pages,
    record::StoredRecord,
    stats::{Ahead, Footprint, Share},
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
        let share = match self.stats.take_ahead(&right) {
            Some(share) => share,
            None => {
                let expiries = self.stats.expiries.stored();
                count(&right, &|key| expiries.is_unplaced(key), records, &mut || ())?
            }
        };
        let expiries = self.stats.split(&right, &share)?;
        let Share { records, bytes, .. } = share;
        Ok(System { version: self.version, clock: self.clock, records, bytes, expiries }.encode(&self.sessions))
    }
}

impl KvMachine {
    /// See [`StateMachine::count_ahead`](flotilla_storage::StateMachine::count_ahead).
    pub(super) fn begin_count(&mut self, right: &KeyRange) -> Arc<dyn CountAhead> {
        let right = self.stats.expiries.stored().keys().intersection(right);
        let counting = Arc::new(Counting { right: right.clone(), share: OnceLock::new() });
        self.stats.begin_ahead(Ahead::new(right, counting.clone()));
        counting
    }
}

/// A count that runs beside the machine.
#[derive(Debug)]
pub(crate) struct Counting {
    right: KeyRange,
    /// Set when it is done.
    share: OnceLock<Share>,
}

impl Counting {
    pub(crate) fn share(&self) -> Option<&Share> {
        self.share.get()
    }
}

impl CountAhead for Counting {
    fn run(&self, records: &dyn StateReader, pause: &mut dyn FnMut()) -> Result<(), MachineError> {
        let _ = self.share.set(count(&self.right, &|_| false, records, pause)?);
        Ok(())
    }
}

/// Records between two pauses.
const PAUSE_RECORDS: u64 = 4_096;

/// Counts the records of a range, due ones included.
///
/// `is_unplaced` says whether the record of a key has no place.
fn count(
    range: &KeyRange,
    is_unplaced: &dyn Fn(&[u8]) -> bool,
    records: &dyn StateReader,
    pause: &mut dyn FnMut(),
) -> Result<Share, MachineError> {
    let mut share = Share::default();
    for record in Pages::new(range.clone(), records) {
        let (key, stored) = record?;
        share.add(&Footprint::of(&key, &StoredRecord::decode(stored)?), is_unplaced(&key));
        if share.records.is_multiple_of(PAUSE_RECORDS) {
            pause();
        }
    }
    Ok(share)
}
