//! Records that entries read, taken from memory before the entries are applied.
//!
//! Whether an entry may wait for the disk must be known before it is applied, because a state machine cannot
//! apply half of it. Only the records that its commands name are looked up, and each only once.

use std::collections::HashMap;

use bytes::Bytes;
use flotilla_storage::{EngineError, StateMachine, StateReader, Upcoming, WriteSet};
use flotilla_types::{Entry, EntryKind, KeyRange};

use crate::Batch;

/// Bytes of records that are kept for the entries of one task, at most; beyond it the entries go to the pool.
const RECALLED_BYTES_MAX: usize = 8 << 20;

/// Records as they are before the next entry. Those that are not here are read from the engine.
#[derive(Default)]
pub(super) struct Recalled(HashMap<Bytes, Option<Bytes>>);

impl Recalled {
    /// The records that these entries read. `None` if one is not in memory, they are too large, or more may be
    /// read than the commands name.
    pub(super) fn of<'a>(
        machine: &dyn StateMachine,
        records: &dyn StateReader,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Option<Self> {
        let (mut recalled, mut keys, mut bytes) = (HashMap::new(), Vec::new(), 0);
        let mut upcoming = Upcoming::default();
        for entry in entries {
            if entry.kind == EntryKind::Normal
                && let Ok(batch) = Batch::decode(entry.data.clone())
            {
                machine.keys_read(&batch.commands, &mut keys);
                let counted = if batch.commands.is_empty() { &mut upcoming.upkeeps } else { &mut upcoming.entries };
                *counted += 1;
                upcoming.until = upcoming.until.max(batch.timestamp);
            }
        }
        upcoming.keys = keys.len();
        if machine.scans(&upcoming) {
            return None;
        }
        for key in keys {
            if recalled.contains_key(&key) {
                continue;
            }
            match records.get_in_memory(&key) {
                Ok(value) => {
                    bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                    recalled.insert(key, value);
                }
                Err(EngineError::NotInMemory) => return None,
                // Met again when the entry is applied.
                Err(_) => {}
            }
            if bytes > RECALLED_BYTES_MAX {
                return None;
            }
        }
        Some(Self(recalled))
    }

    /// A reader of these records and, for all others, of the engine's.
    pub(super) fn over<'a>(&'a self, records: &'a dyn StateReader) -> impl StateReader + 'a {
        Overlaid { recalled: &self.0, records }
    }

    /// The engine has newer values of what was written; they are in the memtable.
    pub(super) fn forget(&mut self, writes: &WriteSet) {
        if !self.0.is_empty() {
            writes.iter().for_each(|(key, _)| drop(self.0.remove(key)));
        }
    }
}

struct Overlaid<'a> {
    recalled: &'a HashMap<Bytes, Option<Bytes>>,
    records: &'a dyn StateReader,
}

impl StateReader for Overlaid<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.recalled.get(key).map_or_else(|| self.records.get(key), |value| Ok(value.clone()))
    }

    fn scan(&self, range: &KeyRange, items_max: usize, bytes_max: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        self.records.scan(range, items_max, bytes_max)
    }
}
