//! Large values of the workload: some node stores one, as its gateway would, and a leader is told what it needs.
//!
//! Each key is only ever written. So a key for which a write was acknowledged has a value at the end, one that was
//! written to it, and every replica has all of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_kv::{
    Action, Command, Content, Expiry, KvMachine, Limits, Operation, Otherwise, Outcome, Query, Value, decode_outcome,
    encode_command, encode_query,
};
use flotilla_replication::{Answer, CommandRefs, Input, ReplicaStatus, Request, Role};
use flotilla_storage::{EngineError, ReadContext, StateEngine as _, StateMachine as _};
use flotilla_types::{Holder, NodeId, ShardDescriptor, ShardId, Timestamp};
use flotilla_values::{Chunking, Finished, Reader, Step, ValueRef, cut};
use rand::{RngExt as _, seq::IndexedRandom as _};

use crate::{
    clock::WALL_START_MS,
    disk::Disk,
    node::Node,
    world::{Event, World},
};

/// Keys of each shard.
const KEYS: u64 = 8;
/// Values up to so many bytes are in the record.
const INLINE_BYTES_MAX: usize = 300;
/// How long a value that expires lasts: longer than any run, and than clocks jump.
const FAR_MS: u64 = 360_000_000;
/// Milliseconds that a leader has for a value.
const DEADLINE_MS: u64 = 4_000;
/// Microseconds after which an upload is let go of, answered or not.
const UPLOAD_US: u64 = 8_000_000;

/// The values so far.
#[derive(Default)]
pub(crate) struct Values {
    /// Those that may have been written, by key, with their contents.
    written: BTreeMap<Bytes, Vec<Vec<u8>>>,
    /// Keys for which a write was acknowledged.
    acknowledged: BTreeMap<Bytes, u64>,
    /// Writes without an answer.
    waiting: BTreeMap<u64, Bytes>,
    uploads: u64,
    stopped: bool,
}

impl World {
    pub(crate) fn schedule_value(&mut self) {
        if let Some(pause_us_max) = self.plan.value_pause_us_max {
            let delay_us = self.rng.random_range(1_000..pause_us_max);
            self.schedule(delay_us, Event::Value);
        }
    }

    /// Writes no more values: the load is over.
    pub(crate) fn stop_values(&mut self) {
        self.values.stopped = true;
    }

    /// Stores a value on some node and proposes it where its shard is led.
    pub(crate) fn write_value(&mut self) {
        if self.values.stopped {
            return;
        }
        self.schedule_value();
        let leads = |node: &Node| {
            let led = node.status().into_iter().filter(|replica| {
                replica.shard != ShardId::META && replica.group.as_ref().is_some_and(|group| group.role == Role::Leader)
            });
            led.map(|replica| (node.id, replica.descriptor)).collect::<Vec<_>>()
        };
        let running: Vec<_> = self.nodes.values().filter(|node| node.running.is_some() && !node.retired).collect();
        let leaders: Vec<_> = running.iter().flat_map(|node| leads(node)).collect();
        let gateways: Vec<_> = running.iter().map(|node| node.id).collect();
        let Some((leader, descriptor)) = leaders.choose(&mut self.rng).cloned() else { return };
        let shard = descriptor.shard;
        let Some(gateway) = gateways.choose(&mut self.rng).copied() else { return };
        let len = *[0, 300, 5_000, 5_000, 20_000, 140_000].choose(&mut self.rng).unwrap_or(&300);
        // What a link carries in a tenth of a second: replicas that fetch for longer than clients wait are no fault.
        let len = self.plan.object_bytes_per_ms.map_or(len, |rate| len.min(usize::try_from(rate * 100).unwrap_or(len)));
        let key = key_of(&descriptor, self.rng.random_range(0..KEYS));
        let content: Vec<u8> = (0..len).map(|_| self.rng.random()).collect();
        self.values.uploads += 1;
        let number = self.values.uploads;
        let mut stored = None;
        self.with_node(gateway, |_, node, running| match store(&node.disk, number, &content) {
            Ok(value) => stored = Some(value),
            Err(error) => {
                node.disk.hold(Holder::Upload(number), &[]);
                running.store_failed(&error);
            }
        });
        let Some(value) = stored else { return };
        let value = if content.len() > INLINE_BYTES_MAX {
            Value { content: Content::Large(value), media_type: Bytes::from_static(b"image/png") }
        } else {
            content.clone().into()
        };
        let refs = value.refs();
        let mut actions = vec![Action::Put { value, expiry: Expiry::Never, return_old: false }];
        if self.rng.random_bool(0.2) {
            // Writes the record again, which its entry does not refer to any more.
            let at_ms = WALL_START_MS + self.now_ms() + FAR_MS;
            actions.push(Action::Expire { expiry: Expiry::At(at_ms) });
        }
        let operation = |action| Operation { key: key.clone(), condition: None, otherwise: Otherwise::Refuse, action };
        let operations = actions.into_iter().map(operation).collect();
        let payload = encode_command(&Command { operations, ..Command::empty() });
        let refs = CommandRefs::new(refs, gateway);
        self.schedule(UPLOAD_US, Event::UploadEnds { node: gateway, number });
        self.values.written.entry(key.clone()).or_default().push(content);
        self.values.waiting.insert(number, key.clone());
        self.with_node(leader, |world, node, running| {
            let deadline_ms = node.clock.mono_ms(world.now_us) + DEADLINE_MS;
            let reply = running.value_waiter(number);
            let request =
                Request { shard, range_epoch: None, after: Timestamp::ZERO, payload, refs, deadline_ms, reply };
            world.enqueue(node, running, Input::Propose(request));
        });
    }

    pub(crate) fn value_answered(&mut self, number: u64, answer: &Answer) {
        if let Some(key) = self.values.waiting.remove(&number)
            && answer.as_ref().is_ok_and(|answered| is_done(&answered.payload))
        {
            *self.values.acknowledged.entry(key).or_default() += 1;
            self.checks.counts.values += 1;
        }
    }

    pub(crate) fn end_upload(&mut self, node: NodeId, number: u64) {
        if let Some(node) = self.nodes.get(&node) {
            node.disk.hold(Holder::Upload(number), &[]);
        }
    }

    /// Every replica has all of each value, and what was acknowledged is there.
    pub(crate) fn check_values(&self) {
        for node in self.nodes.values().filter(|node| node.running.is_some() && !node.retired) {
            for replica in node.status().into_iter().filter(|replica| replica.shard != ShardId::META) {
                let written = self.values.written.iter().filter(|(key, _)| replica.descriptor.range.contains(key));
                for (key, contents) in written {
                    let Some(value) = get(&node.disk, &replica, key) else {
                        let acknowledged = self.values.acknowledged.contains_key(key);
                        assert!(!acknowledged, "{} of {} lost {key:?}", replica.replica, node.id);
                        continue;
                    };
                    if !replica.damaged {
                        let content = read(&node.disk, value);
                        let content = content.unwrap_or_else(|error| panic!("{key:?} on {}: {error}", node.id));
                        assert!(contents.contains(&content), "{key:?} on {} was never written", node.id);
                    }
                }
            }
        }
    }
}

/// A key that no client uses, perhaps none of this shard.
fn key_of(descriptor: &ShardDescriptor, number: u64) -> Bytes {
    [&descriptor.range.start[..], format!("~value {number}").as_bytes()].concat().into()
}

fn is_done(outcome: &Bytes) -> bool {
    match decode_outcome(outcome.clone()) {
        Ok(Outcome::Done { .. }) => true,
        Ok(Outcome::Refused(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// A value of a replica at rest.
fn get(disk: &Disk, replica: &ReplicaStatus, key: &Bytes) -> Option<Value> {
    let reader = disk.reader(replica.replica).expect("a replica at rest");
    let context = ReadContext { descriptor: &replica.descriptor, now: Timestamp::ZERO };
    let query = encode_query(&Query::Get { keys: vec![key.clone()], values: true });
    let answer = KvMachine::new(Limits::default()).read(&context, &query, &*reader).expect("a disk at rest");
    match flotilla_kv::decode_answer(answer) {
        Ok(flotilla_kv::Answer::Records(mut records)) => records.pop().flatten().map(|record| record.value),
        other => panic!("{other:?} is no record"),
    }
}

/// Stores a value, as a gateway does, held as an upload.
fn store(disk: &Disk, number: u64, content: &[u8]) -> Result<ValueRef, EngineError> {
    let chunking = Chunking::new(1 << 10, 2 << 10, 4 << 10).expect("valid bounds");
    let Finished { value, objects } = cut(content, chunking).expect("a short value");
    disk.hold(Holder::Upload(number), &value.refs().ids().collect::<Vec<_>>());
    for object in objects {
        let children: Vec<_> = object.children().collect();
        disk.import(object.id, object.bytes, &children)?;
    }
    disk.sync()?;
    Ok(value)
}

/// The content of a value.
fn read(disk: &Disk, value: Value) -> Result<Vec<u8>, EngineError> {
    let value = match value.content {
        Content::Inline(bytes) => return Ok(bytes.into()),
        Content::Large(value) => value,
    };
    let mut content = Vec::new();
    let mut reader = Reader::new(&value, 0..value.bytes()).expect("the whole value");
    while let Some(step) = reader.step() {
        match step {
            Step::List(need) => reader.supply(&disk.object(need.id)?).expect("the list"),
            Step::Chunk(slice) => {
                content.extend_from_slice(&slice.of(&disk.object(slice.need.id)?).expect("the chunk"));
            }
        }
    }
    Ok(content)
}
