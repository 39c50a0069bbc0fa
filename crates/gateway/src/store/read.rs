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
    Consistency, Found, READ_KEYS_MAX, RETRY_AFTER_MS, SnapshotId, Store, StoreError,
    batcher::{Batchable, Batchers, Cost, QueueFull, time_left},
    check_key, collection_of, deadline_ms,
    error::ReadError,
    routes::{Rerouting, home, route_to},
    snapshots::on_snapshot,
};

const UNEXPECTED_ANSWER: StoreError =
    StoreError::Invalid("the answer does not match the query; gateway and shard differ in version");

/// Bytes of values that are read together after they did not fit into one answer: well below a shard's bound.
const PART_BYTES_MAX: u64 = 4 << 20;

/// What one query found; `None` if it is too large for one answer.
type OneAnswer<E> = Result<Option<Vec<Option<Found>>>, E>;

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
        let found = self.read(collection, keys, values, Size::Any, consistency, deadline).await?;
        found.ok_or(UNEXPECTED_ANSWER)
    }

    /// Reads one record, with its value.
    pub async fn get_one(&self, collection: &str, key: Bytes, deadline: Instant) -> Result<Option<Found>, StoreError> {
        let found = self.get(collection, vec![key], true, Consistency::Strong, deadline).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// As [`get`](Self::get) with values, but `None` if those of one shard are too large for one of its
    /// answers: a caller that holds them all should know their sizes first.
    pub async fn get_if_small(
        &self,
        collection: &str,
        keys: Vec<Bytes>,
        consistency: Consistency,
        deadline: Instant,
    ) -> OneAnswer<StoreError> {
        self.read(collection, keys, true, Size::OneAnswer, consistency, deadline).await
    }

    async fn read(
        &self,
        collection: &str,
        keys: Vec<Bytes>,
        values: bool,
        size: Size,
        consistency: Consistency,
        deadline: Instant,
    ) -> OneAnswer<StoreError> {
        let Consistency::Strong = consistency;
        let deadline_ms = deadline_ms(deadline);
        let keys = self.record_keys(collection, &keys)?;
        let mut records = vec![None; keys.len()];
        let mut unread: Vec<usize> = (0..keys.len()).collect();
        let mut rerouting = Rerouting::new(self, deadline_ms);
        while !unread.is_empty() {
            let groups = rerouting.route(|map| by_shard(map, &keys, &unread)).await?;
            let reads = groups.into_iter().map(|(route, ShardKeys { indices, keys })| async move {
                match self.get_shared(route, keys, values, size, deadline_ms).await {
                    Ok(found) => Ok((route, indices, Some(found))),
                    Err(ReadError::Stale) => Ok((route, indices, None)),
                    Err(ReadError::Failed(error)) => Err(error),
                }
            });
            unread.clear();
            for (route, indices, answer) in try_join_all(reads).await? {
                match answer {
                    Some(Some(found)) => {
                        indices.into_iter().zip(found).for_each(|(index, found)| records[index] = found);
                    }
                    Some(None) => return Ok(None),
                    None => {
                        rerouting.refused(route);
                        unread.extend(indices);
                    }
                }
            }
        }
        Ok(Some(records))
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
        let deadline_ms = deadline_ms(deadline);
        let keys = self.record_keys(collection, &keys)?;
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

    /// The record keys of the keys that one read names.
    fn record_keys(&self, collection: &str, keys: &[Bytes]) -> Result<Vec<Bytes>, StoreError> {
        if keys.len() > READ_KEYS_MAX {
            return Err(StoreError::Invalid("a read may name at most 4,096 keys"));
        }
        let map = self.map();
        let collection = collection_of(&map, collection)?;
        keys.iter().map(|key| check_key(key).map(|()| collection.record_key(key).into_bytes())).collect()
    }

    /// Reads from one shard by a query that it may share with other callers' keys.
    async fn get_shared(
        &self,
        route: Route,
        keys: Vec<Bytes>,
        values: bool,
        size: Size,
        deadline_ms: u64,
    ) -> OneAnswer<ReadError> {
        let Route { shard, range_epoch } = route;
        let (reply, answer) = oneshot::channel();
        let request = PendingRead { range_epoch, keys, values, size, deadline_ms, reply };
        let busy = StoreError::Busy { retry_after_ms: RETRY_AFTER_MS };
        Batchers::submit(self, shard, request).map_err(|QueueFull| busy)?;
        match tokio::time::timeout(time_left(deadline_ms), answer).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Err(StoreError::DeadlineExceeded { shard: Some(shard) }.into()),
        }
    }

    /// Reads from one shard by one query. `None`: the values are too large for one answer.
    async fn get_unshared(
        &self,
        route: Route,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> OneAnswer<ReadError> {
        let query = Query::Get { keys, values };
        let answer = self.query(route, &query, deadline_ms).await?;
        let Query::Get { keys, .. } = query else { return Err(UNEXPECTED_ANSWER.into()) };
        match answer {
            (Answer::Records(records), node) if records.len() == keys.len() => {
                Ok(Some(records.into_iter().map(|record| Some(found(record?, node, route.shard))).collect()))
            }
            (Answer::TooLarge, _) if keys.len() > 1 => Ok(None),
            _ => Err(UNEXPECTED_ANSWER.into()),
        }
    }

    /// Reads the keys of one request that are too large for one answer, in parts.
    fn get_in_parts(
        &self,
        route: Route,
        keys: Vec<Bytes>,
        values: bool,
        deadline_ms: u64,
    ) -> BoxFuture<'_, Result<Vec<Option<Found>>, ReadError>> {
        async move {
            let (left, right) = keys.split_at(keys.len() / 2);
            let mut records = Vec::with_capacity(keys.len());
            for part in [left.to_vec(), right.to_vec()] {
                let whole = self.get_unshared(route, part.clone(), values, deadline_ms).await?;
                records.extend(match whole {
                    Some(found) => found,
                    None => self.get_in_parts(route, part, values, deadline_ms).await?,
                });
            }
            Ok(records)
        }
        .boxed()
    }

    /// Queries one shard. Advances its clock when a record has expired by the wall clock and not yet by the
    /// log's; once is enough, because the query then names the time to which it advanced the clock.
    pub(super) async fn query(
        &self,
        route: Route,
        query: &Query,
        deadline_ms: u64,
    ) -> Result<(Answer, NodeId), ReadError> {
        self.query_snapshot(route, query, None, deadline_ms).await
    }

    /// The same, of a snapshot if one is named, and whether that is to be opened.
    pub(super) async fn query_snapshot(
        &self,
        Route { shard, range_epoch }: Route,
        query: &Query,
        snapshot: Option<(SnapshotId, bool)>,
        deadline_ms: u64,
    ) -> Result<(Answer, NodeId), ReadError> {
        let mut payload = encode_query(query);
        if let Some((id, opens)) = snapshot {
            payload = on_snapshot(id, opens, payload);
        }
        loop {
            let result = self
                .inner
                .shards
                .request(RequestKind::Query, shard, Some(range_epoch), payload.clone(), deadline_ms)
                .await;
            let ShardAnswer { payload: answer, node, .. } = match result {
                Ok(answer) => answer,
                Err(ShardError::Stale(_)) => return Err(ReadError::Stale),
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
                    if let Some((id, opens)) = snapshot {
                        payload = on_snapshot(id, opens, payload);
                    }
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
    size: Size,
    deadline_ms: u64,
    reply: oneshot::Sender<OneAnswer<ReadError>>,
}

/// How much a caller takes from one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Any,
    /// What fits into one answer, else nothing.
    OneAnswer,
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

    /// What is too large for one answer is read again in parts, the smallest values first, and each part is
    /// given to its callers before the next one is read: the call never holds more than one answer, and small
    /// reads do not wait for large ones.
    async fn call(store: Store, shard: ShardId, requests: Vec<Self>) {
        let mut groups = vec![requests];
        while let Some(mut group) = groups.pop() {
            group.retain(|request| !request.is_abandoned());
            let Some(read) = Shared::of(&group) else { continue };
            let answer = read.get(&store, shard, &group).await;
            let concerns_one = match &answer {
                Ok(found) => found.is_none(),
                Err(ReadError::Failed(error)) => error.is_request_error(),
                Err(ReadError::Stale) => false,
            };
            if concerns_one && group.len() > 1 {
                let sizes = match &answer {
                    Ok(_) => Shared { values: false, ..read }.get(&store, shard, &group).await.ok().flatten(),
                    Err(_) => None,
                };
                groups.extend(parts(group, sizes.as_deref()).into_iter().rev());
                continue;
            }
            match answer {
                Ok(Some(found)) => {
                    let mut found = found.into_iter();
                    for request in group {
                        let _ = request.reply.send(Ok(Some(found.by_ref().take(request.keys.len()).collect())));
                    }
                }
                Ok(None) => {
                    let Shared { values, deadline_ms, .. } = read;
                    for PendingRead { keys, size, reply, .. } in group {
                        let _ = reply.send(match size {
                            Size::OneAnswer => Ok(None),
                            Size::Any => {
                                store.get_in_parts(read.route(shard), keys, values, deadline_ms).await.map(Some)
                            }
                        });
                    }
                }
                Err(error) => {
                    for request in group {
                        let _ = request.reply.send(Err(error.clone()));
                    }
                }
            }
        }
    }
}

/// What requests of one query have in common.
#[derive(Clone, Copy)]
struct Shared {
    range_epoch: u64,
    values: bool,
    /// The earliest of their deadlines.
    deadline_ms: u64,
}

impl Shared {
    /// `None` if there is no request.
    fn of(requests: &[PendingRead]) -> Option<Self> {
        let first = requests.iter().min_by_key(|request| request.deadline_ms)?;
        Some(Self { range_epoch: first.range_epoch, values: first.values, deadline_ms: first.deadline_ms })
    }

    fn route(self, shard: ShardId) -> Route {
        Route { shard, range_epoch: self.range_epoch }
    }

    /// Reads the keys of all requests by one query.
    async fn get(self, store: &Store, shard: ShardId, requests: &[PendingRead]) -> OneAnswer<ReadError> {
        let keys = requests.iter().flat_map(|request| request.keys.iter().cloned()).collect();
        store.get_unshared(self.route(shard), keys, self.values, self.deadline_ms).await
    }
}

/// Splits requests whose values do not fit into one answer: by their sizes, smallest first, or else in halves.
fn parts(mut requests: Vec<PendingRead>, found: Option<&[Option<Found>]>) -> Vec<Vec<PendingRead>> {
    let halves = |mut requests: Vec<PendingRead>| {
        let second = requests.split_off(requests.len() / 2);
        vec![requests, second]
    };
    let Some(found) = found else { return halves(requests) };
    let mut sizes = found.iter().map(|found| found.as_ref().map_or(0, |found| found.value_bytes));
    let mut sized: Vec<(u64, PendingRead)> =
        requests.drain(..).map(|request| (sizes.by_ref().take(request.keys.len()).sum(), request)).collect();
    sized.sort_by_key(|(bytes, _)| *bytes);
    let mut parts: Vec<(u64, Vec<PendingRead>)> = Vec::new();
    for (bytes, request) in sized {
        match parts.last_mut().filter(|(sum, _)| *sum + bytes <= PART_BYTES_MAX) {
            Some((sum, part)) => {
                *sum += bytes;
                part.push(request);
            }
            None => parts.push((bytes, vec![request])),
        }
    }
    match <[_; 1]>::try_from(parts) {
        // The values have changed in between.
        Ok([(_, requests)]) => halves(requests),
        Err(parts) => parts.into_iter().map(|(_, part)| part).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: &str) -> PendingRead {
        let (reply, _) = oneshot::channel();
        let keys = vec![Bytes::copy_from_slice(key.as_bytes())];
        PendingRead { range_epoch: 1, keys, values: true, size: Size::Any, deadline_ms: 1, reply }
    }

    fn of_size(value_bytes: u64) -> Option<Found> {
        Some(Found {
            key: Bytes::new(),
            value: Bytes::new().into(),
            version: flotilla_types::Timestamp(1),
            expires_at_ms: None,
            value_bytes,
            served_by: NodeId(1),
            shard: ShardId(1),
        })
    }

    fn names(parts: Vec<Vec<PendingRead>>) -> Vec<String> {
        let name = |request: &PendingRead| String::from_utf8_lossy(&request.keys[0]).into_owned();
        parts.iter().map(|part| part.iter().map(name).collect()).collect()
    }

    #[test]
    fn small_reads_are_answered_before_the_large_ones_that_came_with_them() {
        let requests = || ["a", "b", "c", "d", "e"].map(request).into();
        let large = PART_BYTES_MAX - 10;
        let found = [of_size(large), of_size(5), None, of_size(large), of_size(4)];
        assert_eq!(names(parts(requests(), Some(&found))), ["ceba", "d"]);
        let found = [of_size(large), of_size(5), None, of_size(large), of_size(6)];
        assert_eq!(names(parts(requests(), Some(&found))), ["cbe", "a", "d"]);
    }

    #[test]
    fn without_sizes_or_with_outdated_ones_requests_are_split_in_halves() {
        let requests = || ["a", "b", "c"].map(request).into();
        assert_eq!(names(parts(requests(), None)), ["a", "bc"]);
        assert_eq!(names(parts(requests(), Some(&[None, None, None]))), ["a", "bc"]);
    }
}
