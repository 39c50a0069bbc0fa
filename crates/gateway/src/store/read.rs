//! Point reads: grouped by shard, asked in parallel, put back in the caller's order.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use flotilla_control::{Ask, ShardError};
use flotilla_kv::{Answer, Query, Record, decode_answer, encode_query};
use flotilla_replication::clock;
use flotilla_types::{NodeId, RecordKey, ShardId};
use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use tokio::sync::oneshot;

use super::{
    Consistency, Found, KEYS_MAX, RETRY_AFTER_MS, Store, StoreError, check_key, collection_of, deadline_ms,
    lanes::{self, Cost, Lanes, Part},
};

const MISFIT: StoreError =
    StoreError::Invalid("the answer does not fit the question; gateway and shard differ in version");

impl Store {
    /// Reads records, of any shards, in the order of the keys.
    pub async fn get(
        &self,
        collection: &str,
        keys: Vec<Bytes>,
        values: bool,
        consistency: Consistency,
        deadline: Instant,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let Consistency::Strong = consistency;
        if keys.len() > KEYS_MAX {
            return Err(StoreError::Invalid("a read may name at most 4,096 keys"));
        }
        let deadline_ms = deadline_ms(deadline);
        let mut by_shard: BTreeMap<ShardId, (u64, Vec<usize>, Vec<Bytes>)> = BTreeMap::new();
        {
            let map = self.map();
            let collection = collection_of(&map, collection)?;
            for (at, key) in keys.iter().enumerate() {
                check_key(key)?;
                let record_key = collection.record_key(key).into_bytes();
                let shard = map.shard_of(&record_key).ok_or(StoreError::Unavailable { shard: None, leader: None })?;
                let descriptor = &shard.descriptor;
                let group = by_shard.entry(descriptor.shard).or_insert((descriptor.epoch.range, vec![], vec![]));
                group.1.push(at);
                group.2.push(record_key);
            }
        }
        let asks = by_shard.into_iter().map(|(shard, (epoch, places, keys))| async move {
            let found = self.get_from(shard, epoch, keys, values, deadline_ms).await?;
            Ok::<_, StoreError>(places.into_iter().zip(found))
        });
        let mut records = vec![None; keys.len()];
        for (at, found) in try_join_all(asks).await?.into_iter().flatten() {
            records[at] = found;
        }
        Ok(records)
    }

    /// Reads from one shard, in a query that other callers' keys share.
    async fn get_from(
        &self,
        shard: ShardId,
        range_epoch: u64,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let part = ReadPart { range_epoch, keys, values, deadline_ms, reply };
        Lanes::offer(self, shard, part).map_err(|lanes::Full| StoreError::Busy { retry_after_ms: RETRY_AFTER_MS })?;
        match tokio::time::timeout(lanes::left(deadline_ms), answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Err(StoreError::DeadlineExceeded { shard: Some(shard) }),
        }
    }

    /// One query; asks in halves what is too much for one answer.
    fn get_now(
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
            let Query::Get { keys, .. } = query else { return Err(MISFIT) };
            match answer {
                (Answer::Records(records), node) if records.len() == keys.len() => {
                    Ok(records.into_iter().map(|record| Some(found(record?, node, shard))).collect())
                }
                (Answer::TooLarge, _) if keys.len() > 1 => {
                    let (left, right) = keys.split_at(keys.len() / 2);
                    let mut records = self.get_now(shard, range_epoch, left.to_vec(), values, deadline_ms).await?;
                    records.extend(self.get_now(shard, range_epoch, right.to_vec(), values, deadline_ms).await?);
                    Ok(records)
                }
                (Answer::WrongShard, _) => Err(StoreError::Unavailable { shard: Some(shard), leader: None }),
                _ => Err(MISFIT),
            }
        }
        .boxed()
    }

    /// Asks one shard; moves its clock when a record is due by the wall clock and not yet by the log's.
    pub(super) async fn query(
        &self,
        shard: ShardId,
        range_epoch: u64,
        query: &Query,
        deadline_ms: u64,
    ) -> Result<(Answer, NodeId), StoreError> {
        let payload = encode_query(query);
        loop {
            let asked = self.inner.shards.ask(Ask::Query, shard, Some(range_epoch), payload.clone(), deadline_ms).await;
            let (answer, node) = asked.map_err(|error| match error {
                ShardError::Unknown => self.error_of(ShardError::Unavailable, shard, deadline_ms),
                other => self.error_of(other, shard, deadline_ms),
            })?;
            let answer = decode_answer(answer)
                .map_err(|_| StoreError::Invalid("the answer does not parse; gateway and shard differ in version"))?;
            if answer != Answer::TimeNeeded {
                return Ok((answer, node));
            }
            if clock::monotonic_ms() >= deadline_ms {
                return Err(StoreError::DeadlineExceeded { shard: Some(shard) });
            }
            self.move_clock(shard, deadline_ms).await?;
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

/// One caller's keys.
pub(super) struct ReadPart {
    range_epoch: u64,
    /// Record keys.
    keys: Vec<Bytes>,
    values: bool,
    deadline_ms: u64,
    reply: oneshot::Sender<Result<Vec<Option<Found>>, StoreError>>,
}

impl Part for ReadPart {
    /// The answer bounds itself, and what is too much for it is asked for in halves.
    const RESULT_BYTES_MAX: usize = usize::MAX;

    fn lanes(store: &Store) -> &Lanes<Self> {
        &store.inner.reads
    }

    fn label(&self) -> u64 {
        self.range_epoch << 1 | u64::from(self.values)
    }

    fn cost(&self) -> Cost {
        Cost { keys: self.keys.len(), bytes: self.keys.iter().map(Bytes::len).sum(), result_bytes: 0 }
    }

    fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    fn exclusive(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::empty()
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    async fn call(store: Store, shard: ShardId, mut parts: Vec<Self>) {
        let keys: Vec<Bytes> = parts.iter().flat_map(|part| part.keys.iter().cloned()).collect();
        let Some((range_epoch, values, deadline_ms)) = parts
            .iter()
            .map(|part| (part.range_epoch, part.values, part.deadline_ms))
            .min_by_key(|(_, _, deadline)| *deadline)
        else {
            return;
        };
        match store.get_now(shard, range_epoch, keys, values, deadline_ms).await {
            Ok(found) => {
                let mut found = found.into_iter();
                for part in parts {
                    let _ = part.reply.send(Ok(found.by_ref().take(part.keys.len()).collect()));
                }
            }
            Err(error) if parts.len() > 1 && error.concerns_one() => {
                // One value that is too large for any answer must not fail its neighbours.
                for part in parts.drain(..) {
                    let alone = store.get_now(shard, range_epoch, part.keys, values, part.deadline_ms).await;
                    let _ = part.reply.send(alone);
                }
            }
            Err(error) => {
                for part in parts {
                    let _ = part.reply.send(Err(error.clone()));
                }
            }
        }
    }
}
