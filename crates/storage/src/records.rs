//! Records of the in-memory engine: memtables, their encoding as objects, and scans over layers of them.
//!
//! Format of an object: a version byte, then for each record in key order `key length (u32, little-endian) ‖
//! key ‖ 0` for a deletion, `… ‖ 1 ‖ value length (u32) ‖ value`, or `… ‖ 2 ‖ … ‖ references`. Private to the
//! in-memory engine.

use std::{
    collections::{BTreeMap, btree_map},
    iter::Peekable,
    ops::Bound,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::{ByteOrder, KeyRange, Refs};

use crate::{Value, WriteSet, page::Page};

const FORMAT: u8 = 1;
const DELETED: u8 = 0;
const PRESENT: u8 = 1;
const WITH_REFS: u8 = 2;

/// Records, without deletion markers.
pub(crate) type Records = BTreeMap<Bytes, Value>;

/// Changes to records; `None` deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Memtable {
    changes: BTreeMap<Bytes, Option<Value>>,
    bytes: usize,
}

impl From<BTreeMap<Bytes, Option<Value>>> for Memtable {
    fn from(changes: BTreeMap<Bytes, Option<Value>>) -> Self {
        let bytes = changes.iter().map(|(key, value)| size_bytes(key, value.as_ref())).sum();
        Self { changes, bytes }
    }
}

impl FromIterator<(Bytes, Option<Value>)> for Memtable {
    fn from_iter<I: IntoIterator<Item = (Bytes, Option<Value>)>>(changes: I) -> Self {
        Self::from(changes.into_iter().collect::<BTreeMap<_, _>>())
    }
}

impl Memtable {
    pub(crate) fn into_changes(self) -> impl Iterator<Item = (Bytes, Option<Value>)> {
        self.changes.into_iter()
    }

    pub(crate) fn write(&mut self, records: WriteSet) {
        for (key, value) in records {
            self.bytes += size_bytes(&key, value.as_ref());
            let key_bytes = key.len();
            if let Some(old) = self.changes.insert(key, value) {
                self.bytes -= key_bytes + old.map_or(0, |value| value.size_bytes());
            }
        }
    }

    /// The change to a key: `None` if there is none, `Some(None)` for a deletion.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Option<Value>> {
        self.changes.get(key)
    }

    /// The references of all records.
    pub(crate) fn refs(&self) -> Refs {
        self.changes.values().flatten().flat_map(|value| value.refs().iter().copied()).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(crate) fn first_key(&self) -> Option<&Bytes> {
        self.changes.first_key_value().map(|(key, _)| key)
    }

    /// The changes to keys of a range.
    pub(crate) fn clipped(mut self, range: &KeyRange) -> Self {
        self.changes.retain(|key, _| range.contains(key));
        Self::from(self.changes)
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes
    }

    /// Applies the changes to records.
    pub(crate) fn apply_to(&self, records: &mut Records) {
        for (key, value) in &self.changes {
            match value {
                Some(value) => records.insert(key.clone(), value.clone()),
                None => records.remove(key),
            };
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::with_capacity(1 + self.bytes + 9 * self.changes.len());
        buffer.put_u8(FORMAT);
        for (key, value) in &self.changes {
            // Keys and values are far below 4 GiB, since both come from a log entry.
            buffer.put_u32_le(key.len() as u32);
            buffer.put_slice(key);
            match value {
                None => buffer.put_u8(DELETED),
                Some(value) => {
                    buffer.put_u8(if value.refs().is_empty() { PRESENT } else { WITH_REFS });
                    buffer.put_u32_le(value.len() as u32);
                    buffer.put_slice(value);
                    if !value.refs().is_empty() {
                        value.refs().encode(&mut buffer, ByteOrder::Little);
                    }
                }
            }
        }
        buffer.freeze()
    }
}

fn size_bytes(key: &Bytes, value: Option<&Value>) -> usize {
    key.len() + value.map_or(0, Value::size_bytes)
}

/// Decodes an object that [`Memtable::encode`] wrote. The error says what is wrong.
pub(crate) fn decode(object: &Bytes) -> Result<Memtable, &'static str> {
    let mut rest = object.clone();
    if rest.try_get_u8() != Ok(FORMAT) {
        return Err("a records object has an unknown format");
    }
    let mut changes = BTreeMap::new();
    while rest.has_remaining() {
        let key = take(&mut rest)?;
        let value = match rest.try_get_u8() {
            Ok(DELETED) => None,
            Ok(PRESENT) => Some(take(&mut rest)?.into()),
            Ok(WITH_REFS) => {
                let value = take(&mut rest)?;
                let refs = Refs::decode(&mut rest, ByteOrder::Little);
                Some(Value::new(value, refs.map_err(|_| "a records object has bad references")?))
            }
            _ => return Err("a records object ends within a record"),
        };
        changes.insert(key, value);
    }
    Ok(changes.into())
}

fn take(rest: &mut Bytes) -> Result<Bytes, &'static str> {
    let len = rest.try_get_u32_le().map_err(|_| "a records object ends within a length")? as usize;
    if len > rest.len() {
        return Err("a records object ends within a record");
    }
    Ok(rest.split_to(len))
}

/// Scans memtables, newest first, on top of a base; bounds as in [`crate::StateReader::scan`].
pub(crate) fn scan<'a>(
    memtables: impl Iterator<Item = &'a Memtable>,
    base: &'a Records,
    range: &KeyRange,
    items_max: usize,
    bytes_max: usize,
) -> Vec<(Bytes, Bytes)> {
    let mut page = Page::new(items_max, bytes_max);
    if range.is_empty() {
        return page.into_items();
    }
    let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(&range.end) };
    let bounds = (Bound::Included(&range.start), end);
    let memtables = memtables.map(|memtable| Layer::Changes(memtable.changes.range::<Bytes, _>(bounds).peekable()));
    let mut layers: Vec<_> = memtables.chain([Layer::Base(base.range::<Bytes, _>(bounds).peekable())]).collect();
    while !page.is_full() {
        let Some(key) = layers.iter_mut().filter_map(Layer::peek).min() else { break };
        let mut newest = None;
        for layer in &mut layers {
            if layer.peek() == Some(key) {
                let value = layer.next();
                newest.get_or_insert(value);
            }
        }
        if let Some(Some(value)) = newest {
            page.push(key.clone(), value.bytes().clone());
        }
    }
    page.into_items()
}

enum Layer<'a> {
    Changes(Peekable<btree_map::Range<'a, Bytes, Option<Value>>>),
    Base(Peekable<btree_map::Range<'a, Bytes, Value>>),
}

impl<'a> Layer<'a> {
    fn peek(&mut self) -> Option<&'a Bytes> {
        match self {
            Self::Changes(changes) => changes.peek().map(|(key, _)| *key),
            Self::Base(base) => base.peek().map(|(key, _)| *key),
        }
    }

    fn next(&mut self) -> Option<&'a Value> {
        match self {
            Self::Changes(changes) => changes.next().and_then(|(_, value)| value.as_ref()),
            Self::Base(base) => base.next().map(|(_, value)| value),
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_hostile::{Proportion, at_every_cut, attack, mutated};
    use flotilla_types::{ObjectId, ObjectRef};
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn text(pattern: &'static str) -> impl Strategy<Value = Bytes> {
        pattern.prop_map(Bytes::from)
    }

    fn memtables() -> impl Strategy<Value = Memtable> {
        let refs = vec(any::<u8>(), 0..3).prop_map(|ids| {
            ids.iter().map(|id| ObjectRef { id: ObjectId::of(&[*id]), height: id % 3, bytes: 7 }).collect::<Refs>()
        });
        let value = (text(".{0,5}"), refs).prop_map(|(bytes, refs)| Value::new(bytes, refs));
        vec((text("[a-c]{0,3}"), option::of(value)), 0..20).prop_map(|records| {
            let mut memtable = Memtable::default();
            memtable.write(records);
            memtable
        })
    }

    #[test]
    fn decoding_hostile_objects_allocates_in_proportion_to_their_size() {
        attack(64, memtables(), |memtable| {
            let encoded = memtable.encode();
            assert_eq!(decode(&encoded), Ok(memtable.clone()));
            assert_eq!(Memtable::from(memtable.changes.clone()).bytes, memtable.bytes);
            at_every_cut(&encoded, |cut| {
                // A cut between two records leaves a valid object.
                if let Ok(fewer) = decode(&Bytes::copy_from_slice(cut)) {
                    assert!(fewer.changes.iter().all(|(key, value)| memtable.changes.get(key) == Some(value)));
                }
            });
        });
        attack(500, mutated(memtables().prop_map(|memtable| memtable.encode())), |bytes| {
            let bytes = Bytes::from(bytes);
            let _ = Proportion::DEFAULT.of(bytes.len(), || decode(&bytes));
        });
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert!(decode(&Bytes::new()).is_err());
        assert!(decode(&Bytes::from_static(b"\x02")).is_err());
        assert!(decode(&Bytes::from_static(b"\x01\xff\xff\xff\xffabc")).is_err());
    }
}
