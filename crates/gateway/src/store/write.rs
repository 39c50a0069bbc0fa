//! Writes: one atomic command to the shard that holds all its keys.
//!
//! Invariant: once an attempt may have been proposed, only what the shard remembers as the command's outcome
//! is reported as such. Every other refusal is `outcome_unknown`, and the command is never sent under another
//! number.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_api::{BATCH_BYTES_MAX, BATCH_OPERATIONS_MAX, LARGE_VALUE_BYTES_MAX, VALUE_BYTES_MAX};
use flotilla_control::{Earlier, RequestKind, ShardError, clock};
use flotilla_kv::{
    Action, Command, Condition, OUTCOME_BYTES_MAX, OUTCOME_FRAME_BYTES, Operation, Otherwise, Outcome, Refusal,
    decode_outcome, encode_command,
};
use flotilla_placement::{Collection, ShardMap};
use flotilla_route::Route;
use flotilla_types::ShardId;
use flotilla_values::ValueRef;
use tokio::sync::oneshot;

use super::{
    RETRY_AFTER_MS, Store, StoreError, Written,
    batcher::{Batchable, Batchers, Cost, QueueFull, time_left},
    check_key, collection_of, deadline_ms,
    large::{ValueRules, refs_fit},
    routes::{Rerouting, home, route_to},
    values::Hold,
};

/// How long after its deadline a command may still apply: the clocks of gateway and leader differ.
const EXPIRY_SLACK_MS: u64 = 1_000;
/// Longest time for which a command may apply, besides the slack: the longest deadline of any protocol.
const LIFETIME_MS_MAX: u64 = 600_000;
/// How long after its deadline a request waits for the answer of a shared command, whose deadline is the
/// earliest of its requests'.
const ANSWER_SLACK: Duration = Duration::from_millis(5);

/// Values of so many bytes in one command, together, go to the nodes of the shard before the command.
const PREFETCH_BYTES_MIN: u64 = 256 << 10;

const EMPTY_BATCH: StoreError = StoreError::Invalid("a batch must have at least one operation or condition");

/// Conditions and operations of a command, in record keys.
type Parts = (Vec<(Bytes, Condition)>, Vec<Operation>);

/// What one attempt of a command did.
enum Attempt {
    Written(Written),
    /// It was routed by an outdated map and wrote nothing.
    StaleRoute,
}

/// What a command did.
enum Proposed {
    Written(Written),
    /// Nothing was written or will be, and its keys no longer live in one shard.
    Split,
}

impl Store {
    /// Applies operations atomically. Keys are the user's keys and must live in one shard.
    pub async fn write(
        &self,
        collection: &str,
        conditions: Vec<(Bytes, Condition)>,
        mut operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        // Most writes: whatever the collection says of long values, none of these is one.
        let rules = if operations.iter().all(is_short) { None } else { self.value_rules(collection)? };
        check_limits(&conditions, &operations, rules)?;
        let Some(rules) = rules else { return self.write_stored(collection, conditions, operations, deadline).await };
        let appended = operations.iter().filter_map(|operation| match &operation.action {
            Action::Append { bytes } => Some(bytes.len()),
            _ => None,
        });
        let appends = appended.max();
        if appends.is_some_and(|bytes| bytes > VALUE_BYTES_MAX) {
            return self.append_whole(collection, rules, &conditions, &operations, deadline).await;
        }
        let hold = self.store_long(rules, &mut operations).await?;
        if appends.is_none() {
            let written = self.write_stored(collection, conditions, operations, deadline).await;
            return written.map_err(|error| Hold::after(hold, error));
        }
        match self.write_stored(collection, conditions.clone(), operations.clone(), deadline).await {
            // Nothing was written.
            Err(StoreError::LargeValue | StoreError::ValueTooLarge { .. }) => {
                self.append_whole(collection, rules, &conditions, &operations, deadline).await
            }
            written => written.map_err(|error| Hold::after(hold, error)),
        }
    }

    /// The same of values whose objects are stored.
    pub(super) async fn write_stored(
        &self,
        collection: &str,
        mut conditions: Vec<(Bytes, Condition)>,
        mut operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Written, StoreError> {
        if !refs_fit(&operations) {
            return Err(StoreError::BatchTooLarge { operations_max: BATCH_OPERATIONS_MAX, bytes_max: BATCH_BYTES_MAX });
        }
        let deadline_ms = deadline_ms(deadline);
        self.to_record_keys(collection, &mut conditions, &mut operations)?;
        if !conditions.is_empty() || !operations.iter().all(may_share) {
            let route = self.write_route(&conditions, &operations, deadline_ms).await?;
            return match self.propose(route, (conditions, operations), deadline_ms).await.0? {
                Proposed::Written(written) => Ok(written),
                Proposed::Split => Err(StoreError::CrossShard),
            };
        }
        loop {
            let route = self.write_route(&conditions, &operations, deadline_ms).await?;
            match self.write_shared(route, operations, deadline_ms).await? {
                SharedAttempt::Written(written) => return Ok(written),
                // The command was split only because others' keys went elsewhere.
                SharedAttempt::Split(returned) => operations = returned,
            }
            if clock::monotonic_ms() >= deadline_ms {
                return Err(StoreError::DeadlineExceeded { shard: Some(route.shard) });
            }
        }
    }

    /// Proposes one command, under one number to whatever shard holds its keys. Returns conditions and
    /// operations for other commands.
    async fn propose(
        &self,
        mut route: Route,
        (conditions, operations): Parts,
        deadline_ms: u64,
    ) -> (Result<Proposed, StoreError>, Parts) {
        let Some(ticket) = self.inner.sessions.begin(route.shard) else {
            return (Err(StoreError::Busy { retry_after_ms: RETRY_AFTER_MS }), (conditions, operations));
        };
        let command = Command {
            session: ticket.session,
            sequence: ticket.sequence.0,
            expires_at_ms: expires_at_ms(ticket.now_ms, deadline_ms, clock::monotonic_ms()),
            acked_below: ticket.acked_below,
            conditions,
            operations,
        };
        let refs = command.refs();
        if refs.iter().map(|reference| reference.bytes).sum::<u64>() >= PREFETCH_BYTES_MIN {
            let now_ms = clock::monotonic_ms();
            let until_ms = now_ms + deadline_ms.saturating_sub(now_ms) / 2;
            self.inner.shards.prefetch(route.shard, &refs, until_ms).await;
        }
        let mut earlier = Earlier::Unproposed;
        let mut rerouting = Rerouting::new(self, deadline_ms);
        let proposed = loop {
            match self.attempt(&command, &mut earlier, route, deadline_ms).await {
                Ok(Attempt::Written(written)) => break Ok(Proposed::Written(written)),
                Ok(Attempt::StaleRoute) => rerouting.refused(route),
                Err(error) => break Err(error),
            }
            match rerouting.route(|map| write_route(map, &command.conditions, &command.operations)).await {
                Ok(routes) => route = routes.first().map_or(route, |(route, ())| *route),
                // Parts would be other commands, and an attempt in doubt may still write what they write.
                Err(StoreError::CrossShard) if earlier == Earlier::Unproposed => break Ok(Proposed::Split),
                Err(error) => break Err(in_doubt(earlier, route.shard, error)),
            }
        };
        // Only now may the shard forget the outcome: the command is not sent again.
        drop(ticket);
        (proposed, (command.conditions, command.operations))
    }

    /// Sends a command to one shard. Updates what is known about its attempts.
    async fn attempt(
        &self,
        command: &Command,
        earlier: &mut Earlier,
        Route { shard, range_epoch }: Route,
        deadline_ms: u64,
    ) -> Result<Attempt, StoreError> {
        let (payload, refs) = (encode_command(command), command.refs());
        let proposed =
            self.inner.shards.propose_referring(*earlier, shard, Some(range_epoch), payload, refs, deadline_ms);
        let answer = match proposed.await {
            Ok(answer) => answer,
            Err(ShardError::Stale(known)) => {
                *earlier = known;
                return Ok(Attempt::StaleRoute);
            }
            Err(error) => return Err(self.write_error(error, shard, deadline_ms)),
        };
        *earlier = answer.earlier;
        let Ok(outcome) = decode_outcome(answer.payload) else { return Err(StoreError::OutcomeUnknown { shard }) };
        match &outcome {
            Outcome::Done { timestamp, .. } => self.inner.sessions.observe_clock(shard, timestamp.millis()),
            Outcome::Refused(Refusal::Expired { clock_ms }) => self.inner.sessions.observe_clock(shard, *clock_ms),
            Outcome::Refused(_) => {}
        }
        attempt_of(outcome, shard, answer.earlier)
    }

    /// Writes by a command that it may share with other callers' operations.
    async fn write_shared(
        &self,
        Route { shard, range_epoch }: Route,
        operations: Vec<Operation>,
        deadline_ms: u64,
    ) -> Result<SharedAttempt, StoreError> {
        let (reply, answer) = oneshot::channel();
        let request = PendingWrite { range_epoch, operations, deadline_ms, reply };
        let busy = StoreError::Busy { retry_after_ms: RETRY_AFTER_MS };
        let ticket = Batchers::submit(self, shard, request).map_err(|QueueFull| busy)?;
        match tokio::time::timeout(time_left(deadline_ms) + ANSWER_SLACK, answer).await {
            Ok(Ok(attempt)) => attempt,
            Err(_elapsed) if self.inner.writes.cancel(shard, ticket) => {
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

    /// The one shard that holds all keys, once it is known.
    async fn write_route(
        &self,
        conditions: &[(Bytes, Condition)],
        operations: &[Operation],
        deadline_ms: u64,
    ) -> Result<Route, StoreError> {
        let routes = Rerouting::new(self, deadline_ms).route(|map| write_route(map, conditions, operations)).await?;
        routes.first().map(|(route, ())| *route).ok_or(EMPTY_BATCH)
    }

    /// Commits an empty command, which advances the shard's clock to the present. Returns the time at which it
    /// applied, in Unix milliseconds of hybrid time, if it did.
    pub(super) async fn advance_clock(&self, shard: ShardId, deadline_ms: u64) -> Result<Option<u64>, StoreError> {
        let command = clock_command(self.inner.sessions.now_ms(shard), deadline_ms, clock::monotonic_ms());
        let answer =
            self.inner.shards.request(RequestKind::Propose, shard, None, encode_command(&command), deadline_ms).await;
        let outcome = answer.map_err(|error| self.read_error(error, shard, deadline_ms))?.payload;
        Ok(match decode_outcome(outcome) {
            Ok(Outcome::Done { timestamp, .. }) => Some(timestamp.millis()),
            // The query finds out whether the clock has advanced.
            Ok(Outcome::Refused(_)) | Err(_) => None,
        })
    }
}

/// The one shard that holds all keys.
fn write_route(
    map: &ShardMap,
    conditions: &[(Bytes, Condition)],
    operations: &[Operation],
) -> Result<Vec<(Route, ())>, StoreError> {
    let mut route = None;
    let keys = conditions.iter().map(|(key, _)| key).chain(operations.iter().map(|operation| &operation.key));
    for key in keys {
        let found = route_to(home(map, key)?);
        if *route.get_or_insert(found) != found {
            return Err(StoreError::CrossShard);
        }
    }
    route.map(|route| vec![(route, ())]).ok_or(EMPTY_BATCH)
}

/// An empty command that a shard forgets as soon as it is applied: it has no session, because applying it
/// twice does no harm. A session per gateway start would take places in the shard's table.
fn clock_command(now_ms: u64, deadline_ms: u64, monotonic_ms: u64) -> Command {
    Command { expires_at_ms: expires_at_ms(now_ms, deadline_ms, monotonic_ms), ..Command::empty() }
}

/// When a command expires that is sent from now until a deadline (monotonic). Shards remember its session
/// until then, so it is never later than the longest deadline allows.
fn expires_at_ms(now_ms: u64, deadline_ms: u64, monotonic_ms: u64) -> u64 {
    now_ms.saturating_add(deadline_ms.saturating_sub(monotonic_ms).min(LIFETIME_MS_MAX) + EXPIRY_SLACK_MS)
}

/// The error of a command that was not written by its last attempt.
fn in_doubt(earlier: Earlier, shard: ShardId, error: StoreError) -> StoreError {
    match earlier {
        Earlier::Unproposed => error,
        Earlier::InDoubt => StoreError::OutcomeUnknown { shard },
    }
}

fn check_limits(
    conditions: &[(Bytes, Condition)],
    operations: &[Operation],
    rules: Option<ValueRules>,
) -> Result<(), StoreError> {
    let value_bytes_max = if rules.is_some() { LARGE_VALUE_BYTES_MAX } else { VALUE_BYTES_MAX };
    let mut bytes = 0;
    for (key, _) in conditions {
        check_key(key)?;
        bytes += key.len();
    }
    for operation in operations {
        check_key(&operation.key)?;
        // Whole, and in the command.
        let (value, stored) = match &operation.action {
            Action::Put { value, .. } if rules.is_some_and(|rules| rules.makes_objects_of(value)) => {
                (value.bytes(), ValueRef::ENCODED_BYTES_MAX)
            }
            Action::Put { value, .. } => (value.bytes(), value.stored_bytes()),
            Action::Append { bytes } if bytes.len() > VALUE_BYTES_MAX => (bytes.len() as u64, 0),
            Action::Append { bytes } => (bytes.len() as u64, bytes.len()),
            Action::Delete { .. } | Action::Add { .. } | Action::Expire { .. } => (0, 0),
        };
        if value > value_bytes_max as u64 {
            return Err(StoreError::ValueTooLarge { limit_bytes: value_bytes_max as u64 });
        }
        bytes += operation.key.len() + stored;
    }
    if operations.len() > BATCH_OPERATIONS_MAX || conditions.len() > BATCH_OPERATIONS_MAX || bytes > BATCH_BYTES_MAX {
        return Err(StoreError::BatchTooLarge { operations_max: BATCH_OPERATIONS_MAX, bytes_max: BATCH_BYTES_MAX });
    }
    Ok(())
}

/// What an outcome says about the command, of which earlier attempts may be in doubt.
fn attempt_of(outcome: Outcome, shard: ShardId, earlier: Earlier) -> Result<Attempt, StoreError> {
    let refusal = match outcome {
        Outcome::Done { results, timestamp } => return Ok(Attempt::Written(Written { results, timestamp, shard })),
        Outcome::Refused(refusal) => refusal,
    };
    let is_remembered = refusal.is_remembered();
    let error = match refusal {
        // The command goes on under its number, which stays recognizable wherever its keys are.
        Refusal::WrongShard => return Ok(Attempt::StaleRoute),
        Refusal::ConditionFailed { operation, found } => StoreError::ConditionFailed { operation, found },
        Refusal::NotAnInteger => StoreError::NotAnInteger,
        Refusal::Overflow => StoreError::Overflow,
        Refusal::TooLarge { limit_bytes } => StoreError::ValueTooLarge { limit_bytes },
        Refusal::SessionFull => StoreError::Busy { retry_after_ms: RETRY_AFTER_MS },
        Refusal::Expired { .. } => StoreError::DeadlineExceeded { shard: Some(shard) },
        // It was applied.
        Refusal::OutcomeForgotten => StoreError::OutcomeUnknown { shard },
        Refusal::TooManyOperations { .. } => {
            StoreError::BatchTooLarge { operations_max: BATCH_OPERATIONS_MAX, bytes_max: BATCH_BYTES_MAX }
        }
        Refusal::NeedsContent => StoreError::LargeValue,
        Refusal::Malformed | Refusal::UnnamedObjects => {
            StoreError::Invalid("the command does not parse; gateway and shard differ in version")
        }
    };
    Err(if is_remembered { error } else { in_doubt(earlier, shard, error) })
}

/// Whether an operation leaves no value that may be long, in any collection.
fn is_short(operation: &Operation) -> bool {
    match &operation.action {
        Action::Put { value, .. } => {
            value.inline().is_some_and(|bytes| bytes.len() <= Collection::OBJECTS_FROM_MIN as usize)
        }
        Action::Append { .. } => false,
        Action::Delete { .. } | Action::Add { .. } | Action::Expire { .. } => true,
    }
}

/// Whether an operation may share its command with those of other callers. One that is refused when its
/// condition does not hold would make all of them fail, repeatedly where callers contend. One whose value is objects
/// would make them wait for these.
fn may_share(operation: &Operation) -> bool {
    if matches!(&operation.action, Action::Put { value, .. } if value.inline().is_none()) {
        return false;
    }
    operation.condition.is_none() || operation.otherwise == Otherwise::Skip
}

/// What a shared command did for one request.
enum SharedAttempt {
    Written(Written),
    /// Nothing was written or will be; these operations, in record keys, must be routed again.
    Split(Vec<Operation>),
}

/// One caller's operations, waiting for a command to share.
pub(super) struct PendingWrite {
    range_epoch: u64,
    /// In record keys.
    operations: Vec<Operation>,
    deadline_ms: u64,
    reply: oneshot::Sender<Result<SharedAttempt, StoreError>>,
}

impl Batchable for PendingWrite {
    const RESULT_BYTES_MAX: usize = OUTCOME_BYTES_MAX - OUTCOME_FRAME_BYTES;

    fn batchers(store: &Store) -> &Batchers<Self> {
        &store.inner.writes
    }

    fn batch_key(&self) -> u64 {
        self.range_epoch
    }

    fn cost(&self) -> Cost {
        Cost {
            keys: self.operations.len(),
            bytes: self.operations.iter().map(Operation::payload_bytes).sum(),
            result_bytes: self.operations.iter().map(Operation::result_bytes_max).sum(),
        }
    }

    fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    fn exclusive_keys(&self) -> impl Iterator<Item = &Bytes> {
        self.operations.iter().map(|operation| &operation.key)
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    async fn call(store: Store, shard: ShardId, requests: Vec<Self>) {
        let mut untried = vec![requests];
        while let Some(mut requests) = untried.pop() {
            let counts: Vec<usize> = requests.iter().map(|request| request.operations.len()).collect();
            let operations: Vec<Operation> =
                requests.iter_mut().flat_map(|request| std::mem::take(&mut request.operations)).collect();
            let Some((range_epoch, deadline_ms)) = requests
                .iter()
                .map(|request| (request.range_epoch, request.deadline_ms))
                .min_by_key(|(_, deadline_ms)| *deadline_ms)
            else {
                continue;
            };
            let (proposed, (_, operations)) =
                store.propose(Route { shard, range_epoch }, (Vec::new(), operations), deadline_ms).await;
            match proposed {
                Ok(Proposed::Written(mut written)) if written.results.len() == operations.len() => {
                    let mut results = written.results.drain(..);
                    for (request, count) in requests.into_iter().zip(counts) {
                        let results = results.by_ref().take(count).collect();
                        let own = Written { results, ..written };
                        let _ = request.reply.send(Ok(SharedAttempt::Written(own)));
                    }
                }
                Ok(Proposed::Written(_)) => fail(requests, &StoreError::OutcomeUnknown { shard }),
                Ok(Proposed::Split) => {
                    let mut operations = operations.into_iter();
                    for (request, count) in requests.into_iter().zip(counts) {
                        let returned = operations.by_ref().take(count).collect();
                        let _ = request.reply.send(Ok(SharedAttempt::Split(returned)));
                    }
                }
                Err(error) if requests.len() > 1 && error.is_request_error() => {
                    // The command was refused for good, so nothing of it was or will be written. Tries
                    // halves, as other commands, in order, until the request at fault is alone.
                    let mut operations = operations.into_iter();
                    for (request, count) in requests.iter_mut().zip(counts) {
                        request.operations = operations.by_ref().take(count).collect();
                    }
                    let second = requests.split_off(requests.len() / 2);
                    untried.extend([second, requests]);
                }
                Err(error) => fail(requests, &error),
            }
        }
    }
}

fn fail(requests: Vec<PendingWrite>, error: &StoreError) {
    for request in requests {
        let _ = request.reply.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{SessionId, Timestamp};

    use super::*;

    const SHARD: ShardId = ShardId(4);
    const UNKNOWN: StoreError = StoreError::OutcomeUnknown { shard: SHARD };

    fn error(refusal: Refusal, earlier: Earlier) -> Option<StoreError> {
        attempt_of(Outcome::Refused(refusal), SHARD, earlier).err()
    }

    /// The first attempt sits in a paused node, the second one is refused; then the first one applies.
    #[test]
    fn a_refusal_that_is_not_remembered_is_unknown_after_an_attempt_in_doubt() {
        for (refusal, otherwise) in [
            (Refusal::SessionFull, StoreError::Busy { retry_after_ms: RETRY_AFTER_MS }),
            (Refusal::Expired { clock_ms: 9 }, StoreError::DeadlineExceeded { shard: Some(SHARD) }),
            (Refusal::OutcomeForgotten, UNKNOWN),
        ] {
            assert_eq!(error(refusal.clone(), Earlier::InDoubt), Some(UNKNOWN), "{refusal}");
            assert_eq!(error(refusal, Earlier::Unproposed), Some(otherwise));
        }
        assert_eq!(error(Refusal::Malformed, Earlier::InDoubt), Some(UNKNOWN));
        assert!(error(Refusal::Malformed, Earlier::Unproposed).is_some_and(|error| error.is_request_error()));
    }

    #[test]
    fn a_remembered_refusal_holds_for_attempts_in_doubt_too() {
        for refusal in [
            Refusal::ConditionFailed { operation: 1, found: Some(Timestamp(5)) },
            Refusal::NotAnInteger,
            Refusal::Overflow,
            Refusal::TooLarge { limit_bytes: 1 },
            Refusal::TooManyOperations { limit: 1 },
        ] {
            let refused = error(refusal.clone(), Earlier::InDoubt);
            assert_eq!(refused, error(refusal, Earlier::Unproposed));
            assert!(refused.is_some_and(|error| error != UNKNOWN));
        }
    }

    /// The halves of a command are other commands: none is tried while the whole may still be written.
    #[test]
    fn no_command_is_split_while_it_may_still_be_written() {
        let all = [
            Refusal::WrongShard,
            Refusal::Expired { clock_ms: 9 },
            Refusal::OutcomeForgotten,
            Refusal::SessionFull,
            Refusal::Malformed,
        ];
        for refusal in all {
            let splits = error(refusal.clone(), Earlier::InDoubt).is_some_and(|error| error.is_request_error());
            assert!(!splits, "{refusal}");
        }
        assert_eq!(in_doubt(Earlier::InDoubt, SHARD, StoreError::CrossShard), UNKNOWN);
        assert_eq!(in_doubt(Earlier::Unproposed, SHARD, StoreError::CrossShard), StoreError::CrossShard);
    }

    #[test]
    fn a_clock_command_expires_like_others_and_leaves_no_session() {
        let (now_ms, monotonic_ms) = (1_700_000_000_000, 77);
        let command = clock_command(now_ms, monotonic_ms + 5_000, monotonic_ms);
        assert_eq!(command.expires_at_ms, now_ms + 5_000 + EXPIRY_SLACK_MS);
        assert_eq!(command.session, SessionId(0));
        assert!(command.operations.is_empty() && command.conditions.is_empty());
    }

    #[test]
    fn no_deadline_keeps_a_session_for_long() {
        assert_eq!(expires_at_ms(1_000, 70, 80), 1_000 + EXPIRY_SLACK_MS, "the deadline has passed");
        assert_eq!(expires_at_ms(1_000, u64::MAX, 0), 1_000 + LIFETIME_MS_MAX + EXPIRY_SLACK_MS);
        assert_eq!(expires_at_ms(u64::MAX, u64::MAX, 0), u64::MAX);
    }
}
