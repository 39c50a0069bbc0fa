//! Point reads: grouped by shard, asked in parallel, put back in the caller's order.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use flotilla_control::{Ask, ShardError};
use flotilla_kv::{Answer, Query, Record, decode_answer, encode_query};
use flotilla_replication::clock;
use flotilla_types::{NodeId, RecordKey, ShardId};
use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};

use super::{Consistency, Found, KEYS_MAX, Store, StoreError, check_key, collection_of, deadline_ms};

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

    /// Reads from one shard; asks in halves what is too much for one answer.
    fn get_from(
        &self,
        shard: ShardId,
        range_epoch: u64,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> BoxFuture<'_, Result<Vec<Option<Found>>, StoreError>> {
        async move {
            let query = Query::Get { keys: keys.clone(), values };
            match self.query(shard, range_epoch, &query, deadline_ms).await? {
                (Answer::Records(records), node) if records.len() == keys.len() => {
                    Ok(records.into_iter().map(|record| Some(found(record?, node, shard))).collect())
                }
                (Answer::TooLarge, _) if keys.len() > 1 => {
                    let (left, right) = keys.split_at(keys.len() / 2);
                    let mut records = self.get_from(shard, range_epoch, left.to_vec(), values, deadline_ms).await?;
                    records.extend(self.get_from(shard, range_epoch, right.to_vec(), values, deadline_ms).await?);
                    Ok(records)
                }
                (Answer::WrongShard, _) => Err(StoreError::Unavailable { shard: Some(shard), leader: None }),
                _ => Err(StoreError::Invalid(
                    "the answer does not fit the question; gateway and shard differ in version",
                )),
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
