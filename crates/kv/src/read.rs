//! Answers on the applied state: get, scan, count.
//!
//! Invariants: a record is absent when it expires at or before the shard's clock, which only the log moves. A record that
//! is due by the reader's clock and not yet by the shard's must not decide an answer: then the answer is
//! [`Answer::TimeNeeded`]. Work and size of every answer are bounded by [`Limits`].

use bytes::Bytes;
use flotilla_storage::{MachineError, ReadContext, StateReader};
use flotilla_types::{KeyRange, RecordKey};

use crate::{Answer, Limits, Query, Record, ledger::Ledger, record::StoredRecord};

/// Records asked of the engine at once.
const BATCH_ITEMS: usize = 512;

/// Bytes of keys and values that a scan or count reads at most, besides one record, before it returns.
const EXAMINED_BYTES_MAX: usize = 64 << 20;

/// What a query is answered from.
pub(crate) struct Reading<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) context: &'a ReadContext<'a>,
    pub(crate) records: &'a dyn StateReader,
    pub(crate) ledger: &'a Ledger,
    /// The shard's clock.
    pub(crate) clock_ms: u64,
}

/// What a stored record is to a reader.
enum Seen {
    Live(StoredRecord),
    Gone,
    /// Due by the reader's clock only.
    Uncertain,
}

impl Reading<'_> {
    pub(crate) fn answer(&self, query: Query) -> Result<Answer, MachineError> {
        match query {
            Query::Get { keys, values } => self.get(keys, values),
            Query::Scan { range, items_max, bytes_max, values } => self.scan(range, items_max, bytes_max, values),
            Query::Count { range } => self.count(range),
        }
    }

    fn see(&self, stored: Bytes) -> Result<Seen, MachineError> {
        let record = StoredRecord::decode(stored)?;
        Ok(if record.is_due(self.clock_ms) {
            Seen::Gone
        } else if record.is_due(self.context.now.millis()) {
            Seen::Uncertain
        } else {
            Seen::Live(record)
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
            match self.see(stored)? {
                Seen::Live(record) => {
                    let record = present(key, record, values);
                    bytes += record.value.len();
                    if bytes > self.limits.answer_bytes_max as usize {
                        return Ok(Answer::TooLarge);
                    }
                    found.push(Some(record));
                }
                Seen::Gone => found.push(None),
                Seen::Uncertain => return Ok(Answer::TimeNeeded),
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
        // One record more than wanted tells whether, and where, there is more.
        while let Some((key, stored)) = walk.next(items_max - records.len() + 1, bytes_max.saturating_sub(bytes))? {
            let full = records.len() >= items_max || (bytes >= bytes_max && !records.is_empty());
            if full || walk.is_over_budget() {
                return Ok(Answer::Page { records, next: Some(key) });
            }
            match self.see(stored)? {
                Seen::Live(record) => {
                    let record = present(key, record, values);
                    bytes += record.key.len() + record.value.len();
                    records.push(record);
                }
                Seen::Gone => {}
                Seen::Uncertain => return Ok(Answer::TimeNeeded),
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
            if self.ledger.expires_between(self.clock_ms, self.context.now.millis()) {
                return Ok(Answer::TimeNeeded);
            }
            let (records, bytes) = self.ledger.live(self.clock_ms);
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
            match self.see(stored)? {
                Seen::Live(record) => {
                    records += 1;
                    bytes += (key.len() + record.value.len()) as u64;
                }
                Seen::Gone => {}
                Seen::Uncertain => return Ok(Answer::TimeNeeded),
            }
        }
        Ok(Answer::Count { records, bytes })
    }
}

/// Whether every key of `inner` lies in `outer`.
fn covers(outer: &KeyRange, inner: &KeyRange) -> bool {
    outer.start <= inner.start && (outer.end.is_empty() || (!inner.end.is_empty() && inner.end <= outer.end))
}

fn present(key: Bytes, record: StoredRecord, values: bool) -> Record {
    Record {
        key,
        value_bytes: record.value.len() as u64,
        value: if values { record.value } else { Bytes::new() },
        version: record.version,
        expires_at_ms: record.expires_at_ms,
    }
}

/// Goes through the stored records of a range in batches and counts what it has read.
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

    /// The next record; `wanted` and `bytes_wanted` bound the batch that may have to be read for it.
    fn next(&mut self, wanted: usize, bytes_wanted: usize) -> Result<Option<(Bytes, Bytes)>, MachineError> {
        if self.batch.len() == 0 {
            if self.rest.is_empty() {
                return Ok(None);
            }
            let items_max = wanted.clamp(1, BATCH_ITEMS);
            let bytes_max = bytes_wanted.min(EXAMINED_BYTES_MAX.saturating_sub(self.examined_bytes));
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

    /// Whether the record just returned is one too many. The first one never is, so that every page makes progress.
    fn is_over_budget(&self) -> bool {
        self.examined > self.examined_max || (self.examined > 1 && self.examined_bytes > EXAMINED_BYTES_MAX)
    }
}
