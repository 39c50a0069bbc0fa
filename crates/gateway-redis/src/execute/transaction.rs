//! Transactions on the keys of one shard: `MULTI` … `EXEC`, `WATCH`, and single commands whose writes depend
//! on what they read.
//!
//! A transaction is one atomic command of the shard. When each of its commands is a write that the shard
//! itself can compute, they are sent as they are. Otherwise the keys are read, the commands are evaluated
//! here, and the results are written on the condition that no key has changed since; when one has, all of it
//! starts again. So replicas apply only values and conditions, never the evaluation.
//!
//! Invariants: nothing is answered from an evaluation whose reads are not known to be of one moment; after an
//! attempt whose outcome is unknown there is no other one.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flotilla_gateway::{Found, READ_KEYS_MAX, StoreError};
use flotilla_kv::{Condition, OUTCOME_BYTES_MAX, OUTCOME_FRAME_BYTES, Operation};
use flotilla_types::Timestamp;
use parking_lot::Mutex;
use tokio::{task::spawn_blocking, time::timeout_at};

use crate::{
    Command, Reply,
    answer::error_reply,
    clock,
    evaluate::evaluate,
    keyspace::Keyspace,
    plan::{Plan, Write},
    server::Shared,
    stripes::NoTurn,
    view::{View, version_condition},
};

/// Attempts of a transaction when others write its keys in between. Clients of one node take turns, so only
/// those of other nodes interfere.
const ATTEMPTS_MAX: u32 = 64;
/// The longest pause between two attempts, in milliseconds.
const PAUSE_MS_MAX: u64 = 32;

/// The versions of the keys that a connection watches. Filled by `WATCH`, read by `EXEC`.
#[derive(Debug, Default)]
pub(crate) struct Watch(Mutex<Watched>);

#[derive(Debug, Default)]
struct Watched {
    versions: BTreeMap<Bytes, Option<Timestamp>>,
    /// Some key could not be read, so no `EXEC` can know whether it changed.
    failed: bool,
}

/// One command of a transaction.
#[derive(Debug)]
pub(crate) enum Step {
    Run(Command),
    /// A command that needs no keys, already answered.
    Done(Reply),
}

/// Reads the versions of keys to watch.
pub(crate) async fn watch(keyspace: &Keyspace, keys: Vec<Bytes>, watch: &Watch, deadline: Instant) -> Reply {
    match keyspace.get(keys.clone(), false, deadline).await {
        Ok(found) => {
            let mut watched = watch.0.lock();
            for (key, found) in keys.into_iter().zip(found) {
                // The first version counts if a key is watched again.
                watched.versions.entry(key).or_insert(found.map(|found| found.version));
            }
            Reply::OK
        }
        Err(error) => {
            watch.0.lock().failed = true;
            error_reply(&error)
        }
    }
}

/// Runs the commands between `MULTI` and `EXEC`.
pub(crate) async fn exec(
    shared: &Shared,
    keyspace: &Keyspace,
    steps: Vec<Step>,
    watch: Option<Arc<Watch>>,
    deadline: Instant,
) -> Reply {
    let watched = match watch {
        None => BTreeMap::new(),
        Some(watch) => {
            let mut watched = watch.0.lock();
            if watched.failed {
                return Reply::Error("EXECABORT Transaction discarded because a WATCH failed.".into());
            }
            std::mem::take(&mut watched.versions)
        }
    };
    let commands: Vec<&Command> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Run(command) => Some(command),
            Step::Done(_) => None,
        })
        .collect();
    let transaction = Transaction::new(shared, keyspace, &commands, watched, deadline);
    let replies = match transaction.run().await {
        Ok(Some(replies)) => replies,
        Ok(None) => return Reply::NullArray,
        Err(refusal) => return refusal,
    };
    let mut replies = replies.into_iter();
    let reply = |step| match step {
        Step::Run(_) => replies.next().unwrap_or(Reply::Null),
        Step::Done(reply) => reply,
    };
    Reply::Array(steps.into_iter().map(reply).collect())
}

/// Runs one command whose writes depend on what it reads.
pub(crate) async fn run_alone(shared: &Shared, keyspace: &Keyspace, command: &Command, deadline: Instant) -> Reply {
    let commands = [command];
    match Transaction::new(shared, keyspace, &commands, BTreeMap::new(), deadline).optimistic().await {
        Ok(replies) => replies.into_iter().flatten().next().unwrap_or(Reply::Null),
        Err(refusal) => refusal,
    }
}

/// The replies, or `None` if a watched key has changed. An error is the reply to the whole.
type Ended = Result<Option<Vec<Reply>>, Reply>;

struct Transaction<'a> {
    shared: &'a Shared,
    keyspace: &'a Keyspace,
    commands: &'a [&'a Command],
    watched: BTreeMap<Bytes, Option<Timestamp>>,
    deadline: Instant,
    now_ms: u64,
}

impl<'a> Transaction<'a> {
    fn new(
        shared: &'a Shared,
        keyspace: &'a Keyspace,
        commands: &'a [&'a Command],
        watched: BTreeMap<Bytes, Option<Timestamp>>,
        deadline: Instant,
    ) -> Self {
        Self { shared, keyspace, commands, watched, deadline, now_ms: clock::wall_ms() }
    }

    async fn run(self) -> Ended {
        match writes_of(self.commands, self.now_ms) {
            Some(writes) => match self.direct(&writes).await {
                // Nothing was written. The evaluation finds out which command is at fault.
                Err(error) if error.is_request_error() && error != StoreError::CrossShard => self.optimistic().await,
                Err(error) => Err(error_reply(&error)),
                Ok(ended) => Ok(ended),
            },
            None => self.optimistic().await,
        }
    }

    /// Sends the writes as they are.
    async fn direct(&self, writes: &[Write]) -> Result<Option<Vec<Reply>>, StoreError> {
        let operations = writes.iter().map(|write| write.operation.clone()).collect();
        match self.keyspace.write(self.watch_conditions(), operations, self.deadline).await {
            Ok(written) if written.results.len() == writes.len() => {
                // None of them returns an old value: see `writes_of`.
                Ok(Some(writes.iter().zip(written.results).map(|(write, result)| write.answer.reply(result)).collect()))
            }
            Ok(written) => Err(StoreError::OutcomeUnknown { shard: written.shard }),
            Err(StoreError::ConditionFailed { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads, evaluates, and writes if nothing has changed in between.
    async fn optimistic(self) -> Ended {
        let keys: BTreeSet<Bytes> = self.commands.iter().flat_map(|command| command.keys()).collect();
        let writes = self.commands.iter().any(|command| !command.only_reads());
        let timed_out = |NoTurn| error_reply(&StoreError::DeadlineExceeded { shard: None });
        let turn_keys = keys.iter().filter(|_| writes);
        let _turn = self.shared.stripes.turn(turn_keys, self.deadline).await.map_err(timed_out)?;
        for attempt in 0..ATTEMPTS_MAX {
            match self.attempt(&keys).await {
                Ok(Attempt::Ended(replies)) => return Ok(replies),
                Ok(Attempt::Changed) => pause(attempt).await,
                Err(error) => return Err(error_reply(&error)),
            }
            if Instant::now() >= self.deadline {
                break;
            }
        }
        Err(Reply::Error("TRYAGAIN too many concurrent writes of the key; try again".into()))
    }

    async fn attempt(&self, keys: &BTreeSet<Bytes>) -> Result<Attempt, StoreError> {
        let values = self.commands.iter().any(|command| command.needs_values());
        let (found, at_once) = self.read(keys, values).await?;
        let version = |key| found.get(key).and_then(Option::as_ref).map(|found: &Found| found.version);
        if self.watched.iter().any(|(key, watched)| version(key) != *watched) {
            return Ok(Attempt::Ended(None));
        }
        let mut found: BTreeMap<_, _> = found.into_iter().filter(|(key, _)| keys.contains(key)).collect();
        let value_bytes_max = self.keyspace.value_bytes_max();
        let (replies, view) = loop {
            let view = View::new(found.clone(), values, value_bytes_max, self.now_ms);
            let (replies, view) = self.evaluate(view).await?;
            let wanted = view.wanted();
            if wanted.is_empty() {
                break (replies, view);
            }
            // Each time there are fewer of them.
            match self.load(&mut found, wanted).await {
                Err(StoreError::ObjectsMissing { .. }) => return Ok(Attempt::Changed),
                loaded => loaded?,
            }
        };
        let mut conditions = self.watch_conditions();
        let watch_conditions = conditions.len();
        conditions.extend(view.conditions().filter(|(key, _)| !self.watched.contains_key(key)));
        let operations: Vec<Operation> = view.operations();
        if at_once && operations.is_empty() {
            return Ok(Attempt::Ended(Some(replies)));
        }
        match self.keyspace.write(conditions, operations, self.deadline).await {
            Ok(_) => Ok(Attempt::Ended(Some(replies))),
            Err(StoreError::ConditionFailed { operation, .. }) if (operation as usize) < watch_conditions => {
                Ok(Attempt::Ended(None))
            }
            Err(StoreError::ConditionFailed { .. }) => Ok(Attempt::Changed),
            Err(error) => Err(error),
        }
    }

    /// Reads the bytes of large values.
    ///
    /// # Errors
    /// [`StoreError::ObjectsMissing`]: they have been overwritten.
    async fn load(
        &self,
        found: &mut BTreeMap<Bytes, Option<Found>>,
        wanted: BTreeSet<Bytes>,
    ) -> Result<(), StoreError> {
        // Where they are changed, there is a second copy.
        let copies = if self.commands.iter().all(|command| command.only_reads()) { 1 } else { 2 };
        let wanted: Vec<&mut Found> =
            found.iter_mut().filter(|(key, _)| wanted.contains(*key)).filter_map(|(_, found)| found.as_mut()).collect();
        self.keyspace.load(wanted, copies, self.deadline).await
    }

    /// The replies, and what was changed. Scripts run apart from the thread that serves everybody.
    async fn evaluate(&self, mut view: View) -> Result<(Vec<Reply>, View), StoreError> {
        if !self.commands.iter().any(|command| matches!(command, Command::Eval(_))) {
            let replies = self.commands.iter().map(|command| evaluate(command, &mut view)).collect();
            return Ok((replies, view));
        }
        let late = StoreError::DeadlineExceeded { shard: None };
        let permit = timeout_at(self.deadline.into(), self.shared.script_permits.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(late) };
        let commands: Vec<Command> = self.commands.iter().map(|command| (*command).clone()).collect();
        let evaluated = spawn_blocking(move || {
            let replies = commands.iter().map(|command| evaluate(command, &mut view)).collect();
            (replies, view)
        });
        evaluated.await.map_err(|_| StoreError::Invalid("the script ended the thread that ran it"))
    }

    /// The records of all keys and watched keys, and whether they are of one moment.
    async fn read(
        &self,
        keys: &BTreeSet<Bytes>,
        values: bool,
    ) -> Result<(BTreeMap<Bytes, Option<Found>>, bool), StoreError> {
        let (keyspace, deadline) = (self.keyspace, self.deadline);
        let keys: Vec<Bytes> =
            keys.iter().chain(self.watched.keys().filter(|key| !keys.contains(*key))).cloned().collect();
        if keys.len() <= 1 {
            let found = keyspace.get(keys.clone(), values, deadline).await?;
            return Ok((keys.into_iter().zip(found).collect(), true));
        }
        if let Some(found) = keyspace.get_at_once(keys.clone(), values, deadline).await? {
            return Ok((keys.into_iter().zip(found).collect(), true));
        }
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(READ_KEYS_MAX) {
            found.extend(keyspace.get(keys.to_vec(), values, deadline).await?);
        }
        Ok((keys.into_iter().zip(found).collect(), false))
    }

    fn watch_conditions(&self) -> Vec<(Bytes, Condition)> {
        self.watched.iter().map(|(key, version)| (key.clone(), version_condition(*version))).collect()
    }
}

enum Attempt {
    Ended(Option<Vec<Reply>>),
    /// Another client wrote one of the keys; nothing was written here.
    Changed,
}

/// The writes if the shard can compute all of them, and its outcome is small enough that it remembers it.
fn writes_of(commands: &[&Command], now_ms: u64) -> Option<Vec<Write>> {
    let write = |command: &&Command| match Plan::of((*command).clone(), now_ms) {
        Ok(Plan::Write(write)) => Some(write),
        _ => None,
    };
    let writes: Vec<Write> = commands.iter().map(write).collect::<Option<_>>()?;
    let result_bytes: usize = writes.iter().map(|write| write.operation.result_bytes_max()).sum();
    (!writes.is_empty() && result_bytes <= OUTCOME_BYTES_MAX - OUTCOME_FRAME_BYTES).then_some(writes)
}

/// A random pause that grows with the attempts.
async fn pause(attempt: u32) {
    let bound_ms = 1_u64.checked_shl(attempt).unwrap_or(PAUSE_MS_MAX).min(PAUSE_MS_MAX);
    let pause_ms = RandomState::new().hash_one(attempt) % bound_ms;
    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::testing::parsed;

    #[test]
    fn writes_that_the_shard_can_compute_are_sent_as_they_are() {
        let direct = |lines: &[&str]| {
            let commands: Vec<_> = lines.iter().map(|line| parsed(line).unwrap()).collect();
            writes_of(&commands.iter().collect::<Vec<_>>(), 0).is_some()
        };
        assert!(direct(&["INCR k", "EXPIRE k 5"]) && direct(&["SET k v NX", "DEL k", "APPEND k v"]));
        assert!(!direct(&["INCR k", "GET k"]) && !direct(&["EXPIRE k 5 NX"]) && !direct(&[]));
        assert!(!direct(&["GETDEL k"]), "its outcome may be too large to be remembered");
        assert!(!direct(&["INCR k"; 100]), "so is that of many writes");
    }
}
