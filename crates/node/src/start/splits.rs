//! Splits of shards: how an operator's request becomes a command, where a shard is split, and how splits are shown.

use std::time::Instant;

use bytes::Bytes;
use flotilla_api::{Encoding, OperationInfo, OperationProgress};
use flotilla_control::buckets_begun;
use flotilla_gateway::{AdminError, StoreError};
use flotilla_meta::{MetaCommand, MetaReply, MetaState, OperationReason, OperationRecord, OperationState, ShardRecord};
use flotilla_placement::{Collection, Sharding};
use flotilla_types::{Bucket, ClusterVersion, KeyRange, NodeId, OperationKind, OperationPhase, RecordKey, ShardId};

use super::{admin::NodeAdmin, node_change::version_missing, operations::busy_with};

impl NodeAdmin {
    /// Begins to split a shard: at a key, or in the middle.
    pub(super) async fn begin_split(
        &self,
        shard: ShardId,
        at: Option<Bytes>,
        deadline: Instant,
    ) -> Result<OperationInfo, AdminError> {
        let meta = self.topology.meta();
        let (record, collection) = splittable(&meta, shard)?;
        let at = match (at, middle_bucket(&record.descriptor.range, collection)) {
            (Some(key), _) => collection.record_key(&key).into_bytes(),
            (None, Some(bucket)) => bucket,
            (None, None) => self.store.middle_key(shard, deadline).await?.ok_or_else(|| {
                refused(format!("{shard} has fewer than two records, so that there is nothing to split"))
            })?,
        };
        let elsewhere = |at: &Bytes| self.topology.map().shard_of(at).map(|home| home.descriptor.shard);
        let command = split_command(&self.topology.meta(), shard, at, elsewhere)?;
        let MetaReply::Operation(id) = self.propose(command, deadline).await? else {
            return Err(StoreError::OutcomeUnknown { shard: ShardId::META }.into());
        };
        self.wait_until(deadline, |meta| meta.operation(id).is_some()).await;
        self.show_operation(id, deadline).await
    }
}

fn refused(reason: String) -> AdminError {
    StoreError::Refused(reason).into()
}

/// A shard that can be split, with its collection.
fn splittable(meta: &MetaState, shard: ShardId) -> Result<(&ShardRecord, &Collection), AdminError> {
    let record = meta.shard(shard).ok_or(AdminError::ShardNotFound(shard))?;
    if let Some(missing) = version_missing(meta, ClusterVersion::SPLITS) {
        return Err(refused(missing));
    }
    let collection = meta.collection_with_id(record.collection);
    let collection =
        collection.ok_or_else(|| refused(format!("{shard} holds data of the cluster itself, which is not split")))?;
    match busy_with(meta, shard) {
        Some(reason) => Err(refused(reason)),
        None => Ok((record, collection)),
    }
}

/// The command that splits a shard, unless something that can be seen here speaks against it. `home` says which shard
/// has a record key.
fn split_command(
    meta: &MetaState,
    shard: ShardId,
    at: Bytes,
    home: impl Fn(&Bytes) -> Option<ShardId>,
) -> Result<MetaCommand, AdminError> {
    let (record, _) = splittable(meta, shard)?;
    let range = &record.descriptor.range;
    if at == range.start {
        return Err(refused(format!("{shard} begins with this key already, so that nothing would stay in it")));
    }
    if !range.contains(&at) {
        let lies = home(&at).filter(|home| *home != shard).map_or_else(String::new, |home| format!("; {home} has it"));
        return Err(refused(format!("this key is none of the keys of {shard}{lies}")));
    }
    Ok(MetaCommand::SplitShard { shard, at, epoch: record.descriptor.epoch, reason: OperationReason::Operator })
}

/// The record key with which the middle one of the buckets begins that begin inside a range; `None` if none does.
fn middle_bucket(range: &KeyRange, collection: &Collection) -> Option<Bytes> {
    let (first, last) = buckets_begun(range, collection)?;
    let middle = Bucket(first.0 + (last.0 + 1 - first.0) / 2);
    Some(RecordKey::new(collection.id, middle, b"").into_bytes())
}

/// Why a shard is split.
fn reason(reason: OperationReason) -> &'static str {
    if reason == OperationReason::Size {
        "the shard had more bytes than its collection allows (`split_bytes`)"
    } else {
        "an operator asked for it"
    }
}

/// A split as it is shown.
pub(super) fn describe(
    operation: &OperationRecord,
    at: &Bytes,
    child: ShardId,
    meta: &MetaState,
    me: NodeId,
) -> OperationInfo {
    let phase = match operation.state {
        OperationState::Running => OperationPhase::Splitting,
        OperationState::Paused => OperationPhase::Paused,
        OperationState::Done => OperationPhase::Done,
        OperationState::Cancelled => OperationPhase::Cancelled,
        OperationState::Superseded => OperationPhase::Superseded,
    };
    let error = (operation.state == OperationState::Superseded).then(|| "the shard was dropped".to_owned());
    let key = RecordKey::from_bytes(at.clone());
    let collection = key.as_ref().and_then(|key| meta.collection_with_id(key.collection()));
    let is_hashed = collection.is_some_and(|collection| collection.sharding == Sharding::Hash);
    let (at, encoding) = key.as_ref().map(|key| text_of(&key.user_key())).unwrap_or_default();
    OperationInfo {
        id: operation.id.to_string(),
        kind: OperationKind::SplitShard,
        phase,
        reason: reason(operation.reason).to_owned(),
        shard: operation.shard,
        replica: None,
        node: None,
        from: None,
        child: Some(child),
        right: None,
        at: Some(at),
        encoding,
        bucket: key.filter(|_| is_hashed).map(|key| key.bucket().0),
        part_of: None,
        reported_by: me,
        since_ms: operation.since_ms,
        progress: OperationProgress::default(),
        done: operation.state.has_ended(),
        error,
    }
}

/// Bytes as text, or in base64 if they are none.
fn text_of(bytes: &[u8]) -> (String, Encoding) {
    let text = [Encoding::Utf8, Encoding::Base64].into_iter().find_map(|encoding| {
        let text = encoding.encode(bytes).ok()?;
        Some((text, encoding))
    });
    text.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use flotilla_types::CollectionId;

    use super::*;

    fn collection(sharding: Sharding, buckets: u16) -> Collection {
        let (objects_from, chunking) = (Collection::OBJECTS_FROM_DEFAULT, Default::default());
        let split_bytes = Collection::SPLIT_BYTES_DEFAULT;
        let (id, name) = (CollectionId(7), "c".to_owned());
        Collection { id, name, sharding, buckets, replicas: 3, objects_from, chunking, split_bytes }
    }

    fn key(bucket: u16, key: &str) -> Bytes {
        RecordKey::new(CollectionId(7), Bucket(bucket), key.as_bytes()).into_bytes()
    }

    #[test]
    fn a_shard_of_several_buckets_is_split_between_two_of_them() {
        let hash = collection(Sharding::Hash, 8);
        let middle = |start: Bytes, end: Bytes| {
            middle_bucket(&KeyRange { start, end }, &hash).map(|at| {
                let at = RecordKey::from_bytes(at).expect("a record key");
                assert!(at.user_key().is_empty());
                at.bucket().0
            })
        };
        assert_eq!(middle(key(0, ""), key(8, "")), Some(4));
        assert_eq!(middle(key(2, ""), key(5, "")), Some(4));
        assert_eq!(middle(key(2, ""), key(4, "")), Some(3));
        assert_eq!(middle(key(2, ""), key(3, "")), None, "one bucket");
        assert_eq!(middle(key(2, "a"), key(3, "")), None, "the end of one bucket");
        assert_eq!(middle(key(2, "a"), key(2, "c")), None, "a part of one bucket");
        assert_eq!(middle(key(2, "a"), key(3, "a")), Some(3), "parts of two buckets");
        for end in [Bytes::new(), RecordKey::new(CollectionId(8), Bucket(0), b"").into_bytes()] {
            assert_eq!(middle(key(6, ""), end.clone()), Some(7), "up to the end of the collection");
            assert_eq!(middle(key(7, ""), end), None, "the last bucket");
        }
        let range = collection(Sharding::Range, 1);
        for end in [key(1, ""), key(0, "k"), key(u16::MAX, "")] {
            assert_eq!(middle_bucket(&KeyRange { start: key(0, ""), end }, &range), None);
        }
        assert_eq!(middle_bucket(&KeyRange { start: key(u16::MAX, ""), end: Bytes::new() }, &range), None);
    }

    #[test]
    fn a_key_is_shown_as_text_where_it_is_text() {
        assert_eq!(text_of(b"key"), ("key".to_owned(), Encoding::Utf8));
        assert_eq!(text_of(b"\xff"), ("/w==".to_owned(), Encoding::Base64));
        assert_eq!(text_of(b""), (String::new(), Encoding::Utf8));
    }
}
