//! Commands that need several calls, or a call that they do not share.

use std::time::Instant;

use bytes::Bytes;
use flotilla_gateway::{Account, Found, READ_KEYS_MAX, StoreError};
use flotilla_kv::{Action, Expiry, Operation, OperationResult};
use futures_util::future::join_all;
use tokio::time::timeout_at;

use super::{all_keys, batch::by_shard, scan::scan, transaction::run_alone};
use crate::{
    Database, Reply,
    answer::{error_reply, integer},
    evaluate::clamp,
    keyspace::Keyspace,
    plan::{Task, operation},
    server::Shared,
};

/// Keys of one writing call: the store's limit on operations.
const WRITE_KEYS_MAX: usize = 1_024;
/// `MGET` of more keys reads the lengths of their values first, so that its reply is bounded; so does one
/// whose values turn out to be large.
const MGET_KEYS_UNMEASURED_MAX: usize = 64;
/// Bytes of values in the reply to one `MGET` that reads their lengths first.
const MGET_BYTES_MAX: u64 = 32 << 20;
/// How often values are read again because one of them was overwritten.
const LOADS_MAX: usize = 4;
/// When a client that found no room for its reply may try again.
const RETRY_AFTER_MS: u64 = 100;

/// Runs a task to its reply. What it holds for its client counts on `account`.
pub(crate) async fn run(
    shared: &Shared,
    keyspace: &Keyspace,
    account: &Account,
    task: Task,
    deadline: Instant,
) -> Reply {
    let calls = Calls { keyspace, deadline };
    let reply = match task {
        Task::MGet(keys) => calls.mget(keys, account).await,
        Task::MSet(pairs) => calls.mset(pairs).await,
        Task::Del(keys) => return calls.del(keys).await,
        Task::Exists(keys) => calls.exists(keys).await,
        Task::GetRange { key, start, end } => calls.get_range(key, start, end).await,
        Task::Evaluate(command) => return run_alone(shared, keyspace, &command, deadline).await,
        Task::Scan(query) => scan(shared, keyspace, query, deadline).await,
        Task::Keys(pattern) => all_keys::keys(keyspace, &pattern, deadline).await,
        Task::RandomKey => all_keys::random_key(shared, keyspace, deadline).await,
        Task::FlushDb => return all_keys::flush(keyspace, [keyspace.database()]).await,
        Task::FlushAll => return all_keys::flush(keyspace, Database::all()).await,
        Task::DbSize => keyspace.count(deadline).await.map(|count| Reply::Integer(integer(count.records))),
        Task::Info(sections) => Ok(shared.info(&sections, deadline).await),
    };
    reply.unwrap_or_else(|error| error_reply(&error))
}

/// Removes keys, atomically within each shard only.
pub(super) async fn del(keyspace: &Keyspace, keys: Vec<Bytes>, deadline: Instant) -> Reply {
    Calls { keyspace, deadline }.del(keys).await
}

/// The calls of one task.
struct Calls<'a> {
    keyspace: &'a Keyspace,
    deadline: Instant,
}

impl Calls<'_> {
    async fn get(&self, keys: &[Bytes], values: bool) -> Result<Vec<Option<Found>>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(READ_KEYS_MAX) {
            found.extend(self.keyspace.get(keys.to_vec(), values, self.deadline).await?);
        }
        Ok(found)
    }

    async fn write(&self, operations: Vec<Operation>) -> Result<Vec<OperationResult>, StoreError> {
        let written = self.keyspace.write(Vec::new(), operations, self.deadline).await?;
        Ok(written.results)
    }

    async fn mget(&self, keys: Vec<Bytes>, account: &Account) -> Result<Reply, StoreError> {
        let small = if keys.len() > MGET_KEYS_UNMEASURED_MAX {
            None
        } else {
            self.keyspace.get_if_small(keys.clone(), self.deadline).await?
        };
        let found = match small {
            Some(found) if found.iter().flatten().all(|found| found.value.inline().is_some()) => {
                return Ok(values(found));
            }
            Some(found) => found,
            None => self.get(&keys, false).await?,
        };
        let bytes: u64 = found.iter().flatten().map(|found| found.value_bytes).sum();
        if bytes > MGET_BYTES_MAX && keys.len() > 1 {
            return Ok(Reply::Error("ERR the values are too large for one reply; ask for fewer keys".into()));
        }
        let room = account.reserve(usize::try_from(bytes).unwrap_or(usize::MAX));
        let room = timeout_at(self.deadline.into(), room).await;
        account.works();
        let _room = room.map_err(|_| StoreError::Busy { retry_after_ms: RETRY_AFTER_MS })?;
        for _ in 0..LOADS_MAX {
            let mut found = self.get(&keys, true).await?;
            match self.keyspace.load(found.iter_mut().flatten().collect(), 1, self.deadline).await {
                // One was overwritten meanwhile.
                Err(StoreError::ObjectsMissing { .. }) => {}
                loaded => return loaded.map(|()| values(found)),
            }
        }
        Err(StoreError::ObjectsUnavailable)
    }

    /// A part of a value. Of a large one, only that is read.
    async fn get_range(&self, key: Bytes, start: i64, end: i64) -> Result<Reply, StoreError> {
        for _ in 0..LOADS_MAX {
            let found = self.get(std::slice::from_ref(&key), true).await?.into_iter().next().flatten();
            let Some(found) = found else { break };
            let Some((first, last)) = clamp(found.value_bytes, start, end) else { break };
            match self.keyspace.part(&found.value, found.shard, first..last + 1, self.deadline).await {
                Err(StoreError::ObjectsMissing { .. }) => {}
                part => return part.map(Reply::Bulk),
            }
        }
        Ok(Reply::Bulk(Bytes::new()))
    }

    async fn exists(&self, keys: Vec<Bytes>) -> Result<Reply, StoreError> {
        let found = self.get(&keys, false).await?;
        Ok(Reply::Integer(found.iter().flatten().count() as i64))
    }

    /// Sets all keys in one atomic command.
    async fn mset(&self, pairs: Vec<(Bytes, Bytes)>) -> Result<Reply, StoreError> {
        let put = |value: Bytes| Action::Put { value: value.into(), expiry: Expiry::Never, return_old: false };
        self.write(pairs.into_iter().map(|(key, value)| operation(key, None, put(value))).collect()).await?;
        Ok(Reply::OK)
    }

    /// Removes keys, atomically within each shard only.
    async fn del(&self, keys: Vec<Bytes>) -> Reply {
        let groups = by_shard(self.keyspace, keys, |key| key);
        let tallies = join_all(groups.into_iter().map(|keys| self.del_in_shard(keys))).await;
        total(tallies)
    }

    async fn del_in_shard(&self, keys: Vec<Bytes>) -> Tally {
        let mut tally = Tally::default();
        for keys in keys.chunks(WRITE_KEYS_MAX) {
            let delete = |key: &Bytes| operation(key.clone(), None, Action::Delete { return_old: false });
            match self.write(keys.iter().map(delete).collect()).await {
                Ok(results) => {
                    let deleted = |result: &&OperationResult| matches!(result, OperationResult::Deleted { .. });
                    tally.removed += results.iter().filter(deleted).count() as i64;
                }
                Err(error) => {
                    tally.error = Some(error);
                    return tally;
                }
            }
        }
        tally
    }
}

/// The reply with the values of these records.
fn values(found: Vec<Option<Found>>) -> Reply {
    let value = |found: Option<Found>| Reply::bulk_or_null(found.and_then(|found| found.value.into_inline().ok()));
    Reply::Array(found.into_iter().map(value).collect())
}

/// Result of the removals in one shard.
#[derive(Debug, Default)]
struct Tally {
    removed: i64,
    error: Option<StoreError>,
}

/// The reply to a removal over several shards. It is a plain failure only if nothing was removed anywhere.
fn total(tallies: Vec<Tally>) -> Reply {
    let removed: i64 = tallies.iter().map(|tally| tally.removed).sum();
    let mut errors: Vec<_> = tallies.into_iter().filter_map(|tally| tally.error).collect();
    let unknown = errors.iter().position(|error| matches!(error, StoreError::OutcomeUnknown { .. }));
    if !errors.is_empty() {
        errors.swap(0, unknown.unwrap_or(0));
    }
    match errors.first() {
        None => Reply::Integer(removed),
        Some(error) if removed > 0 && unknown.is_none() => {
            Reply::error(format_args!("UNKNOWN {removed} keys were removed, and the rest failed: {error}"))
        }
        Some(error) => error_reply(error),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::ShardId;

    use super::*;

    #[test]
    fn a_partial_removal_is_never_a_plain_failure() {
        let tally = |removed, error| Tally { removed, error };
        let busy = || Some(StoreError::Busy { retry_after_ms: 1 });
        let unknown = || Some(StoreError::OutcomeUnknown { shard: ShardId(1) });
        let code = |tallies| match total(tallies) {
            Reply::Error(text) => text.split(' ').next().unwrap_or_default().to_owned(),
            reply => format!("{reply:?}"),
        };
        assert_eq!(total(vec![tally(2, None), tally(1, None)]), Reply::Integer(3));
        assert_eq!(code(vec![tally(0, None), tally(0, busy())]), "TRYAGAIN");
        assert_eq!(code(vec![tally(1, None), tally(0, busy())]), "UNKNOWN");
        assert_eq!(code(vec![tally(0, busy()), tally(0, unknown())]), "UNKNOWN");
    }
}
