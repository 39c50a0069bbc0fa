//! Point reads: keys are grouped by shard, read in parallel, and answered in the caller's order. Keys whose
//! shard refused the route are grouped and read again.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use flotilla_control::{RequestKind, ShardAnswer, ShardError, clock};
use flotilla_kv::{Answer, Query, Record, decode_answer, encode_query, encode_query_as_of};
use flotilla_placement::ShardMap;
use flotilla_route::Route;
use flotilla_types::{NodeId, RecordKey, ShardId};
use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use tokio::sync::oneshot;

use super::{
    Consistency, Found, READ_KEYS_MAX, RETRY_AFTER_MS, Store, StoreError,
    batcher::{Batchable, Batchers, Cost, QueueFull, time_left},
    check_key, collection_of, deadline_ms,
    error::ReadError,
    routes::{Rerouting, home, route_to},
};

const UNEXPECTED_ANSWER: StoreError =
    StoreError::Invalid("the answer does not match the query; gateway and shard differ in version");

/// The keys of one read that live in one shard.
#[derive(Default)]
struct ShardKeys {
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
        let keys = {
            let map = self.map();
            let collection = collection_of(&map, collection)?;
            let record_key = |key: &Bytes| check_key(key).map(|()| collection.record_key(key).into_bytes());
            keys.iter().map(record_key).collect::<Result<Vec<_>, _>>()?
        };
        let mut records = vec![None; keys.len()];
        let mut unread: Vec<usize> = (0..keys.len()).collect();
        let mut rerouting = Rerouting::new(self, deadline_ms);
        while !unread.is_empty() {
            let groups = rerouting.route(|map| by_shard(map, &keys, &unread)).await?;
            let reads = groups.into_iter().map(|(route, ShardKeys { indices, keys })| async move {
                match self.get_shared(route, keys, values, deadline_ms).await {
                    Ok(found) => Ok((route, indices, Some(found))),
                    Err(ReadError::Stale) => Ok((route, indices, None)),
                    Err(ReadError::Failed(error)) => Err(error),
                }
            });
            unread.clear();
            for (route, indices, found) in try_join_all(reads).await? {
                match found {
                    Some(found) => indices.into_iter().zip(found).for_each(|(index, found)| records[index] = found),
                    None => {
                        rerouting.refused(route);
                        unread.extend(indices);
                    }
                }
            }
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
        let keys = {
            let map = self.map();
            let collection = collection_of(&map, collection)?;
            let record_key = |key: &Bytes| check_key(key).map(|()| collection.record_key(key).into_bytes());
            keys.iter().map(record_key).collect::<Result<Vec<_>, _>>()?
        };
        let all: Vec<usize> = (0..keys.len()).collect();
        let mut rerouting = Rerouting::new(self, deadline_ms);
        loop {
            let mut groups = rerouting.route(|map| by_shard(map, &keys, &all)).await?.into_iter();
            let (route, _) = match (groups.next(), groups.next()) {
                (None, _) => return Ok(Some(Vec::new())),
                (Some(one), None) => one,
                (Some(_), Some(_)) => return Err(StoreError::CrossShard),
            };
            let query = Query::Get { keys: keys.clone(), values };
            return match self.query(route, &query, deadline_ms).await {
                Ok((Answer::Records(records), node)) if records.len() == keys.len() => {
                    Ok(Some(records.into_iter().map(|record| Some(found(record?, node, route.shard))).collect()))
                }
                Ok((Answer::TooLarge, _)) => Ok(None),
                Ok(_) => Err(UNEXPECTED_ANSWER),
                Err(ReadError::Failed(error)) => Err(error),
                Err(ReadError::Stale) => {
                    rerouting.refused(route);
                    continue;
                }
            };
        }
    }

    /// Reads from one shard by a query that it may share with other callers' keys.
    async fn get_shared(
        &self,
        route: Route,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> Result<Vec<Option<Found>>, ReadError> {
        let Route { shard, range_epoch } = route;
        let (reply, answer) = oneshot::channel();
        let request = PendingRead { range_epoch, keys, values, deadline_ms, reply };
        let busy = StoreError::Busy { retry_after_ms: RETRY_AFTER_MS };
        Batchers::submit(self, shard, request).map_err(|QueueFull| busy)?;
        match tokio::time::timeout(time_left(deadline_ms), answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Err(StoreError::DeadlineExceeded { shard: Some(shard) }.into()),
        }
    }

    /// Reads from one shard by one query, or by halves what is too much for one answer.
    fn get_unshared(
        &self,
        route: Route,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> BoxFuture<'_, Result<Vec<Option<Found>>, ReadError>> {
        async move {
            let query = Query::Get { keys, values };
            let answer = self.query(route, &query, deadline_ms).await?;
            let Query::Get { keys, .. } = query else { return Err(UNEXPECTED_ANSWER.into()) };
            match answer {
                (Answer::Records(records), node) if records.len() == keys.len() => {
                    Ok(records.into_iter().map(|record| Some(found(record?, node, route.shard))).collect())
                }
                (Answer::TooLarge, _) if keys.len() > 1 => {
                    let (left, right) = keys.split_at(keys.len() / 2);
                    let mut records = self.get_unshared(route, left.to_vec(), values, deadline_ms).await?;
                    records.extend(self.get_unshared(route, right.to_vec(), values, deadline_ms).await?);
                    Ok(records)
                }
                _ => Err(UNEXPECTED_ANSWER.into()),
            }
        }
        .boxed()
    }

    /// Queries one shard. Advances its clock when a record has expired by the wall clock and not yet by the
    /// log's; once is enough, because the query then names the time to which it advanced the clock.
    pub(super) async fn query(
        &self,
        Route { shard, range_epoch }: Route,
        query: &Query,
        deadline_ms: u64,
    ) -> Result<(Answer, NodeId), ReadError> {
        let mut payload = encode_query(query);
        loop {
            let result = self
                .inner
                .shards
                .request(RequestKind::Query, shard, Some(range_epoch), payload.clone(), deadline_ms)
                .await;
            let ShardAnswer { payload: answer, node, .. } = match result {
                Ok(answer) => answer,
                Err(ShardError::Stale) => return Err(ReadError::Stale),
                Err(error) => return Err(self.read_error(error, shard, deadline_ms).into()),
            };
            let answer = decode_answer(answer)
                .map_err(|_| StoreError::Invalid("the answer does not parse; gateway and shard differ in version"))?;
            match answer {
                // The range changed between the check of the epoch and the read.
                Answer::WrongShard => return Err(ReadError::Stale),
                Answer::ClockAdvanceNeeded if clock::monotonic_ms() >= deadline_ms => {
                    return Err(StoreError::DeadlineExceeded { shard: Some(shard) }.into());
                }
                Answer::ClockAdvanceNeeded => {
                    let advanced_to_ms = self.advance_clock(shard, deadline_ms).await?;
                    payload = encode_query_as_of(query, advanced_to_ms);
                }
                answer => return Ok((answer, node)),
            }
        }
    }
}

/// Groups the keys with these indices by shard.
fn by_shard(map: &ShardMap, keys: &[Bytes], indices: &[usize]) -> Result<Vec<(Route, ShardKeys)>, StoreError> {
    let mut groups: BTreeMap<Route, ShardKeys> = BTreeMap::new();
    for &index in indices {
        let group = groups.entry(route_to(home(map, &keys[index])?)).or_default();
        group.indices.push(index);
        group.keys.push(keys[index].clone());
    }
    Ok(groups.into_iter().collect())
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
    reply: oneshot::Sender<Result<Vec<Option<Found>>, ReadError>>,
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
        let route = Route { shard, range_epoch };
        match store.get_unshared(route, keys, values, deadline_ms).await {
            Ok(found) => {
                let mut found = found.into_iter();
                for request in requests {
                    let _ = request.reply.send(Ok(found.by_ref().take(request.keys.len()).collect()));
                }
            }
            Err(ReadError::Failed(error)) if requests.len() > 1 && error.is_request_error() => {
                // One value that is too large for any answer must not fail the other requests.
                for request in requests {
                    let found = store.get_unshared(route, request.keys, values, request.deadline_ms).await;
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
