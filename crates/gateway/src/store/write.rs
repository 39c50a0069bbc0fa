//! Writes: one atomic command to the shard that holds all its keys.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_control::{Ask, ShardError};
use flotilla_kv::{
    Action, Command, Condition, OUTCOME_BYTES_MAX, OUTCOME_FRAME_BYTES, Operation, Otherwise, Outcome, Refusal,
    decode_outcome, encode_command,
};
use flotilla_replication::clock;
use flotilla_types::ShardId;
use tokio::sync::oneshot;

use super::{
    BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, RETRY_AFTER_MS, Store, StoreError, VALUE_BYTES_MAX, Written, check_key,
    collection_of, deadline_ms,
    lanes::{self, Cost, Lanes, Part},
};

/// How much later than its deadline a command may still apply: clocks of gateway and leader differ.
const EXPIRY_SLACK_MS: u64 = 1_000;
/// How much later than its deadline the answer of a shared command may come: it is dated by the earliest of those in it.
const ANSWER_SLACK: Duration = Duration::from_millis(5);
const STALE_PAUSE: Duration = Duration::from_millis(20);

/// The fate of a command that was not refused.
enum Fate {
    Written(Written),
    /// Routed by an old map; nothing was written.
    Again,
}

impl Store {
    /// Applies operations atomically. Keys are the user's keys and must live in one shard.
    pub async fn write(
        &self,
        collection: &str,
        mut conditions: Vec<(Bytes, Condition)>,
        mut operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        check(&conditions, &operations)?;
        let deadline_ms = deadline_ms(deadline);
        self.to_record_keys(collection, &mut conditions, &mut operations)?;
        loop {
            let (shard, range_epoch) = self.home(&conditions, &operations)?;
            let fate = if conditions.is_empty() && operations.iter().all(may_share) {
                match self.write_shared(shard, range_epoch, operations, deadline_ms).await? {
                    Shared::Written(written) => return Ok(written),
                    Shared::Again(returned) => operations = returned,
                }
                Fate::Again
            } else {
                let fate;
                (fate, conditions, operations) =
                    self.command(shard, range_epoch, conditions, operations, deadline_ms).await;
                fate?
            };
            match fate {
                Fate::Written(written) => return Ok(written),
                Fate::Again if clock::monotonic_ms() >= deadline_ms => {
                    return Err(StoreError::DeadlineExceeded { shard: Some(shard) });
                }
                Fate::Again => tokio::time::sleep(STALE_PAUSE).await,
            }
        }
    }

    /// One command of its own. Returns conditions and operations, in record keys, for another attempt.
    async fn command(
        &self,
        shard: ShardId,
        range_epoch: u64,
        conditions: Vec<(Bytes, Condition)>,
        operations: Vec<Operation>,
        deadline_ms: u64,
    ) -> (Result<Fate, StoreError>, Vec<(Bytes, Condition)>, Vec<Operation>) {
        let Some(ticket) = self.inner.sessions.begin(shard) else {
            return (Err(StoreError::Busy { retry_after_ms: RETRY_AFTER_MS }), conditions, operations);
        };
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
        let Command { conditions, operations, .. } = command;
        let answer = self.inner.shards.ask(Ask::Propose, shard, Some(range_epoch), payload, deadline_ms).await;
        let fate = match answer {
            Ok((bytes, _)) => match decode_outcome(bytes) {
                Ok(outcome) => {
                    match &outcome {
                        Outcome::Done { timestamp, .. } => ticket.heard(timestamp.millis()),
                        Outcome::Refused(Refusal::Expired { clock_ms }) => ticket.heard(*clock_ms),
                        Outcome::Refused(_) => {}
                    }
                    written(outcome, shard)
                }
                Err(_) => Err(StoreError::OutcomeUnknown { shard }),
            },
            Err(ShardError::Stale) if clock::monotonic_ms() < deadline_ms => Ok(Fate::Again),
            Err(error) => Err(self.error_of(error, shard, deadline_ms)),
        };
        (fate, conditions, operations)
    }

    /// As part of a command that other callers' operations share.
    async fn write_shared(
        &self,
        shard: ShardId,
        range_epoch: u64,
        operations: Vec<Operation>,
        deadline_ms: u64,
    ) -> Result<Shared, StoreError> {
        let (reply, answer) = oneshot::channel();
        let part = WritePart { range_epoch, operations, deadline_ms, reply };
        let busy = StoreError::Busy { retry_after_ms: RETRY_AFTER_MS };
        let ticket = Lanes::offer(self, shard, part).map_err(|lanes::Full| busy)?;
        match tokio::time::timeout(lanes::left(deadline_ms) + ANSWER_SLACK, answer).await {
            Ok(Ok(shared)) => shared,
            Err(_elapsed) if self.inner.writes.withdraw(shard, ticket) => {
                Err(StoreError::DeadlineExceeded { shard: Some(shard) })
            }
            Ok(Err(_)) | Err(_) => Err(StoreError::OutcomeUnknown { shard }),
        }
    }

    fn to_record_keys(
        &self,
        collection: &str,
        conditions: &mut [(Bytes, Condition)],
        operations: &mut [Operation],
    ) -> Result<(), StoreError> {
        let map = self.map();
        let collection = collection_of(&map, collection)?;
        let keys =
            conditions.iter_mut().map(|(key, _)| key).chain(operations.iter_mut().map(|operation| &mut operation.key));
        for key in keys {
            *key = collection.record_key(key).into_bytes();
        }
        Ok(())
    }

    /// The one shard of all keys, and its range epoch.
    fn home(&self, conditions: &[(Bytes, Condition)], operations: &[Operation]) -> Result<(ShardId, u64), StoreError> {
        let map = self.map();
        let mut home = None;
        let keys = conditions.iter().map(|(key, _)| key).chain(operations.iter().map(|operation| &operation.key));
        for key in keys {
            let shard = map.shard_of(key).ok_or(StoreError::Unavailable { shard: None, leader: None })?;
            let found = (shard.descriptor.shard, shard.descriptor.epoch.range);
            if *home.get_or_insert(found) != found {
                return Err(StoreError::CrossShard);
            }
        }
        home.ok_or(StoreError::Invalid("a batch must have at least one operation or condition"))
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

fn written(outcome: Outcome, shard: ShardId) -> Result<Fate, StoreError> {
    let refusal = match outcome {
        Outcome::Done { results, timestamp } => return Ok(Fate::Written(Written { results, timestamp, shard })),
        Outcome::Refused(refusal) => refusal,
    };
    Err(match refusal {
        Refusal::WrongShard => return Ok(Fate::Again),
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

/// Whether an operation may share its command with those of others. One that is refused when its condition does not hold
/// would take the others with it, again and again where callers contend.
fn may_share(operation: &Operation) -> bool {
    operation.condition.is_none() || operation.otherwise == Otherwise::Skip
}

/// The answer to a request that shared a command.
enum Shared {
    Written(Written),
    /// Nothing was written; these operations, in record keys, are to be routed again.
    Again(Vec<Operation>),
}

/// One caller's operations.
pub(super) struct WritePart {
    range_epoch: u64,
    /// In record keys.
    operations: Vec<Operation>,
    deadline_ms: u64,
    reply: oneshot::Sender<Result<Shared, StoreError>>,
}

impl Part for WritePart {
    const RESULT_BYTES_MAX: usize = OUTCOME_BYTES_MAX - OUTCOME_FRAME_BYTES;

    fn lanes(store: &Store) -> &Lanes<Self> {
        &store.inner.writes
    }

    fn label(&self) -> u64 {
        self.range_epoch
    }

    fn cost(&self) -> Cost {
        let cost = |operation: &Operation| (operation.payload_bytes(), operation.result_bytes_max());
        let (bytes, result_bytes) =
            self.operations.iter().map(cost).fold((0, 0), |sum, cost| (sum.0 + cost.0, sum.1 + cost.1));
        Cost { keys: self.operations.len(), bytes, result_bytes }
    }

    fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    fn exclusive(&self) -> impl Iterator<Item = &Bytes> {
        self.operations.iter().map(|operation| &operation.key)
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    async fn call(store: Store, shard: ShardId, parts: Vec<Self>) {
        let mut untried = vec![parts];
        while let Some(mut parts) = untried.pop() {
            let counts: Vec<usize> = parts.iter().map(|part| part.operations.len()).collect();
            let operations: Vec<Operation> =
                parts.iter_mut().flat_map(|part| std::mem::take(&mut part.operations)).collect();
            let Some((range_epoch, deadline_ms)) =
                parts.iter().map(|part| (part.range_epoch, part.deadline_ms)).min_by_key(|(_, deadline)| *deadline)
            else {
                continue;
            };
            let (fate, _, operations) = store.command(shard, range_epoch, Vec::new(), operations, deadline_ms).await;
            match fate {
                Ok(Fate::Written(mut written)) if written.results.len() == operations.len() => {
                    let mut results = written.results.drain(..);
                    for (part, count) in parts.into_iter().zip(counts) {
                        let results = results.by_ref().take(count).collect();
                        let part_of = Written { results, timestamp: written.timestamp, shard };
                        let _ = part.reply.send(Ok(Shared::Written(part_of)));
                    }
                }
                Ok(Fate::Written(_)) => fail(parts, &StoreError::OutcomeUnknown { shard }),
                Ok(Fate::Again) => {
                    let mut operations = operations.into_iter();
                    for (part, count) in parts.into_iter().zip(counts) {
                        let _ = part.reply.send(Ok(Shared::Again(operations.by_ref().take(count).collect())));
                    }
                }
                Err(error) if parts.len() > 1 && error.concerns_one() => {
                    // Nothing was written. Halves, in order, until the culprit is alone.
                    let mut operations = operations.into_iter();
                    for (part, count) in parts.iter_mut().zip(counts) {
                        part.operations = operations.by_ref().take(count).collect();
                    }
                    let second = parts.split_off(parts.len() / 2);
                    untried.extend([second, parts]);
                }
                Err(error) => fail(parts, &error),
            }
        }
    }
}

fn fail(parts: Vec<WritePart>, error: &StoreError) {
    for part in parts {
        let _ = part.reply.send(Err(error.clone()));
    }
}
