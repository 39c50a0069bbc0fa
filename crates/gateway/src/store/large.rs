//! Large values as the protocols write and read them: what is long becomes objects, and objects become content again.

use std::{ops::Range, sync::Arc, time::Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use flotilla_api::{LARGE_VALUE_BYTES_MAX, VALUE_BYTES_MAX};
use flotilla_kv::{Action, Condition, Content, Expiry, Operation, OperationResult, Value};
use flotilla_placement::Collection;
use flotilla_storage::ValueObjects;
use flotilla_types::{ClusterVersion, NodeId, Refs, ShardId};
use flotilla_values::{Chunking, Cutter, Reader, Slice, Step, ValueRef};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Found, Store, StoreError, Written, collection_of,
    values::{Damaged, Hold, ValueReader, ValueWriter, Values, held_object},
};

/// How often a record is read again because its objects were gone: it was overwritten each time.
const OPEN_TRIES_MAX: usize = 4;
/// How often an append to a large value starts again because others wrote the record.
const APPEND_TRIES_MAX: usize = 16;

/// How the values of a collection are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ValueRules {
    /// Values that are longer become objects, bytes.
    pub(crate) objects_from: u64,
    pub(crate) chunking: Chunking,
}

impl ValueRules {
    fn of(collection: &Collection) -> Self {
        // No record has a longer value.
        let objects_from = collection.objects_from.min(VALUE_BYTES_MAX as u32).into();
        Self { objects_from, chunking: collection.chunking }
    }

    /// Whether a value is longer than records are.
    pub(super) fn makes_objects_of(&self, value: &Value) -> bool {
        value.inline().is_some_and(|bytes| bytes.len() as u64 > self.objects_from)
    }
}

/// A record with a large value, of which a part can be read.
pub(crate) enum Opened {
    Part(ValueReader),
    /// The record has changed since it was read, or is gone: judge it anew.
    Changed(Option<Found>),
}

/// Bytes of a large value, which count on the node's bound until they are dropped.
struct Whole {
    bytes: Vec<u8>,
    _room: Arc<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Store {
    pub(crate) fn values(&self) -> &Values {
        &self.inner.values
    }

    /// How values of a collection become objects; `None` while the cluster's version does not have that.
    pub(crate) fn value_rules(&self, collection: &str) -> Result<Option<ValueRules>, StoreError> {
        let map = self.map();
        let collection = collection_of(&map, collection)?;
        Ok(self.has_objects().then(|| ValueRules::of(collection)))
    }

    /// A writer for one value, whose objects it stores on this node.
    pub(crate) fn value_writer(&self, rules: ValueRules, bytes_max: u64) -> Result<ValueWriter, StoreError> {
        Ok(ValueWriter::new(Hold::begin(self.values())?, rules.chunking, bytes_max))
    }

    /// The nodes that have the objects of a shard's records.
    pub(crate) fn nodes_of(&self, shard: ShardId) -> Vec<NodeId> {
        self.inner.shards.nodes_of(shard)
    }

    /// Prepares to read a part of a record's large value. What this node lacks is fetched.
    pub(crate) async fn open(
        &self,
        collection: &str,
        found: &Found,
        value: &ValueRef,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Opened, StoreError> {
        match self.open_value(value, found.shard, range, deadline).await {
            Ok(reader) => Ok(Opened::Part(reader)),
            Err(StoreError::ObjectsMissing { .. }) => {
                match self.get_one(collection, found.key.clone(), deadline).await? {
                    Some(now) if now.version == found.version => Err(StoreError::ObjectsUnavailable),
                    now => Ok(Opened::Changed(now)),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn open_value(
        &self,
        value: &ValueRef,
        shard: ShardId,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<ValueReader, StoreError> {
        let time_left = deadline.saturating_duration_since(Instant::now());
        ValueReader::open(self.values(), value, range, self.nodes_of(shard), time_left).await
    }

    /// Accepts a value by its reference, if an upload holds its objects, and if its content, cut as in the collection,
    /// has the same reference.
    pub(crate) async fn accept(
        &self,
        rules: ValueRules,
        value: ValueRef,
        upload: u64,
    ) -> Result<(Content, Hold), StoreError> {
        let limit_bytes = LARGE_VALUE_BYTES_MAX as u64;
        if value.bytes() > limit_bytes {
            return Err(StoreError::ValueTooLarge { limit_bytes });
        }
        let hold = Hold::of(self.values(), upload)?;
        let missing = hold.need(value.refs().ids().collect()).await?;
        if !missing.is_empty() {
            return Err(StoreError::ObjectsMissing { missing });
        }
        let is_short = value.bytes() <= rules.objects_from;
        if !is_short && self.values().is_verified(&value, rules.chunking) {
            return Ok((Content::Large(value), hold));
        }
        let (given, chunking) = (value.clone(), rules.chunking);
        let content = self.values().work(0, move |objects| recut(objects, &given, chunking, is_short)).await??;
        if let Some(content) = content {
            return Ok((Content::Inline(content), hold));
        }
        self.values().verified(&value, rules.chunking);
        Ok((Content::Large(value), hold))
    }

    /// The bytes of a part of a value, in memory. Parts of all large values that are in use are bounded together.
    ///
    /// # Errors
    /// [`StoreError::ObjectsMissing`]: the record was overwritten since the value was read, or its objects cannot be
    /// had.
    pub async fn part(
        &self,
        value: &Value,
        shard: ShardId,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Bytes, StoreError> {
        match &value.content {
            Content::Inline(bytes) => {
                let bound = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(bound(range.start).min(bound(range.end))..bound(range.end)))
            }
            Content::Large(value) => {
                let whole = self.whole(value, shard, range, 0, deadline).await?;
                Ok(Bytes::from_owner(whole))
            }
        }
    }

    /// Reads the bytes of large values into memory, of which each is there `copies` times.
    ///
    /// # Errors
    /// [`StoreError::ObjectsMissing`], as for [`part`](Self::part). Some of them may have been read.
    pub async fn load(&self, found: Vec<&mut Found>, copies: u32, deadline: Instant) -> Result<(), StoreError> {
        let large: Vec<_> = found.into_iter().filter(|found| found.value.inline().is_none()).collect();
        let bytes = large.iter().map(|found| found.value_bytes).sum::<u64>().saturating_mul(copies.into());
        // For all at once: whoever has room for some and waits for more keeps it from others.
        let room = Arc::new(self.values().room(bytes, deadline).await?);
        for found in large {
            if let Content::Large(value) = &found.value.content {
                let bytes = self.read_value(value, found.shard, 0..value.bytes(), 0, deadline).await?;
                found.value.content = Content::Inline(Bytes::from_owner(Whole { bytes, _room: room.clone() }));
            }
        }
        Ok(())
    }

    /// The longest value that a record may have, bytes.
    #[must_use]
    pub fn value_bytes_max(&self) -> usize {
        if self.has_objects() { LARGE_VALUE_BYTES_MAX } else { VALUE_BYTES_MAX }
    }

    fn has_objects(&self) -> bool {
        self.inner.shards.topology().meta().cluster_version() >= ClusterVersion::VALUE_REFS
    }

    /// A part of a value, with room for `extra` bytes behind it.
    async fn whole(
        &self,
        value: &ValueRef,
        shard: ShardId,
        range: Range<u64>,
        extra: usize,
        deadline: Instant,
    ) -> Result<Whole, StoreError> {
        let length = range.end.saturating_sub(range.start) + extra as u64;
        let room = Arc::new(self.values().room(length, deadline).await?);
        Ok(Whole { bytes: self.read_value(value, shard, range, extra, deadline).await?, _room: room })
    }

    async fn read_value(
        &self,
        value: &ValueRef,
        shard: ShardId,
        range: Range<u64>,
        extra: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, StoreError> {
        let length = range.end.saturating_sub(range.start);
        let mut reader = self.open_value(value, shard, range, deadline).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + extra);
        while let Some(part) = reader.next().await? {
            bytes.extend_from_slice(&part);
            if Instant::now() >= deadline {
                return Err(StoreError::DeadlineExceeded { shard: Some(shard) });
            }
        }
        Ok(bytes)
    }

    /// A record with its whole value in memory. One whose objects are gone is read again, because it was overwritten,
    /// unless it is of a snapshot.
    pub async fn with_content(
        &self,
        collection: &str,
        mut found: Found,
        is_of_snapshot: bool,
        deadline: Instant,
    ) -> Result<Option<Found>, StoreError> {
        for _ in 0..OPEN_TRIES_MAX {
            let bytes = match self.part(&found.value, found.shard, 0..found.value_bytes, deadline).await {
                Ok(bytes) => bytes,
                Err(StoreError::ObjectsMissing { .. }) if is_of_snapshot => break,
                Err(StoreError::ObjectsMissing { .. }) => {
                    let Some(now) = self.get_one(collection, found.key.clone(), deadline).await? else {
                        return Ok(None);
                    };
                    if now.version == found.version {
                        break;
                    }
                    found = now;
                    continue;
                }
                Err(error) => return Err(error),
            };
            found.value.content = Content::Inline(bytes);
            return Ok(Some(found));
        }
        Err(StoreError::ObjectsUnavailable)
    }

    /// Makes objects of the long values among these writes. They are held by what is returned.
    pub(super) async fn store_long(
        &self,
        rules: ValueRules,
        operations: &mut [Operation],
    ) -> Result<Option<Hold>, StoreError> {
        let mut hold = None;
        for operation in operations {
            let Action::Put { value, .. } = &mut operation.action else { continue };
            if !rules.makes_objects_of(value) {
                continue;
            }
            let Content::Inline(bytes) = &value.content else { continue };
            let begun = hold.take().map_or_else(|| Hold::begin(self.values()), Ok)?;
            let mut writer = ValueWriter::new(begun, rules.chunking, bytes.len() as u64);
            writer.push(bytes.clone()).await?;
            let (stored, held) = writer.finish().await?;
            value.content = Content::Large(stored);
            hold = Some(held);
        }
        if let Some(hold) = &hold {
            hold.sync().await?;
        }
        Ok(hold)
    }

    /// Appends to large values: reads them, and puts them whole, on the condition that nobody wrote them meanwhile.
    pub(super) async fn append_whole(
        &self,
        collection: &str,
        rules: ValueRules,
        conditions: &[(Bytes, Condition)],
        operations: &[Operation],
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        let is_append = |operation: &&Operation| matches!(operation.action, Action::Append { .. });
        let others = |key: &Bytes| operations.iter().filter(|other| other.key == *key).count() > 1;
        if operations.iter().filter(is_append).any(|operation| others(&operation.key)) {
            return Err(StoreError::LargeValue);
        }
        for attempt in 0..APPEND_TRIES_MAX {
            let mut whole =
                Appended { conditions: conditions.to_vec(), operations: operations.to_vec(), lengths: Vec::new() };
            for (index, operation) in operations.iter().enumerate() {
                if let Action::Append { bytes } = &operation.action {
                    self.append_one(collection, index, bytes, &mut whole, deadline).await?;
                }
            }
            let Appended { conditions: all, operations: mut puts, lengths } = whole;
            let hold = self.store_long(rules, &mut puts).await?;
            let written = self.write_stored(collection, all.clone(), puts, deadline).await;
            match written {
                Err(StoreError::ConditionFailed { operation, found }) => {
                    let (given, own) = (conditions.len(), all.len() - conditions.len());
                    match (operation as usize).checked_sub(given) {
                        Some(behind) if behind < own && attempt + 1 < APPEND_TRIES_MAX => {}
                        Some(behind) if behind < own => return Err(super::values::BUSY),
                        Some(_) => {
                            return Err(StoreError::ConditionFailed { operation: operation - own as u32, found });
                        }
                        None => return Err(StoreError::ConditionFailed { operation, found }),
                    }
                }
                Ok(mut written) => {
                    for (index, length) in lengths {
                        if let Some(OperationResult::Written { number, .. }) = written.results.get_mut(index) {
                            *number = length;
                        }
                    }
                    return Ok(written);
                }
                Err(error) => return Err(Hold::after(hold, error)),
            }
        }
        Err(super::values::BUSY)
    }

    /// Replaces one append by a put of the whole value, if that is large or becomes too long for a record.
    async fn append_one(
        &self,
        collection: &str,
        index: usize,
        appended: &Bytes,
        whole: &mut Appended,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let key = whole.operations[index].key.clone();
        let found = self.get_one(collection, key.clone(), deadline).await?;
        let length = found.as_ref().map_or(0, |found| found.value_bytes) + appended.len() as u64;
        if length > LARGE_VALUE_BYTES_MAX as u64 {
            return Err(StoreError::ValueTooLarge { limit_bytes: LARGE_VALUE_BYTES_MAX as u64 });
        }
        let is_large = found.as_ref().is_some_and(|found| found.value.inline().is_none());
        if !is_large && length <= VALUE_BYTES_MAX as u64 {
            return Ok(());
        }
        let mut content = match found.as_ref().map(|found| (&found.value.content, found)) {
            Some((Content::Large(value), found)) => {
                self.whole(value, found.shard, 0..value.bytes(), appended.len(), deadline).await?
            }
            before => {
                let room = Arc::new(self.values().room(length, deadline).await?);
                let before = before.and_then(|(_, found)| found.value.inline().cloned()).unwrap_or_default();
                Whole { bytes: before.into(), _room: room }
            }
        };
        content.bytes.extend_from_slice(appended);
        let value = Value {
            content: Content::Inline(Bytes::from_owner(content)),
            media_type: found.as_ref().map(|found| found.value.media_type.clone()).unwrap_or_default(),
        };
        whole.operations[index].action = Action::Put { value, expiry: Expiry::Keep, return_old: false };
        whole.conditions.push((key, found.map_or(Condition::Absent, |found| Condition::Version(found.version))));
        whole.lengths.push((index, i64::try_from(length).unwrap_or(i64::MAX)));
        Ok(())
    }
}

/// Cuts the content of a reference again, whose objects are here, and compares. Returns the content of a short one.
///
/// # Errors
/// [`StoreError::WrongReference`] if another reference comes out, or none; [`StoreError::ObjectsMissing`] if an object
/// is found damaged.
fn recut(
    objects: &dyn ValueObjects,
    value: &ValueRef,
    chunking: Chunking,
    is_short: bool,
) -> Result<Option<Bytes>, StoreError> {
    let wrong = StoreError::WrongReference;
    let mut reader = Reader::new(value, 0..value.bytes()).map_err(|_| wrong.clone())?;
    let mut cutter = Cutter::new(chunking, value.bytes());
    let mut short = BytesMut::new();
    while let Some(step) = reader.step() {
        let (Step::List(need) | Step::Chunk(Slice { need, .. })) = step;
        // The client has it at hand.
        let missing = |Damaged(need)| StoreError::ObjectsMissing { missing: vec![need.id] };
        let object = held_object(objects, &need)?.map_err(missing)?;
        match step {
            Step::List(_) => reader.supply(&object).map_err(|_| wrong.clone())?,
            Step::Chunk(slice) => {
                let bytes = slice.of(&object).map_err(|_| wrong.clone())?;
                let mut rest = &bytes[..];
                while cutter.push(&mut rest).map_err(|_| wrong.clone())?.is_some() {}
                if is_short {
                    short.put_slice(&bytes);
                }
            }
        }
    }
    if cutter.finish().value != *value {
        return Err(wrong);
    }
    Ok(is_short.then(|| short.freeze()))
}

/// A command in which appends were replaced.
struct Appended {
    /// Those that were given, and behind them one for each append that was replaced.
    conditions: Vec<(Bytes, Condition)>,
    operations: Vec<Operation>,
    /// The results of the appends that were replaced.
    lengths: Vec<(usize, i64)>,
}

/// Whether the objects of all values fit into one entry.
pub(super) fn refs_fit(operations: &[Operation]) -> bool {
    let refs = |operation: &Operation| match &operation.action {
        Action::Put { value, .. } => value.refs().len(),
        _ => 0,
    };
    operations.iter().map(refs).sum::<usize>() <= Refs::MAX
}
