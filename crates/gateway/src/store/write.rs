//! Writes: one atomic command to the shard that holds all its keys.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_control::{Ask, ShardError};
use flotilla_kv::{Action, Command, Condition, Operation, Outcome, Refusal, decode_outcome, encode_command};
use flotilla_replication::clock;
use flotilla_types::ShardId;

use super::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, RETRY_AFTER_MS, Store, StoreError, VALUE_BYTES_MAX, Written, check_key,
    collection_of, deadline_ms,
};

/// How much later than its deadline a command may still apply: clocks of gateway and leader differ.
const EXPIRY_SLACK_MS: u64 = 1_000;
const STALE_PAUSE: Duration = Duration::from_millis(20);

impl Store {
    /// Applies operations atomically. Keys are the user's keys and must live in one shard.
    pub async fn write(
        &self,
        collection: &str,
        conditions: Vec<(Bytes, Condition)>,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        check(&conditions, &operations)?;
        let deadline_ms = deadline_ms(deadline);
        loop {
            let routed = self.place(collection, conditions.clone(), operations.clone());
            let (shard, range_epoch, conditions, operations) = routed?;
            let ticket = self.inner.sessions.begin(shard).ok_or(StoreError::Busy { retry_after_ms: RETRY_AFTER_MS })?;
            let left_ms = deadline_ms.saturating_sub(clock::monotonic_ms());
            let command = Command {
                session: ticket.session,
                sequence: ticket.sequence.0,
                expires_at_ms: ticket.now_ms + left_ms + EXPIRY_SLACK_MS,
                acked_below: ticket.acked_below,
                conditions,
                operations,
            };
            let payload = encode_command(&command);
            let answer = self.inner.shards.ask(Ask::Propose, shard, Some(range_epoch), payload, deadline_ms).await;
            match answer {
                Ok((bytes, _)) => {
                    let outcome = decode_outcome(bytes).map_err(|_| StoreError::OutcomeUnknown { shard })?;
                    match &outcome {
                        Outcome::Done { timestamp, .. } => ticket.heard(timestamp.millis()),
                        Outcome::Refused(Refusal::Expired { clock_ms }) => ticket.heard(*clock_ms),
                        Outcome::Refused(_) => {}
                    }
                    match written(outcome, shard)? {
                        Some(written) => return Ok(written),
                        None => tokio::time::sleep(STALE_PAUSE).await,
                    }
                }
                Err(ShardError::Stale) if clock::monotonic_ms() < deadline_ms => tokio::time::sleep(STALE_PAUSE).await,
                Err(error) => return Err(self.error_of(error, shard, deadline_ms)),
            }
            if clock::monotonic_ms() >= deadline_ms {
                return Err(StoreError::DeadlineExceeded { shard: Some(shard) });
            }
        }
    }

    /// The one shard of all keys, its range epoch, and everything in terms of record keys.
    #[expect(clippy::type_complexity, reason = "taken apart at once by the only caller")]
    fn place(
        &self,
        collection: &str,
        mut conditions: Vec<(Bytes, Condition)>,
        mut operations: Vec<Operation>,
    ) -> Result<(ShardId, u64, Vec<(Bytes, Condition)>, Vec<Operation>), StoreError> {
        let map = self.map();
        let collection = collection_of(&map, collection)?;
        let mut home = None;
        let keys =
            conditions.iter_mut().map(|(key, _)| key).chain(operations.iter_mut().map(|operation| &mut operation.key));
        for key in keys {
            *key = collection.record_key(key).into_bytes();
            let shard = map.shard_of(key).ok_or(StoreError::Unavailable { shard: None, leader: None })?;
            let found = (shard.descriptor.shard, shard.descriptor.epoch.range);
            if *home.get_or_insert(found) != found {
                return Err(StoreError::CrossShard);
            }
        }
        let (shard, epoch) =
            home.ok_or(StoreError::Invalid("a batch must have at least one operation or condition"))?;
        Ok((shard, epoch, conditions, operations))
    }

    /// Commits an empty command, which moves the shard's clock past what is due.
    pub(super) async fn move_clock(&self, shard: ShardId, deadline_ms: u64) -> Result<(), StoreError> {
        let ticket = self.inner.sessions.begin(shard).ok_or(StoreError::Busy { retry_after_ms: RETRY_AFTER_MS })?;
        let command = Command {
            session: ticket.session,
            sequence: ticket.sequence.0,
            expires_at_ms: u64::MAX >> 16,
            acked_below: ticket.acked_below,
            conditions: Vec::new(),
            operations: Vec::new(),
        };
        let answer = self.inner.shards.ask(Ask::Propose, shard, None, encode_command(&command), deadline_ms).await;
        answer.map(|_| ()).map_err(|error| match error {
            // An empty command leaves nothing behind that could be unknown.
            ShardError::Unknown => self.error_of(ShardError::Unavailable, shard, deadline_ms),
            other => self.error_of(other, shard, deadline_ms),
        })
    }
}

fn check(conditions: &[(Bytes, Condition)], operations: &[Operation]) -> Result<(), StoreError> {
    let mut bytes = 0;
    for (key, _) in conditions {
        check_key(key)?;
        bytes += key.len();
    }
    for operation in operations {
        check_key(&operation.key)?;
        let value = match &operation.action {
            Action::Put { value, .. } => value.len(),
            Action::Append { bytes } => bytes.len(),
            Action::Delete { .. } | Action::Add { .. } | Action::Expire { .. } => 0,
        };
        if value as u64 > VALUE_BYTES_MAX {
            return Err(StoreError::ValueTooLarge { limit_bytes: VALUE_BYTES_MAX });
        }
        bytes += operation.key.len() + value;
    }
    if operations.len() > BATCH_OPERATIONS_MAX || conditions.len() > BATCH_OPERATIONS_MAX || bytes > BATCH_BYTES_MAX {
        return Err(StoreError::BatchTooLarge { operations_max: BATCH_OPERATIONS_MAX, bytes_max: BATCH_BYTES_MAX });
    }
    Ok(())
}

/// `None`: routed by an old map; route again.
fn written(outcome: Outcome, shard: ShardId) -> Result<Option<Written>, StoreError> {
    let refusal = match outcome {
        Outcome::Done { results, timestamp } => return Ok(Some(Written { results, timestamp, shard })),
        Outcome::Refused(refusal) => refusal,
    };
    Err(match refusal {
        Refusal::WrongShard => return Ok(None),
        Refusal::ConditionFailed { operation, found } => StoreError::ConditionFailed { operation, found },
        Refusal::NotAnInteger => StoreError::NotAnInteger,
        Refusal::Overflow => StoreError::Overflow,
        Refusal::TooLarge { limit_bytes } => StoreError::ValueTooLarge { limit_bytes },
        Refusal::SessionFull => StoreError::Busy { retry_after_ms: RETRY_AFTER_MS },
        // An earlier attempt of the same command may have been applied.
        Refusal::Expired { .. } | Refusal::OutcomeForgotten => StoreError::OutcomeUnknown { shard },
        Refusal::TooManyOperations { .. } => {
            StoreError::BatchTooLarge { operations_max: BATCH_OPERATIONS_MAX, bytes_max: BATCH_BYTES_MAX }
        }
        Refusal::Malformed => StoreError::Invalid("the command does not parse; gateway and shard differ in version"),
    })
}
