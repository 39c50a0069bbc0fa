//! Batches many single-key requests of one connection into few calls.
//!
//! Requests that are ready at the same time and belong to one shard share a call, and consecutive writes of
//! one key become operations of one command. When one of them is refused (not a number, say), nothing of the
//! call was written: its halves are tried one after the other, so that the refusal reaches only the request
//! at fault.
//!
//! Writes of one key never go into two calls that run at the same time.
//!
//! A shard remembers only small outcomes for repeated commands; for others, a retry after a lost answer ends
//! as `UNKNOWN`. Writes of different keys therefore share a call only while its outcome stays small.
//! Consecutive writes of one key share a call regardless, because each would otherwise need a commit of its
//! own.

use std::time::Instant;

use bytes::Bytes;
use flotilla_gateway::StoreError;
use flotilla_kv::{OUTCOME_BYTES_MAX, OUTCOME_FRAME_BYTES, OperationResult};
use flotilla_types::ShardId;
use futures_util::future::FutureExt as _;

use super::{Answered, Call, Done, Job};
use crate::{
    Reply,
    answer::error_reply,
    clock,
    keyspace::Keyspace,
    plan::{Read, Write},
};

/// Maximum number of writes of one key in one command.
const CHAIN_WRITES_MAX: usize = 256;
/// Bytes of the results in one call's outcome: what a shard remembers, less the framing of the results. A
/// single chain may exceed it.
const CALL_RESULT_BYTES_MAX: usize = OUTCOME_BYTES_MAX - OUTCOME_FRAME_BYTES;
/// Bytes of keys and values in one writing call; larger writes gain nothing from sharing. A single write may
/// exceed it.
const CALL_BYTES_MAX: usize = 256 << 10;
/// Bytes of large values that one call reads, unless one is longer.
const CALL_LARGE_BYTES_MAX: u64 = 4 << 20;
/// The reply to a write that took effect, if the old value that it was to return cannot be read.
const OLD_IS_GONE: &str = "UNKNOWN the key was written, but its old value cannot be read any more";
/// Reads in one call: bounds what it may return.
const CALL_READS_MAX: usize = 64;

/// Writes of one key, in order. Never empty.
#[derive(Debug)]
pub(crate) struct Chain {
    jobs: Vec<Job<Write>>,
    bytes: usize,
    result_bytes: usize,
}

impl Chain {
    pub(crate) fn new(first: Job<Write>) -> Self {
        let (bytes, result_bytes) = (first.work.operation.payload_bytes(), first.work.operation.result_bytes_max());
        Self { jobs: vec![first], bytes, result_bytes }
    }

    /// Whether one more write may join.
    pub(crate) fn accepts(&self, write: &Write) -> bool {
        self.jobs.len() < CHAIN_WRITES_MAX && self.bytes + write.operation.payload_bytes() <= CALL_BYTES_MAX
    }

    /// What it uses of a call: bytes of results, and bytes of keys and values.
    fn cost(&self) -> (usize, usize) {
        (self.result_bytes, self.bytes)
    }

    pub(crate) fn push(&mut self, next: Job<Write>) {
        self.bytes += next.work.operation.payload_bytes();
        self.result_bytes += next.work.operation.result_bytes_max();
        self.jobs.push(next);
    }
}

/// The calls for these writes, to be run concurrently. No two chains may have the same key.
pub(crate) fn write_all(keyspace: &Keyspace, chains: Vec<Chain>) -> impl Iterator<Item = Call> {
    let groups = by_shard(keyspace, chains, |chain: &Chain| &chain.jobs[0].work.operation.key);
    let calls: Vec<_> =
        groups.into_iter().flat_map(|group| split(group, Chain::cost, CALL_RESULT_BYTES_MAX, CALL_BYTES_MAX)).collect();
    let keyspace = keyspace.clone();
    calls.into_iter().map(move |chains| {
        let jobs = chains.into_iter().flat_map(|chain| chain.jobs).collect();
        write_call(keyspace.clone(), jobs).map(Done::from).boxed()
    })
}

/// The calls for these reads, to be run concurrently.
pub(crate) fn read_all(keyspace: &Keyspace, jobs: Vec<Job<Read>>) -> impl Iterator<Item = Call> {
    let (with_value, without): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.work.answer.needs_value());
    let mut calls = Vec::new();
    for (jobs, values) in [(with_value, true), (without, false)] {
        for group in by_shard(keyspace, jobs, |job: &Job<Read>| &job.work.key) {
            calls.extend(split(group, |_| (1, 0), CALL_READS_MAX, 0).into_iter().map(|jobs| (jobs, values)));
        }
    }
    let keyspace = keyspace.clone();
    calls.into_iter().map(move |(jobs, values)| read_call(keyspace.clone(), jobs, values))
}

async fn write_call(keyspace: Keyspace, jobs: Vec<Job<Write>>) -> Vec<Answered> {
    let mut answered = Vec::with_capacity(jobs.len());
    let mut untried = Untried::new(jobs);
    while let Some(jobs) = untried.next() {
        let Some(deadline) = jobs.iter().map(|job| job.deadline).min() else { continue };
        let operations = jobs.iter().map(|job| job.work.operation.clone()).collect();
        match keyspace.write(Vec::new(), operations, deadline).await {
            Ok(written) if written.results.len() == jobs.len() => {
                for (job, result) in jobs.iter().zip(written.results) {
                    let reply = match load_old(&keyspace, result, written.shard, job.deadline).await {
                        Ok(result) => job.work.answer.reply(result),
                        Err(_) => Reply::Error(OLD_IS_GONE.into()),
                    };
                    answered.push(job.answered(reply));
                }
            }
            Ok(written) => fail(&mut answered, &jobs, &StoreError::OutcomeUnknown { shard: written.shard }),
            Err(error) if jobs.len() > 1 && error.is_request_error() => untried.halve(jobs),
            Err(error) => fail(&mut answered, &jobs, &error),
        }
    }
    answered
}

/// The result of a write, with the bytes of the old value, which the record no longer holds.
async fn load_old(
    keyspace: &Keyspace,
    mut result: OperationResult,
    shard: ShardId,
    deadline: Instant,
) -> Result<OperationResult, StoreError> {
    if let OperationResult::Written { old: Some(old), .. }
    | OperationResult::Deleted { old: Some(old), .. }
    | OperationResult::Skipped { old: Some(old), .. } = &mut result
        && old.inline().is_none()
    {
        *old = keyspace.part(old, shard, 0..old.bytes(), deadline).await?.into();
    }
    Ok(result)
}

fn read_call(keyspace: Keyspace, jobs: Vec<Job<Read>>, values: bool) -> Call {
    read(keyspace, jobs, values).boxed()
}

/// Large values are answered a few at a time, so that the first ones are sent before the next ones take their room.
async fn read(keyspace: Keyspace, jobs: Vec<Job<Read>>, values: bool) -> Done {
    let mut answered = Vec::with_capacity(jobs.len());
    let mut untried = Untried::new(jobs);
    let mut large_bytes = 0;
    while let Some(mut jobs) = untried.next() {
        let Some(deadline) = jobs.iter().map(|job| job.deadline).min() else { continue };
        let keys = jobs.iter().map(|job| job.work.key.clone()).collect();
        let found = match keyspace.get(keys, values, deadline).await {
            Ok(found) => found,
            Err(error) if jobs.len() > 1 && error.is_request_error() => {
                untried.halve(jobs);
                continue;
            }
            Err(error) => {
                fail(&mut answered, &jobs, &error);
                continue;
            }
        };
        let now_ms = clock::wall_ms();
        for (at, mut found) in found.into_iter().enumerate() {
            if let Some(large) = found.take_if(|found| values && found.value.inline().is_none()) {
                if large_bytes > 0 && large_bytes + large.value_bytes > CALL_LARGE_BYTES_MAX {
                    let mut rest = jobs.split_off(at);
                    rest.extend(untried.all());
                    return Done { answered, rest: Some(read_call(keyspace, rest, values)) };
                }
                large_bytes += large.value_bytes;
                found = match keyspace.with_content(large, jobs[at].deadline).await {
                    Ok(found) => found,
                    Err(error) => {
                        answered.push(jobs[at].answered(error_reply(&error)));
                        continue;
                    }
                };
            }
            answered.push(jobs[at].answered(jobs[at].work.answer.reply(found, now_ms)));
        }
    }
    answered.into()
}

fn fail<W>(answered: &mut Vec<Answered>, jobs: &[Job<W>], error: &StoreError) {
    let reply: Reply = error_reply(error);
    answered.extend(jobs.iter().map(|job| job.answered(reply.clone())));
}

/// Parts of a call that are still to be tried, in order.
struct Untried<T>(Vec<Vec<T>>);

impl<T> Untried<T> {
    fn new(whole: Vec<T>) -> Self {
        Self(vec![whole])
    }

    fn next(&mut self) -> Option<Vec<T>> {
        self.0.pop()
    }

    /// All that is left, in order.
    fn all(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.0).into_iter().rev().flatten()
    }

    /// Tries this part again as two halves.
    fn halve(&mut self, mut part: Vec<T>) {
        let second = part.split_off(part.len() / 2);
        self.0.push(second);
        self.0.push(part);
    }
}

/// Groups items by shard, keeping their order. Without a shard map they stay together, and the call reports
/// the error.
pub(super) fn by_shard<T>(keyspace: &Keyspace, items: Vec<T>, key: impl Fn(&T) -> &Bytes) -> Vec<Vec<T>> {
    if items.len() <= 1 {
        return if items.is_empty() { Vec::new() } else { vec![items] };
    }
    match keyspace.shards_of(items.iter().map(key)) {
        Ok(shards) => group_by_label(items, &shards),
        Err(_) => vec![items],
    }
}

/// Groups items by the label of each, keeping their order.
fn group_by_label<T>(items: Vec<T>, labels: &[impl PartialEq + Copy]) -> Vec<Vec<T>> {
    let mut groups: Vec<(_, Vec<T>)> = Vec::new();
    for (item, label) in items.into_iter().zip(labels.iter().copied()) {
        match groups.iter_mut().find(|(of, _)| *of == label) {
            Some((_, group)) => group.push(item),
            None => groups.push((label, vec![item])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Splits items into groups, in order, whose costs sum up to at most the two limits. A single item may exceed
/// them.
fn split<T>(items: Vec<T>, cost: impl Fn(&T) -> (usize, usize), first_max: usize, second_max: usize) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let (mut first, mut second) = (0, 0);
    for item in items {
        let (item_first, item_second) = cost(&item);
        let fits = first + item_first <= first_max && second + item_second <= second_max;
        match groups.last_mut().filter(|_| fits) {
            Some(group) => group.push(item),
            None => {
                (first, second) = (0, 0);
                groups.push(vec![item]);
            }
        }
        first += item_first;
        second += item_second;
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use flotilla_kv::{Action, OperationResult, Outcome, encode_outcome};
    use flotilla_types::Timestamp;

    use super::*;
    use crate::{Protocol, parse::testing::parsed, plan::Plan};

    fn keys(names: &[&str]) -> Vec<Bytes> {
        names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect()
    }

    #[test]
    fn items_are_grouped_in_order() {
        let by_letter = |items: Vec<Bytes>| {
            let letters: Vec<u8> = items.iter().map(|key| key[0]).collect();
            group_by_label(items, &letters)
        };
        let groups = by_letter(keys(&["a1", "b1", "a2", "c1", "b2"]));
        assert_eq!(groups, [keys(&["a1", "a2"]), keys(&["b1", "b2"]), keys(&["c1"])]);
        assert_eq!(by_letter(keys(&["a1", "a2"])), [keys(&["a1", "a2"])]);
        assert!(by_letter(keys(&[])).is_empty());
    }

    #[test]
    fn calls_are_split_at_either_limit_and_a_large_item_goes_alone() {
        let sizes = |sizes: &[usize]| split(sizes.to_vec(), |size| (1, *size), 3, 10);
        assert_eq!(sizes(&[1, 1, 1, 1]), [vec![1, 1, 1], vec![1]]);
        assert_eq!(sizes(&[5, 5, 1, 99, 1]), [vec![5, 5], vec![1], vec![99], vec![1]]);
    }

    fn job(ordinal: u64, line: &str) -> Job<Write> {
        match Plan::of(parsed(line).unwrap(), 0) {
            Ok(Plan::Write(work)) => Job { ordinal, protocol: Protocol::Resp2, deadline: Instant::now(), work },
            other => panic!("{other:?}"),
        }
    }

    /// The largest result that each kind of write can have.
    fn largest(write: &Write) -> OperationResult {
        let version = Timestamp(u64::MAX);
        match &write.operation.action {
            Action::Put { return_old: false, .. } if write.operation.condition.is_none() => {
                OperationResult::Written { version: Timestamp(u64::MAX - 1), old: None, existed: true, number: 0 }
            }
            Action::Put { .. } => OperationResult::Skipped { version: Some(version), old: None },
            Action::Delete { .. } => OperationResult::Deleted { version, old: None },
            Action::Add { .. } => written(i64::MIN),
            Action::Append { .. } => written(4 << 20),
            Action::Expire { .. } => written(1),
        }
    }

    fn written(number: i64) -> OperationResult {
        OperationResult::Written { version: Timestamp(u64::MAX - 1), old: None, existed: true, number }
    }

    #[test]
    fn the_outcome_of_a_shared_call_is_small_enough_to_be_remembered() {
        for line in ["SET k v", "SETNX k v", "DEL k", "INCR k", "APPEND k v", "EXPIRE k 5"] {
            let chains = (0..40).map(|ordinal| Chain::new(job(ordinal, line))).collect();
            let calls = split(chains, Chain::cost, CALL_RESULT_BYTES_MAX, CALL_BYTES_MAX);
            assert!(calls.iter().any(|call| call.len() > 1), "{line} never shares a call");
            for call in calls {
                let results = call.iter().map(|chain| largest(&chain.jobs[0].work)).collect();
                let outcome = Outcome::Done { results, timestamp: Timestamp(u64::MAX - 1) };
                assert!(encode_outcome(&outcome).len() <= OUTCOME_BYTES_MAX, "{line}");
            }
        }
    }

    #[test]
    fn consecutive_writes_of_one_key_stay_in_one_call() {
        let mut chain = Chain::new(job(0, "INCR k"));
        for ordinal in 1..CHAIN_WRITES_MAX as u64 {
            let next = job(ordinal, "INCR k");
            assert!(chain.accepts(&next.work));
            chain.push(next);
        }
        assert!(!chain.accepts(&job(0, "INCR k").work));
        let calls =
            split(vec![chain, Chain::new(job(0, "SET l v"))], Chain::cost, CALL_RESULT_BYTES_MAX, CALL_BYTES_MAX);
        assert_eq!(calls.iter().map(|call| call[0].jobs.len()).collect::<Vec<_>>(), [CHAIN_WRITES_MAX, 1]);
    }

    #[test]
    fn a_refused_call_is_tried_in_halves_in_order_until_the_request_at_fault_is_alone() {
        let mut untried = Untried::new((0..7).collect());
        let (mut done, mut refused) = (Vec::new(), Vec::new());
        while let Some(part) = untried.next() {
            match part.contains(&4) {
                true if part.len() > 1 => untried.halve(part),
                true => refused.extend(part),
                false => {
                    assert_eq!(refused.is_empty(), part[0] < 4);
                    done.extend(part);
                }
            }
        }
        assert_eq!((done, refused), (vec![0, 1, 2, 3, 5, 6], vec![4]));
    }
}
