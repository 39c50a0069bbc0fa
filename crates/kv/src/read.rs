//! Reads of the applied state: get, scan, count.
//!
//! Invariants: a record is absent if it expires at or before the shard's clock, which only the log advances.
//! If an answer would depend on a record that is due by the reader's clock and not yet by the shard's, it is
//! [`Answer::ClockAdvanceNeeded`]. [`Limits`] bound the work and the size of every answer.

use bytes::Bytes;
use flotilla_storage::{MachineError, ReadContext, StateReader};
use flotilla_types::{KeyRange, RecordKey};

use crate::{Answer, Limits, Query, Record, record::StoredRecord, stats::RecordStats};

/// Records read from the engine at once.
const BATCH_ITEMS: usize = 512;

/// Bytes of keys and values that a scan or count reads, at most, besides one record.
const EXAMINED_BYTES_MAX: usize = 64 << 20;

/// The state from which a query is answered.
pub(crate) struct Reading<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) context: &'a ReadContext<'a>,
    pub(crate) records: &'a dyn StateReader,
    pub(crate) stats: &'a RecordStats,
    /// The shard's clock.
    pub(crate) clock_ms: u64,
}

/// Whether a stored record is visible to a reader.
enum Visibility {
    Live(StoredRecord),
    Expired,
    /// Due by the reader's clock but not by the shard's.
    ClockDependent,
}

impl Reading<'_> {
    pub(crate) fn answer(&self, query: Query) -> Result<Answer, MachineError> {
        match query {
            Query::Get { keys, values } => self.get(keys, values),
            Query::Scan { range, items_max, bytes_max, values } => self.scan(range, items_max, bytes_max, values),
            Query::Count { range } => self.count(range),
        }
    }

    fn visibility(&self, stored: Bytes) -> Result<Visibility, MachineError> {
        let record = StoredRecord::decode(stored)?;
        Ok(if record.is_due(self.clock_ms) {
            Visibility::Expired
        } else if record.is_due(self.context.now.millis()) {
            Visibility::ClockDependent
        } else {
            Visibility::Live(record)
        })
    }

    fn get(&self, keys: Vec<Bytes>, values: bool) -> Result<Answer, MachineError> {
        if keys.len() > self.limits.query_keys_max as usize {
            return Ok(Answer::TooLarge);
        }
        if keys.iter().any(|key| key.len() < RecordKey::PREFIX_BYTES) {
            return Ok(Answer::Malformed);
        }
        if keys.iter().any(|key| !self.context.descriptor.range.contains(key)) {
            return Ok(Answer::WrongShard);
        }
        let mut found = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let Some(stored) = self.records.get(&key)? else {
                found.push(None);
                continue;
            };
            match self.visibility(stored)? {
                Visibility::Live(record) => {
                    let record = to_record(key, record, values);
                    bytes += record.value.len();
                    if bytes > self.limits.answer_bytes_max as usize {
                        return Ok(Answer::TooLarge);
                    }
                    found.push(Some(record));
                }
                Visibility::Expired => found.push(None),
                Visibility::ClockDependent => return Ok(Answer::ClockAdvanceNeeded),
            }
        }
        Ok(Answer::Records(found))
    }

    fn scan(&self, range: KeyRange, items_max: u32, bytes_max: u32, values: bool) -> Result<Answer, MachineError> {
        if items_max == 0 {
            return Ok(Answer::Malformed);
        }
        if range.is_empty() {
            return Ok(Answer::Page { records: Vec::new(), next: None });
        }
        if !covers(&self.context.descriptor.range, &range) {
            return Ok(Answer::WrongShard);
        }
        let items_max = items_max.min(self.limits.scan_items_max) as usize;
        let bytes_max = bytes_max.min(self.limits.answer_bytes_max) as usize;
        let mut walk = Walk::new(self, range);
        let mut records = Vec::new();
        let mut bytes = 0;
        // Reading one more record than requested tells whether there is a next page, and where it starts.
        while let Some((key, stored)) = walk.next(items_max - records.len() + 1, bytes_max.saturating_sub(bytes))? {
            let full = records.len() >= items_max || (bytes >= bytes_max && !records.is_empty());
            if full || walk.is_over_budget() {
                return Ok(Answer::Page { records, next: Some(key) });
            }
            match self.visibility(stored)? {
                Visibility::Live(record) => {
                    let record = to_record(key, record, values);
                    bytes += record.key.len() + record.value.len();
                    records.push(record);
                }
                Visibility::Expired => {}
                Visibility::ClockDependent => return Ok(Answer::ClockAdvanceNeeded),
            }
        }
        Ok(Answer::Page { records, next: None })
    }

    fn count(&self, range: KeyRange) -> Result<Answer, MachineError> {
        if range.is_empty() {
            return Ok(Answer::Count { records: 0, bytes: 0 });
        }
        let shard = &self.context.descriptor.range;
        if covers(&range, shard) {
            if self.stats.expires_between(self.clock_ms, self.context.now.millis()) {
                return Ok(Answer::ClockAdvanceNeeded);
            }
            let (records, bytes) = self.stats.live(self.clock_ms);
            return Ok(Answer::Count { records, bytes });
        }
        if !covers(shard, &range) {
            return Ok(Answer::WrongShard);
        }
        let mut walk = Walk::new(self, range);
        let (mut records, mut bytes) = (0, 0);
        while let Some((key, stored)) = walk.next(BATCH_ITEMS, EXAMINED_BYTES_MAX)? {
            if walk.is_over_budget() {
                return Ok(Answer::TooLarge);
            }
            match self.visibility(stored)? {
                Visibility::Live(record) => {
                    records += 1;
                    bytes += (key.len() + record.value.len()) as u64;
                }
                Visibility::Expired => {}
                Visibility::ClockDependent => return Ok(Answer::ClockAdvanceNeeded),
            }
        }
        Ok(Answer::Count { records, bytes })
    }
}

/// Whether every key of `inner` lies in `outer`.
fn covers(outer: &KeyRange, inner: &KeyRange) -> bool {
    outer.start <= inner.start && (outer.end.is_empty() || (!inner.end.is_empty() && inner.end <= outer.end))
}

fn to_record(key: Bytes, record: StoredRecord, values: bool) -> Record {
    Record {
        key,
        value_bytes: record.value.len() as u64,
        value: if values { record.value } else { Bytes::new() },
        version: record.version,
        expires_at_ms: record.expires_at_ms,
    }
}

/// Iterates over the stored records of a range in batches, within the budget of one read.
struct Walk<'a> {
    records: &'a dyn StateReader,
    rest: KeyRange,
    batch: std::vec::IntoIter<(Bytes, Bytes)>,
    examined: usize,
    examined_max: usize,
    examined_bytes: usize,
}

impl<'a> Walk<'a> {
    fn new(reading: &Reading<'a>, range: KeyRange) -> Self {
        Self {
            records: reading.records,
            rest: range,
            batch: Vec::new().into_iter(),
            examined: 0,
            examined_max: reading.limits.scan_examined_max as usize,
            examined_bytes: 0,
        }
    }

    /// The next record. `items_max` and `bytes_max` bound the batch that is read for it, if one is.
    fn next(&mut self, items_max: usize, bytes_max: usize) -> Result<Option<(Bytes, Bytes)>, MachineError> {
        if self.batch.len() == 0 {
            if self.rest.is_empty() {
                return Ok(None);
            }
            let items_max = items_max.clamp(1, BATCH_ITEMS);
            let bytes_max = bytes_max.min(EXAMINED_BYTES_MAX.saturating_sub(self.examined_bytes));
            let batch = self.records.scan(&self.rest, items_max, bytes_max)?;
            if let Some((last, _)) = batch.last() {
                self.rest.start = [last.as_ref(), &[0]].concat().into();
            }
            self.batch = batch.into_iter();
        }
        let item = self.batch.next();
        if let Some((key, stored)) = &item {
            self.examined += 1;
            self.examined_bytes += key.len() + stored.len();
        }
        Ok(item)
    }

    /// Whether the record just returned exceeds the budget. The first one never does, so that every page
    /// makes progress.
    fn is_over_budget(&self) -> bool {
        self.examined > self.examined_max || (self.examined > 1 && self.examined_bytes > EXAMINED_BYTES_MAX)
    }
}
