//! Reads of the applied state: get, scan, count.
//!
//! Invariants: a record is absent if it expires at or before the shard's clock, which only the log advances.
//! If an answer would depend on a record that is due by the reader's clock and not yet by the shard's, it is
//! [`Answer::ClockAdvanceNeeded`], or the page ends before that record. A reader that has advanced the clock
//! names the time at which it did ([`crate::encode_query_as_of`]), and is not asked again, however many
//! records become due meanwhile. [`Limits`] bound the work and the size of every answer.

use bytes::Bytes;
use flotilla_storage::{EngineError, MachineError, ReadContext, ScanBounds, StateReader};
use flotilla_types::{KeyRange, RecordKey};

use crate::{
    Answer, Limits, Query, Record, Value,
    record::StoredRecord,
    stats::{Counts, Live, mean},
};

/// Records read from the engine at once.
const BATCH_ITEMS: usize = 512;

/// Records that a page of a scan passes over, deleted or expired: the page then ends, also without records,
/// so that other work of the shard does not wait for a long range of them.
const SKIPPED_MAX: usize = 4_096;

/// Bytes of keys and values that a scan or count reads, at most, besides one record.
const EXAMINED_BYTES_MAX: usize = 64 << 20;

/// Due records that a count of the whole shard finds by reading, where entries are applied.
const DUE_READ_MAX: usize = 4_096;

/// The same in a deferred read: more than a shard is likely to have. A count of more is too large.
const DUE_READ_DEFERRED_MAX: usize = 1 << 21;

/// The state from which a query is answered.
pub(crate) struct Reading<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) context: &'a ReadContext<'a>,
    pub(crate) records: &'a dyn StateReader,
    /// The counts of that state.
    pub(crate) counts: &'a dyn Fn() -> Counts,
    /// How much the answer may cost.
    pub(crate) effort: Effort,
    /// The shard's clock.
    pub(crate) clock_ms: u64,
    /// The reader's clock.
    pub(crate) now_ms: u64,
}

/// How much an answer may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Little, because entries wait for it: what takes long is left to a deferred read.
    Short,
    /// What the limits allow.
    Long,
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
        } else if record.is_due(self.now_ms) {
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
        let range = self.context.descriptor.range.intersection(&KeyRange::of_users());
        if keys.iter().any(|key| !range.contains(key)) {
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
                    bytes += record.value.stored_bytes();
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
        let examined_max = (self.limits.scan_examined_max as usize).min(items_max + SKIPPED_MAX);
        let mut walk = Walk::new(self, range, examined_max);
        let (mut records, mut bytes) = (Vec::new(), 0);
        let mut has_passed_any = false;
        // Reading one more record than requested tells whether there is a next page, and where it starts.
        loop {
            let step = walk.next(items_max - records.len() + 1, bytes_max.saturating_sub(bytes))?;
            let (key, stored) = match step {
                Step::Record(key, stored) => (key, stored),
                Step::OverBudget(next) => return Ok(Answer::Page { records, next: Some(next) }),
                Step::End => return Ok(Answer::Page { records, next: None }),
            };
            if records.len() >= items_max || (bytes >= bytes_max && !records.is_empty()) {
                return Ok(Answer::Page { records, next: Some(key) });
            }
            match self.visibility(stored)? {
                Visibility::Live(record) => {
                    let record = to_record(key, record, values);
                    bytes += record.key.len() + record.value.stored_bytes();
                    records.push(record);
                }
                Visibility::Expired => {}
                Visibility::ClockDependent if has_passed_any => return Ok(Answer::Page { records, next: Some(key) }),
                Visibility::ClockDependent => return Ok(Answer::ClockAdvanceNeeded),
            }
            has_passed_any = true;
        }
    }

    fn count(&self, range: KeyRange) -> Result<Answer, MachineError> {
        if range.is_empty() {
            return Ok(Answer::Count { records: 0, bytes: 0, expiring: 0, mean_expiry_ms: 0 });
        }
        let shard = &self.context.descriptor.range;
        // Whoever counts more than this shard holds has an outdated map, and would take a part for the whole.
        if !covers(shard, &range) {
            return Ok(Answer::WrongShard);
        }
        if range == *shard {
            return self.count_whole();
        }
        let mut walk = Walk::new(self, range, self.limits.scan_examined_max as usize);
        let (mut records, mut bytes, mut expiring, mut expiries_ms) = (0, 0, 0, 0);
        loop {
            let (key, stored) = match walk.next(BATCH_ITEMS, EXAMINED_BYTES_MAX)? {
                Step::Record(key, stored) => (key, stored),
                Step::OverBudget(_) => return Ok(Answer::TooLarge),
                Step::End => {
                    let mean_expiry_ms = mean(expiries_ms, expiring);
                    return Ok(Answer::Count { records, bytes, expiring, mean_expiry_ms });
                }
            };
            match self.visibility(stored)? {
                Visibility::Live(record) => {
                    records += 1;
                    if let Some(at_ms) = record.expires_at_ms {
                        expiring += 1;
                        expiries_ms += u128::from(at_ms);
                    }
                    bytes += key.len() as u64 + record.value.bytes();
                }
                Visibility::Expired => {}
                Visibility::ClockDependent => return Ok(Answer::ClockAdvanceNeeded),
            }
        }
    }

    /// The count of the whole shard, which reads only due records that are neither removed nor in memory.
    fn count_whole(&self) -> Result<Answer, MachineError> {
        let counts = (self.counts)();
        if counts.changes_by(self.now_ms, self.records)? {
            return Ok(Answer::ClockAdvanceNeeded);
        }
        let due_max = if self.effort == Effort::Short { DUE_READ_MAX } else { DUE_READ_DEFERRED_MAX };
        match (counts.live(self.records, due_max)?, self.effort) {
            (Some(Live { records, bytes, expiring, mean_expiry_ms }), _) => {
                Ok(Answer::Count { records, bytes, expiring, mean_expiry_ms })
            }
            (None, Effort::Short) => Err(EngineError::NotInMemory.into()),
            (None, Effort::Long) => Ok(Answer::TooLarge),
        }
    }
}

/// Whether every key of `inner` lies in `outer`.
fn covers(outer: &KeyRange, inner: &KeyRange) -> bool {
    outer.start <= inner.start && (outer.end.is_empty() || (!inner.end.is_empty() && inner.end <= outer.end))
}

fn to_record(key: Bytes, record: StoredRecord, values: bool) -> Record {
    Record {
        key,
        value_bytes: record.value.bytes(),
        value: if values { record.value } else { Value::default() },
        version: record.version,
        expires_at_ms: record.expires_at_ms,
    }
}

/// What comes next in a range.
enum Step {
    /// A stored record.
    Record(Bytes, Bytes),
    /// The budget is used up; the rest of the range starts here.
    OverBudget(Bytes),
    /// The end of the range.
    End,
}

/// Iterates over the stored records of a range in batches, within the budget of one read. Records that were
/// deleted and are still stored count: reading past them costs as much.
struct Walk<'a> {
    records: &'a dyn StateReader,
    /// What no batch has covered yet; `None` at the end of the range.
    rest: Option<KeyRange>,
    batch: std::vec::IntoIter<(Bytes, Bytes)>,
    examined: usize,
    examined_max: usize,
    examined_bytes: usize,
}

impl<'a> Walk<'a> {
    fn new(reading: &Reading<'a>, range: KeyRange, examined_max: usize) -> Self {
        Self {
            records: reading.records,
            rest: Some(range.intersection(&KeyRange::of_users())).filter(|range| !range.is_empty()),
            batch: Vec::new().into_iter(),
            examined: 0,
            examined_max,
            examined_bytes: 0,
        }
    }

    /// The next record. `items_max` and `bytes_max` bound the batch that is read for it, if one is.
    fn next(&mut self, items_max: usize, bytes_max: usize) -> Result<Step, MachineError> {
        loop {
            if let Some((key, stored)) = self.batch.next() {
                self.examined += 1;
                self.examined_bytes += key.len() + stored.len();
                let is_over_budget = self.examined > self.examined_max
                    || (self.examined > 1 && self.examined_bytes > EXAMINED_BYTES_MAX);
                return Ok(if is_over_budget { Step::OverBudget(key) } else { Step::Record(key, stored) });
            }
            let Some(rest) = &mut self.rest else { return Ok(Step::End) };
            // The first batch is always read, so that every page makes progress.
            if self.examined > 0 && self.examined >= self.examined_max {
                return Ok(Step::OverBudget(rest.start.clone()));
            }
            let bounds = ScanBounds {
                items_max: items_max.clamp(1, BATCH_ITEMS),
                bytes_max: bytes_max.min(EXAMINED_BYTES_MAX.saturating_sub(self.examined_bytes)),
                examined_max: (self.examined_max - self.examined).max(1),
            };
            let page = self.records.scan_page(rest, bounds)?;
            // Those that were returned count when they are taken.
            self.examined += page.examined.saturating_sub(page.items.len());
            match page.next {
                Some(next) => rest.start = next,
                None => self.rest = None,
            }
            if self.rest.as_ref().is_some_and(KeyRange::is_empty) {
                self.rest = None;
            }
            self.batch = page.items.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::{ScanPage, StateMachine as _};

    use super::*;
    use crate::{
        KvMachine, decode_answer, encode_query,
        testing::{Records, Replica, key, put},
    };

    /// Records of which only one in a hundred is left; the others were deleted and are still stored.
    struct MostlyDeleted {
        records: Records,
        deleted: u64,
    }

    impl StateReader for MostlyDeleted {
        fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
            self.records.get(key)
        }

        fn scan(&self, _: &KeyRange, _: usize, _: usize) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
            unreachable!("a read must bound what it examines")
        }

        fn scan_page(&self, range: &KeyRange, bounds: ScanBounds) -> Result<ScanPage, EngineError> {
            let mut page = ScanPage::default();
            for name in (0..self.deleted).map(|number| key(&format!("{number:06}"))) {
                if !range.contains(&name) {
                    continue;
                }
                if page.examined == bounds.examined_max || page.items.len() == bounds.items_max {
                    page.next = Some(name);
                    break;
                }
                page.examined += 1;
                page.items.extend(self.records.get(&name)?.map(|stored| (name, stored)));
            }
            Ok(page)
        }
    }

    #[test]
    fn a_scan_counts_deleted_records_against_its_budget() {
        let limits = Limits { scan_examined_max: 250, scan_items_max: 100, ..Limits::default() };
        let mut replica = Replica::with_limits(limits);
        replica.apply(1, &(0..50).map(|hundred| put(&format!("{:06}", hundred * 100 + 99), "1")).collect::<Vec<_>>());
        let Replica { machine, records, descriptor, .. } = replica;
        let reader = MostlyDeleted { records, deleted: 5_000 };
        let context = ReadContext { descriptor: &descriptor, now: flotilla_types::Timestamp::from_millis(1) };
        let read = |machine: &KvMachine, query: &Query| {
            decode_answer(machine.read(&context, &encode_query(query), &reader).unwrap()).unwrap()
        };
        let (mut range, mut found, mut pages) = (descriptor.range.clone(), 0, 0);
        loop {
            let query = Query::Scan { range: range.clone(), items_max: 100, bytes_max: 1 << 20, values: true };
            let Answer::Page { records, next } = read(&machine, &query) else { panic!("no page") };
            assert!(records.len() <= 3, "a page examines at most 250 records");
            (found, pages) = (found + records.len(), pages + 1);
            let Some(next) = next else { break };
            assert!(next > range.start);
            range.start = next;
        }
        assert_eq!(found, 50);
        assert!((20..=25).contains(&pages), "{pages}");
        let part = KeyRange { start: key("000001"), end: descriptor.range.end.clone() };
        assert_eq!(read(&machine, &Query::Count { range: part }), Answer::TooLarge);
    }
}
