//! The records of a few keys as a transaction reads and changes them, before anything is written.
//!
//! Pure. Invariants: what is read includes the changes made before; every key that was loaded becomes a
//! condition on the version that was found, so that a commit succeeds only if none of them was written since;
//! a key becomes at most one operation, whatever was done to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_api::VALUE_BYTES_MAX;
use flotilla_gateway::Found;
use flotilla_kv::{self as kv, Action, Condition, Expiry, Operation, Otherwise};
use flotilla_types::Timestamp;
use flotilla_values::ValueRef;
use parking_lot::Mutex;

use crate::Reply;

/// Bytes that the commands of one transaction may read, write and answer with together: about 30 ms of work,
/// during which the thread serves no other client.
pub(crate) const WORK_BYTES_MAX: usize = 64 << 20;

/// The records of some keys.
#[derive(Debug, Clone)]
pub(crate) struct View {
    records: BTreeMap<Bytes, Entry>,
    now_ms: u64,
    work_left: usize,
    value_bytes_max: usize,
    /// Keys of large values whose bytes were needed and are not here. Copies share it, so that it also outlives what
    /// was undone.
    wanted: Arc<Mutex<BTreeSet<Bytes>>>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// The version that was found; `None` if there was no record.
    found: Option<Timestamp>,
    current: Option<Record>,
    change: Change,
}

/// A record as the transaction has left it.
#[derive(Debug, Clone)]
struct Record {
    content: Content,
    media_type: Bytes,
    expires_at_ms: Option<u64>,
}

#[derive(Debug, Clone)]
enum Content {
    /// Not loaded: only its length is known.
    Length(usize),
    Shared(Bytes),
    /// Objects: the reference can be copied, and the bytes are not here. With the key under which it was found.
    Large(ValueRef, Bytes),
    /// Changed in place, so that many changes of a long value cost one copy.
    Owned(Vec<u8>),
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Length(_) | Self::Large(..) => &[],
            Self::Shared(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Length(len) => *len,
            Self::Large(value, _) => usize::try_from(value.bytes()).unwrap_or(usize::MAX),
            _ => self.bytes().len(),
        }
    }
}

/// What the transaction did to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    None,
    Expiry,
    All,
}

/// A value would become too long, or the transaction does too much. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TooMuch {
    #[error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")]
    Value,
    #[error("ERR the command reads or writes too much at once; use smaller parts")]
    Work,
}

impl View {
    /// A view of these keys as they were found, at `now_ms` in Unix milliseconds.
    ///
    /// No value may become longer than `value_bytes_max`.
    pub(crate) fn new(
        found: impl IntoIterator<Item = (Bytes, Option<Found>)>,
        values: bool,
        value_bytes_max: usize,
        now_ms: u64,
    ) -> Self {
        let entry = |key: &Bytes, found: Option<Found>| {
            let record = |found: &Found| {
                let length = usize::try_from(found.value_bytes).unwrap_or(usize::MAX);
                let content = match &found.value.content {
                    _ if !values => Content::Length(length),
                    kv::Content::Inline(bytes) => Content::Shared(bytes.clone()),
                    kv::Content::Large(value) => Content::Large(value.clone(), key.clone()),
                };
                let media_type = found.value.media_type.clone();
                Record { content, media_type, expires_at_ms: found.expires_at_ms }
            };
            let current = found.as_ref().map(record);
            Entry { found: found.map(|found| found.version), current, change: Change::None }
        };
        let records = found.into_iter().map(|(key, found)| (key.clone(), entry(&key, found))).collect();
        Self { records, now_ms, work_left: WORK_BYTES_MAX, value_bytes_max, wanted: Arc::default() }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub(crate) fn exists(&self, key: &Bytes) -> bool {
        self.record(key).is_some()
    }

    /// The value; empty if there is none. That of a large value whose bytes are not here is empty, too, and the
    /// evaluation is of no use: see [`wanted`](Self::wanted).
    pub(crate) fn value(&self, key: &Bytes) -> &[u8] {
        self.want(key);
        self.record(key).map_or(&[], |record| record.content.bytes())
    }

    /// The keys under which large values were found whose bytes were needed. If there are any, the evaluation has
    /// to be repeated on a view that has them.
    pub(crate) fn wanted(&self) -> BTreeSet<Bytes> {
        self.wanted.lock().clone()
    }

    /// Whether the value is large, and its bytes are not here.
    pub(crate) fn is_large(&self, key: &Bytes) -> bool {
        self.record(key).is_some_and(|record| matches!(record.content, Content::Large(..)))
    }

    fn want(&self, key: &Bytes) {
        if let Some(Content::Large(_, origin)) = self.record(key).map(|record| &record.content) {
            self.wanted.lock().insert(origin.clone());
        }
    }

    /// The value for a reply.
    pub(crate) fn shared_value(&self, key: &Bytes) -> Option<Bytes> {
        self.want(key);
        self.record(key).map(|record| match &record.content {
            Content::Shared(bytes) => bytes.clone(),
            other => Bytes::copy_from_slice(other.bytes()),
        })
    }

    /// The length of the value; 0 if there is none.
    pub(crate) fn value_bytes(&self, key: &Bytes) -> usize {
        self.record(key).map_or(0, |record| record.content.len())
    }

    /// When the record expires.
    pub(crate) fn expires_at_ms(&self, key: &Bytes) -> Option<u64> {
        self.record(key).and_then(|record| record.expires_at_ms)
    }

    /// When the record was last written; now if the transaction wrote it.
    pub(crate) fn written_at_ms(&self, key: &Bytes) -> u64 {
        let unchanged = self.records.get(key).filter(|entry| entry.change == Change::None);
        unchanged.and_then(|entry| entry.found).map_or(self.now_ms, Timestamp::millis)
    }

    /// Sets value and expiry.
    pub(crate) fn put(&mut self, key: &Bytes, value: Bytes, expires_at_ms: Option<u64>) -> Result<(), TooMuch> {
        self.check_length(value.len())?;
        let record = Record { content: Content::Shared(value), media_type: Bytes::new(), expires_at_ms };
        self.set(key, Some(record), Change::All);
        Ok(())
    }

    /// Sets the value and expiry of one key to those of another. The bytes of a large value are not needed.
    pub(crate) fn copy(&mut self, from: &Bytes, to: &Bytes) -> Result<(), TooMuch> {
        if !self.is_large(from) {
            self.spend(self.value_bytes(from))?;
        }
        if let Some(record) = self.record(from).cloned() {
            self.set(to, Some(record), Change::All);
        }
        Ok(())
    }

    /// Refuses a value above the limit.
    pub(crate) fn check_length(&self, bytes: usize) -> Result<(), TooMuch> {
        if bytes > self.value_bytes_max { Err(TooMuch::Value) } else { Ok(()) }
    }

    /// Changes the value in place, after it was made at least `length` bytes long; an absent one is created.
    /// The expiry stays.
    pub(crate) fn edit(&mut self, key: &Bytes, length: usize) -> Result<&mut Vec<u8>, TooMuch> {
        self.check_length(length)?;
        if self.is_large(key) {
            self.want(key);
            return Err(TooMuch::Work);
        }
        let more = length.saturating_sub(self.value_bytes(key));
        // A short request makes no more memory than that.
        if more > VALUE_BYTES_MAX {
            return Err(TooMuch::Work);
        }
        self.spend(more)?;
        match self.record(key).cloned() {
            Some(Record { content: Content::Shared(shared), media_type, expires_at_ms }) => {
                self.spend(shared.len())?;
                let content = Content::Owned(shared.to_vec());
                self.set(key, Some(Record { content, media_type, expires_at_ms }), Change::All);
            }
            Some(_) => {}
            None => {
                let content = Content::Owned(Vec::new());
                let record = Record { content, media_type: Bytes::new(), expires_at_ms: None };
                self.set(key, Some(record), Change::All);
            }
        }
        let entry = self.records.get_mut(key).ok_or(TooMuch::Work)?;
        entry.change = Change::All;
        match entry.current.as_mut().map(|record| &mut record.content) {
            Some(Content::Owned(bytes)) => {
                if bytes.len() < length {
                    bytes.resize(length, 0);
                }
                Ok(bytes)
            }
            _ => Err(TooMuch::Work),
        }
    }

    /// Changes the expiry of an existing record; one that is due removes it.
    pub(crate) fn expire(&mut self, key: &Bytes, expires_at_ms: Option<u64>) {
        if let Some(record) = self.records.get_mut(key).and_then(|entry| entry.current.take()) {
            self.set(key, Some(Record { expires_at_ms, ..record }), Change::Expiry);
        }
    }

    /// Removes a record. Whether there was one.
    pub(crate) fn remove(&mut self, key: &Bytes) -> bool {
        let existed = self.exists(key);
        if existed {
            self.set(key, None, Change::All);
        }
        existed
    }

    /// Uses up some of the work that the transaction may do.
    pub(crate) fn spend(&mut self, bytes: usize) -> Result<(), TooMuch> {
        self.work_left = self.work_left.checked_sub(bytes).ok_or(TooMuch::Work)?;
        Ok(())
    }

    pub(crate) fn work_left(&self) -> usize {
        self.work_left
    }

    /// The versions that were found, as conditions.
    pub(crate) fn conditions(&self) -> impl Iterator<Item = (Bytes, Condition)> {
        self.records.iter().map(|(key, entry)| (key.clone(), version_condition(entry.found)))
    }

    /// The writes, each unconditional: [`View::conditions`] guards them all.
    pub(crate) fn operations(self) -> Vec<Operation> {
        let operation = |(key, entry): (Bytes, Entry)| {
            let action = match (entry.current, entry.change, entry.found) {
                (_, Change::None, _) | (None, _, None) => return None,
                (None, _, Some(_)) => Action::Delete { return_old: false },
                (Some(record), Change::Expiry, _) => Action::Expire { expiry: expiry(record.expires_at_ms) },
                (Some(record), Change::All, _) => {
                    let content = match record.content {
                        Content::Length(_) => return None,
                        Content::Shared(bytes) => kv::Content::Inline(bytes),
                        Content::Owned(bytes) => kv::Content::Inline(bytes.into()),
                        Content::Large(value, _) => kv::Content::Large(value),
                    };
                    let value = kv::Value { content, media_type: record.media_type };
                    Action::Put { value, expiry: expiry(record.expires_at_ms), return_old: false }
                }
            };
            Some(Operation { key, condition: None, otherwise: Otherwise::Refuse, action })
        };
        self.records.into_iter().filter_map(operation).collect()
    }

    fn record(&self, key: &Bytes) -> Option<&Record> {
        self.records.get(key)?.current.as_ref()
    }

    fn set(&mut self, key: &Bytes, record: Option<Record>, change: Change) {
        let is_due = |record: &Record| record.expires_at_ms.is_some_and(|at_ms| at_ms <= self.now_ms);
        let current = record.filter(|record| !is_due(record));
        if let Some(entry) = self.records.get_mut(key) {
            entry.change = if current.is_none() { Change::All } else { entry.change.max(change) };
            entry.current = current;
        }
    }
}

impl From<TooMuch> for Reply {
    fn from(error: TooMuch) -> Self {
        Self::error(error)
    }
}

/// The condition that a record still has the version that was found.
pub(crate) fn version_condition(found: Option<Timestamp>) -> Condition {
    found.map_or(Condition::Absent, Condition::Version)
}

fn expiry(expires_at_ms: Option<u64>) -> Expiry {
    expires_at_ms.map_or(Expiry::Never, Expiry::At)
}

#[cfg(test)]
pub(crate) mod testing {
    use flotilla_types::{NodeId, ShardId};

    use super::*;

    /// A record that was found.
    pub(crate) fn found(key: &str, value: &[u8], expires_at_ms: Option<u64>) -> (Bytes, Option<Found>) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let found = Found {
            key: key.clone(),
            value: Bytes::copy_from_slice(value).into(),
            version: Timestamp(7),
            expires_at_ms,
            value_bytes: value.len() as u64,
            served_by: NodeId(1),
            shard: ShardId(1),
        };
        (key, Some(found))
    }

    /// A key without a record.
    pub(crate) fn absent(key: &str) -> (Bytes, Option<Found>) {
        (Bytes::copy_from_slice(key.as_bytes()), None)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{absent, found},
        *,
    };

    use flotilla_values::{Chunking, cut};

    const NOW_MS: u64 = 1_000;

    fn view() -> View {
        View::new([found("a", b"1", None), found("e", b"2", Some(5_000)), absent("n")], true, VALUE_BYTES_MAX, NOW_MS)
    }

    fn key(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    fn actions(view: View) -> Vec<Action> {
        view.operations().into_iter().map(|operation| operation.action).collect()
    }

    #[test]
    fn what_was_read_becomes_conditions_and_what_was_changed_one_operation_each() {
        let mut view = view();
        let version = Condition::Version(Timestamp(7));
        let conditions: Vec<_> = view.conditions().collect();
        assert_eq!(conditions, [(key("a"), version), (key("e"), version), (key("n"), Condition::Absent)]);
        view.edit(&key("n"), 0).unwrap().extend(b"xy");
        view.edit(&key("n"), 0).unwrap().extend(b"z");
        view.expire(&key("n"), Some(9_000));
        view.expire(&key("a"), Some(9_000));
        assert!(view.remove(&key("e")) && !view.remove(&key("e")));
        let value = Bytes::from_static(b"xyz");
        assert_eq!(
            actions(view),
            [
                Action::Expire { expiry: Expiry::At(9_000) },
                Action::Delete { return_old: false },
                Action::Put { value: value.into(), expiry: Expiry::At(9_000), return_old: false },
            ]
        );
    }

    /// A view with a large value under `l`, without its bytes.
    fn with_large() -> (View, ValueRef) {
        let value = cut(b"large", Chunking::default()).expect("a short value").value;
        let (key, mut record) = found("l", b"", Some(5_000));
        if let Some(record) = &mut record {
            record.value =
                kv::Value { content: kv::Content::Large(value.clone()), media_type: Bytes::from_static(b"t/x") };
            record.value_bytes = value.bytes();
        }
        (View::new([(key, record), absent("n")], true, VALUE_BYTES_MAX, NOW_MS), value)
    }

    #[test]
    fn a_copy_of_a_large_value_needs_no_bytes_and_keeps_reference_type_and_expiry() {
        let (mut view, value) = with_large();
        view.copy(&key("l"), &key("n")).unwrap();
        assert_eq!((view.value_bytes(&key("n")), view.wanted().len()), (5, 0));
        let value = kv::Value { content: kv::Content::Large(value), media_type: Bytes::from_static(b"t/x") };
        assert_eq!(actions(view), [Action::Put { value, expiry: Expiry::At(5_000), return_old: false }]);
    }

    #[test]
    fn the_bytes_of_a_large_value_are_wanted_by_whoever_needs_them_also_where_that_was_undone() {
        let uses: [fn(&mut View); 3] = [
            |view| drop(view.value(&key("l")).to_vec()),
            |view| drop(view.shared_value(&key("l"))),
            |view| assert!(view.edit(&key("l"), 9).is_err()),
        ];
        for uses in uses {
            let (mut view, _) = with_large();
            let before = view.clone();
            uses(&mut view);
            assert_eq!(before.wanted(), BTreeSet::from([key("l")]));
        }
        let (mut view, _) = with_large();
        view.expire(&key("l"), None);
        assert!(view.remove(&key("l")) && view.wanted().is_empty());
    }

    #[test]
    fn the_bytes_of_a_copy_are_wanted_where_the_value_was_found() {
        let (mut view, _) = with_large();
        view.copy(&key("l"), &key("n")).unwrap();
        assert!(view.remove(&key("l")) && view.value(&key("n")).is_empty());
        assert_eq!(view.wanted(), BTreeSet::from([key("l")]));
    }

    #[test]
    fn a_short_request_makes_no_long_value() {
        let mut view = View::new([absent("n")], true, 16 * VALUE_BYTES_MAX, NOW_MS);
        assert_eq!(view.edit(&key("n"), VALUE_BYTES_MAX + 1).unwrap_err(), TooMuch::Work);
        assert!(view.edit(&key("n"), VALUE_BYTES_MAX).is_ok());
    }

    #[test]
    fn what_is_created_and_removed_again_is_not_written() {
        let mut view = view();
        view.put(&key("n"), Bytes::from_static(b"x"), None).unwrap();
        assert!(view.exists(&key("n")) && view.remove(&key("n")));
        assert!(actions(view).is_empty());
    }

    #[test]
    fn an_expiry_that_is_due_removes_the_record() {
        let mut view = view();
        view.expire(&key("a"), Some(NOW_MS));
        view.put(&key("e"), Bytes::from_static(b"x"), Some(1)).unwrap();
        assert!(!view.exists(&key("a")) && !view.exists(&key("e")));
        assert_eq!(actions(view), vec![Action::Delete { return_old: false }; 2]);
    }

    #[test]
    fn a_change_in_place_keeps_the_expiry_and_is_bounded() {
        let mut view = view();
        view.edit(&key("e"), 3).unwrap()[2] = b'!';
        assert_eq!((view.value(&key("e")), view.expires_at_ms(&key("e"))), (&b"2\0!"[..], Some(5_000)));
        assert_eq!(view.edit(&key("e"), VALUE_BYTES_MAX + 1).unwrap_err(), TooMuch::Value);
        assert_eq!(view.spend(WORK_BYTES_MAX), Err(TooMuch::Work));
    }
}
