//! The store as the requests of one database see it.
//!
//! Invariants: a database whose collection does not exist is empty, and that is never concluded from this
//! node's metadata alone, which may lag behind a write that another node acknowledged; only what can create a
//! record creates the collection.

use std::{net::IpAddr, ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use flotilla_api::{CreateCollection, Sharding};
use flotilla_gateway::{
    Admin, AdminError, AuditEntry, Consistency, Counted, Found, Page, Scan, Store, StoreError, Written,
};
use flotilla_kv::{Action, Condition, Operation, OperationResult, Otherwise, Value};
use flotilla_types::{ShardId, Timestamp};

use crate::Database;

/// Who asks, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The client's key; `None` while none is needed.
    pub(crate) key: Option<u64>,
    pub(crate) address: IpAddr,
}

/// The records of one database. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keyspace {
    store: Store,
    admin: Arc<dyn Admin>,
    database: Database,
    caller: Caller,
}

impl Keyspace {
    pub(crate) fn new(store: Store, admin: Arc<dyn Admin>, database: Database, caller: Caller) -> Self {
        Self { store, admin, database, caller }
    }

    pub(crate) fn database(&self) -> Database {
        self.database
    }

    /// The same cluster's records of another database.
    pub(crate) fn of(&self, database: Database) -> Self {
        Self { database, ..self.clone() }
    }

    /// As [`Store::get`].
    pub(crate) async fn get(
        &self,
        keys: Vec<Bytes>,
        values: bool,
        deadline: Instant,
    ) -> Result<Vec<Option<Found>>, StoreError> {
        if self.is_absent(deadline).await? {
            return Ok(vec![None; keys.len()]);
        }
        self.store.get(self.collection(), keys, values, Consistency::Strong, deadline).await
    }

    /// As [`Store::get_if_small`].
    pub(crate) async fn get_if_small(
        &self,
        keys: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Option<Vec<Option<Found>>>, StoreError> {
        if self.is_absent(deadline).await? {
            return Ok(Some(vec![None; keys.len()]));
        }
        self.store.get_if_small(self.collection(), keys, Consistency::Strong, deadline).await
    }

    /// As [`Store::get_at_once`].
    pub(crate) async fn get_at_once(
        &self,
        keys: Vec<Bytes>,
        values: bool,
        deadline: Instant,
    ) -> Result<Option<Vec<Option<Found>>>, StoreError> {
        if self.is_absent(deadline).await? {
            return Ok(Some(vec![None; keys.len()]));
        }
        self.store.get_at_once(self.collection(), keys, values, deadline).await
    }

    /// As [`Store::scan`].
    pub(crate) async fn scan(&self, scan: Scan, deadline: Instant) -> Result<Page, StoreError> {
        if self.is_absent(deadline).await? {
            return Ok(Page::default());
        }
        self.store.scan(self.collection(), scan, Consistency::Strong, deadline).await
    }

    /// As [`Store::count`].
    pub(crate) async fn count(&self, deadline: Instant) -> Result<Counted, StoreError> {
        if self.is_absent(deadline).await? {
            return Ok(Counted::default());
        }
        self.store.count(self.collection(), deadline).await
    }

    /// As [`Store::write`]. Creates the collection for a command that can create a record.
    pub(crate) async fn write(
        &self,
        conditions: Vec<(Bytes, Condition)>,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        if self.is_absent(deadline).await? {
            if let Some(outcome) = on_nothing(&conditions, &operations) {
                return outcome;
            }
            self.create(deadline).await?;
        }
        self.store.write(self.collection(), conditions, operations, deadline).await
    }

    /// The longest value that a record may have.
    pub(crate) fn value_bytes_max(&self) -> usize {
        self.store.value_bytes_max()
    }

    /// As [`Store::part`].
    pub(crate) async fn part(
        &self,
        value: &Value,
        shard: ShardId,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Bytes, StoreError> {
        self.store.part(value, shard, range, deadline).await
    }

    /// As [`Store::load`].
    pub(crate) async fn load(&self, found: Vec<&mut Found>, copies: u32, deadline: Instant) -> Result<(), StoreError> {
        self.store.load(found, copies, deadline).await
    }

    /// As [`Store::with_content`].
    pub(crate) async fn with_content(&self, found: Found, deadline: Instant) -> Result<Option<Found>, StoreError> {
        self.store.with_content(self.collection(), found, false, deadline).await
    }

    /// As [`Store::shards_of`]; none is known while the collection does not exist.
    pub(crate) fn shards_of<'a>(
        &self,
        keys: impl Iterator<Item = &'a Bytes>,
    ) -> Result<Vec<Option<ShardId>>, StoreError> {
        self.store.shards_of(self.collection(), keys)
    }

    fn collection(&self) -> &'static str {
        self.database.collection()
    }

    async fn is_absent(&self, deadline: Instant) -> Result<bool, StoreError> {
        if self.database.is_founded() {
            return Ok(false);
        }
        Ok(!self.store.has_collection(self.collection(), deadline).await?)
    }

    async fn create(&self, deadline: Instant) -> Result<(), StoreError> {
        let created = create(&self.store, &*self.admin, self.collection(), Sharding::default(), deadline).await;
        let status = if created.is_ok() { 200 } else { 503 };
        let action = format!("SELECT {} and a first write", self.database);
        let detail = Some(format!("creates the collection {}", self.collection()));
        let Caller { key, address } = self.caller;
        self.admin.audit(AuditEntry { key, address: Some(address), action, detail, status });
        created
    }
}

/// Creates a collection, unless there is one of this name. What needs it was not written if this fails.
pub(crate) async fn create(
    store: &Store,
    admin: &dyn Admin,
    name: &str,
    sharding: Sharding,
    deadline: Instant,
) -> Result<(), StoreError> {
    let request = CreateCollection {
        name: name.to_owned(),
        sharding,
        buckets: None,
        shards: None,
        replicas: None,
        objects_from: None,
        chunk: None,
        split_bytes: None,
    };
    match admin.create_collection(request, deadline).await {
        // Another client may have created it, also with other properties.
        Ok(_) | Err(AdminError::Store(StoreError::CollectionExists(_))) => Ok(()),
        Err(_) if store.knows_collection(name) => Ok(()),
        Err(AdminError::Store(StoreError::OutcomeUnknown { .. })) => {
            Err(StoreError::Unavailable { shard: Some(ShardId::META), leader: None })
        }
        Err(AdminError::Store(error)) => Err(error),
        Err(error) => Err(StoreError::Refused(error.to_string())),
    }
}

/// The outcome of a command that finds no records and creates none; `None` if it would create one.
fn on_nothing(conditions: &[(Bytes, Condition)], operations: &[Operation]) -> Option<Result<Written, StoreError>> {
    let failed = |at: usize| {
        let operation = u32::try_from(at).unwrap_or(u32::MAX);
        Some(Err(StoreError::ConditionFailed { operation, found: None }))
    };
    let needs_record = |condition: &Condition| *condition != Condition::Absent;
    if let Some(at) = conditions.iter().position(|(_, condition)| needs_record(condition)) {
        return failed(at);
    }
    let mut results = Vec::with_capacity(operations.len());
    for (at, operation) in operations.iter().enumerate() {
        results.push(match (&operation.condition, operation.otherwise, &operation.action) {
            (Some(condition), Otherwise::Refuse, _) if needs_record(condition) => {
                return failed(conditions.len() + at);
            }
            (Some(condition), Otherwise::Skip, _) if needs_record(condition) => {
                OperationResult::Skipped { version: None, old: None }
            }
            (_, _, Action::Delete { .. } | Action::Expire { .. }) => OperationResult::Absent,
            (_, _, Action::Put { .. } | Action::Add { .. } | Action::Append { .. }) => return None,
        });
    }
    Some(Ok(Written { results, timestamp: Timestamp::default(), shard: ShardId::META }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{parse::testing::parsed, plan::Plan};

    fn operation(line: &str) -> Operation {
        match Plan::of(parsed(line).expect(line), 1_000) {
            Ok(Plan::Write(write)) => write.operation,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn only_what_creates_a_record_needs_the_collection() {
        for line in ["SET k v", "SET k v NX", "SETNX k v", "INCR k", "APPEND k v", "GETSET k v"] {
            assert_eq!(on_nothing(&[], &[operation(line)]), None, "{line}");
        }
        let skipped = OperationResult::Skipped { version: None, old: None };
        for (line, result) in [
            ("DEL k", OperationResult::Absent),
            ("GETDEL k", OperationResult::Absent),
            ("EXPIRE k 5", OperationResult::Absent),
            ("PERSIST k", OperationResult::Absent),
            ("SET k v XX", skipped),
        ] {
            let outcome = on_nothing(&[], &[operation(line)]).expect(line).expect(line);
            assert_eq!(outcome.results, [result], "{line}");
        }
        assert_eq!(on_nothing(&[], &[operation("DEL k"), operation("SET k v")]), None);
    }

    #[test]
    fn conditions_on_records_fail_where_there_are_none() {
        let (key, version) = (Bytes::from_static(b"k"), Condition::Version(Timestamp(1)));
        let watched = [(key.clone(), Condition::Absent), (key.clone(), version)];
        let failed = on_nothing(&watched, &[operation("SET k v")]);
        assert_eq!(failed, Some(Err(StoreError::ConditionFailed { operation: 1, found: None })));
        let refusing = Operation { condition: Some(version), otherwise: Otherwise::Refuse, ..operation("SET k v") };
        let failed = on_nothing(&watched[..1], &[refusing]);
        assert_eq!(failed, Some(Err(StoreError::ConditionFailed { operation: 1, found: None })));
        assert_eq!(on_nothing(&watched[..1], &[operation("SET k v")]), None);
        assert!(matches!(on_nothing(&watched[..1], &[]), Some(Ok(_))));
    }
}
