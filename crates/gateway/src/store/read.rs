//! Point reads: keys are grouped by shard, read in parallel, and answered in the caller's order.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use flotilla_control::{RequestKind, ShardAnswer};
use flotilla_kv::{Answer, Query, Record, decode_answer, encode_query};
use flotilla_replication::clock;
use flotilla_types::{NodeId, RecordKey, ShardId};
use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use tokio::sync::oneshot;

use super::{
    Consistency, Found, READ_KEYS_MAX, RETRY_AFTER_MS, Store, StoreError,
    batcher::{Batchable, Batchers, Cost, QueueFull, time_left},
    check_key, collection_of, deadline_ms,
};

const UNEXPECTED_ANSWER: StoreError =
    StoreError::Invalid("the answer does not match the query; gateway and shard differ in version");

/// The keys of one read that live in one shard.
struct ShardKeys {
    range_epoch: u64,
    /// Index of each key in the caller's order.
    indices: Vec<usize>,
    /// Record keys.
    keys: Vec<Bytes>,
}

impl Store {
    /// Reads records from any number of shards, in the order of the keys.
    pub async fn get(
        &self,
        collection: &str,
        keys: Vec<Bytes>,
        values: bool,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let Consistency::Strong = consistency;
        if keys.len() > READ_KEYS_MAX {
            return Err(StoreError::Invalid("a read may name at most 4,096 keys"));
        }
        let deadline_ms = deadline_ms(deadline);
        let mut by_shard: BTreeMap<ShardId, ShardKeys> = BTreeMap::new();
        {
            let map = self.map();
            let collection = collection_of(&map, collection)?;
            for (index, key) in keys.iter().enumerate() {
                check_key(key)?;
                let record_key = collection.record_key(key).into_bytes();
                let shard = map.shard_of(&record_key).ok_or(StoreError::Unavailable { shard: None, leader: None })?;
                let descriptor = &shard.descriptor;
                let group = by_shard.entry(descriptor.shard).or_insert_with(|| ShardKeys {
                    range_epoch: descriptor.epoch.range,
                    indices: Vec::new(),
                    keys: Vec::new(),
                });
                group.indices.push(index);
                group.keys.push(record_key);
            }
        }
        let reads = by_shard.into_iter().map(|(shard, ShardKeys { range_epoch, indices, keys })| async move {
            let found = self.get_shared(shard, range_epoch, keys, values, deadline_ms).await?;
            Ok::<_, StoreError>(indices.into_iter().zip(found))
        });
        let mut records = vec![None; keys.len()];
        for (index, found) in try_join_all(reads).await?.into_iter().flatten() {
            records[index] = found;
        }
        Ok(records)
    }

    /// Reads records of one shard as of one moment, in the order of the keys. `None`: they are too much for
    /// one answer.
    pub async fn get_at_once(
        &self,
        collection: &str,
        keys: Vec<Bytes>,
        values: bool,
        deadline: Instant,
    ) -> Result<Option<Vec<Option<Found>>>, StoreError> {
        if keys.len() > READ_KEYS_MAX {
            return Err(StoreError::Invalid("a read may name at most 4,096 keys"));
        }
        let deadline_ms = deadline_ms(deadline);
        let (shard, range_epoch, keys) = {
            let map = self.map();
            let collection = collection_of(&map, collection)?;
            let (mut route, mut record_keys) = (None, Vec::with_capacity(keys.len()));
            for key in &keys {
                check_key(key)?;
                let record_key = collection.record_key(key).into_bytes();
                let shard = map.shard_of(&record_key).ok_or(StoreError::Unavailable { shard: None, leader: None })?;
                let found = (shard.descriptor.shard, shard.descriptor.epoch.range);
                if *route.get_or_insert(found) != found {
                    return Err(StoreError::CrossShard);
                }
                record_keys.push(record_key);
            }
            let Some((shard, range_epoch)) = route else { return Ok(Some(Vec::new())) };
            (shard, range_epoch, record_keys)
        };
        let count = keys.len();
        match self.query(shard, range_epoch, &Query::Get { keys, values }, deadline_ms).await? {
            (Answer::Records(records), node) if records.len() == count => {
                Ok(Some(records.into_iter().map(|record| Some(found(record?, node, shard))).collect()))
            }
            (Answer::TooLarge, _) => Ok(None),
            (Answer::WrongShard, _) => Err(StoreError::Unavailable { shard: Some(shard), leader: None }),
            _ => Err(UNEXPECTED_ANSWER),
        }
    }

    /// Reads from one shard by a query that it may share with other callers' keys.
    async fn get_shared(
        &self,
        shard: ShardId,
        range_epoch: u64,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let request = PendingRead { range_epoch, keys, values, deadline_ms, reply };
        let busy = StoreError::Busy { retry_after_ms: RETRY_AFTER_MS };
        Batchers::submit(self, shard, request).map_err(|QueueFull| busy)?;
        match tokio::time::timeout(time_left(deadline_ms), answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Err(StoreError::DeadlineExceeded { shard: Some(shard) }),
        }
    }

    /// Reads from one shard by one query, or by halves what is too much for one answer.
    fn get_unshared(
        &self,
        shard: ShardId,
        range_epoch: u64,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> BoxFuture<'_, Result<Vec<Option<Found>>, StoreError>> {
        async move {
            let query = Query::Get { keys, values };
            let answer = self.query(shard, range_epoch, &query, deadline_ms).await?;
            let Query::Get { keys, .. } = query else { return Err(UNEXPECTED_ANSWER) };
            match answer {
                (Answer::Records(records), node) if records.len() == keys.len() => {
                    Ok(records.into_iter().map(|record| Some(found(record?, node, shard))).collect())
                }
                (Answer::TooLarge, _) if keys.len() > 1 => {
                    let (left, right) = keys.split_at(keys.len() / 2);
                    let mut records = self.get_unshared(shard, range_epoch, left.to_vec(), values, deadline_ms).await?;
                    records.extend(self.get_unshared(shard, range_epoch, right.to_vec(), values, deadline_ms).await?);
                    Ok(records)
                }
                (Answer::WrongShard, _) => Err(StoreError::Unavailable { shard: Some(shard), leader: None }),
                _ => Err(UNEXPECTED_ANSWER),
            }
        }
        .boxed()
    }

    /// Queries one shard. Advances its clock when a record has expired by the wall clock and not yet by the
    /// log's.
    pub(super) async fn query(
        &self,
        shard: ShardId,
        range_epoch: u64,
        query: &Query,
        deadline_ms: u64,
    ) -> Result<(Answer, NodeId), StoreError> {
        let payload = encode_query(query);
        loop {
            let result = self
                .inner
                .shards
                .request(RequestKind::Query, shard, Some(range_epoch), payload.clone(), deadline_ms)
                .await;
            let ShardAnswer { payload: answer, node, .. } =
                result.map_err(|error| self.read_error(error, shard, deadline_ms))?;
            let answer = decode_answer(answer)
                .map_err(|_| StoreError::Invalid("the answer does not parse; gateway and shard differ in version"))?;
            if answer != Answer::ClockAdvanceNeeded {
                return Ok((answer, node));
            }
            if clock::monotonic_ms() >= deadline_ms {
                return Err(StoreError::DeadlineExceeded { shard: Some(shard) });
            }
            self.advance_clock(shard, deadline_ms).await?;
        }
    }
}

pub(super) fn found(record: Record, served_by: NodeId, shard: ShardId) -> Found {
    Found {
        key: record.key.slice(RecordKey::PREFIX_BYTES.min(record.key.len())..),
        value: record.value,
        version: record.version,
        expires_at_ms: record.expires_at_ms,
        value_bytes: record.value_bytes,
        served_by,
        shard,
    }
}

/// One caller's keys, waiting for a query to share.
pub(super) struct PendingRead {
    range_epoch: u64,
    /// Record keys.
    keys: Vec<Bytes>,
    values: bool,
    deadline_ms: u64,
    reply: oneshot::Sender<Result<Vec<Option<Found>>, StoreError>>,
}

impl Batchable for PendingRead {
    /// Unbounded: the shard bounds its answer, and a read that is too large is split in half.
    const RESULT_BYTES_MAX: usize = usize::MAX;

    fn batchers(store: &Store) -> &Batchers<Self> {
        &store.inner.reads
    }

    fn batch_key(&self) -> u64 {
        self.range_epoch << 1 | u64::from(self.values)
    }

    fn cost(&self) -> Cost {
        Cost { keys: self.keys.len(), bytes: self.keys.iter().map(Bytes::len).sum(), result_bytes: 0 }
    }

    fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    fn exclusive_keys(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::empty()
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    async fn call(store: Store, shard: ShardId, requests: Vec<Self>) {
        let keys: Vec<Bytes> = requests.iter().flat_map(|request| request.keys.iter().cloned()).collect();
        let Some((range_epoch, values, deadline_ms)) = requests
            .iter()
            .map(|request| (request.range_epoch, request.values, request.deadline_ms))
            .min_by_key(|(_, _, deadline_ms)| *deadline_ms)
        else {
            return;
        };
        match store.get_unshared(shard, range_epoch, keys, values, deadline_ms).await {
            Ok(found) => {
                let mut found = found.into_iter();
                for request in requests {
                    let _ = request.reply.send(Ok(found.by_ref().take(request.keys.len()).collect()));
                }
            }
            Err(error) if requests.len() > 1 && error.is_request_error() => {
                // One value that is too large for any answer must not fail the other requests.
                for request in requests {
                    let found = store.get_unshared(shard, range_epoch, request.keys, values, request.deadline_ms).await;
                    let _ = request.reply.send(found);
                }
            }
            Err(error) => {
                for request in requests {
                    let _ = request.reply.send(Err(error.clone()));
                }
            }
        }
    }
}
