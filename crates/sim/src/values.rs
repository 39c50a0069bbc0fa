//! Large values of the workload: some node stores one, as its gateway would, and a leader is told what it needs.
//!
//! Each key is only ever written. So a key for which a write was acknowledged has a value at the end, one that was
//! written to it, and every replica has all of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_replication::{Answer, CommandRefs, Input, Request, Role};
use flotilla_storage::{EngineError, StateEngine as _, conformance::Referring};
use flotilla_types::{Holder, NodeId, ObjectId, ShardId, Timestamp};
use flotilla_values::{Chunking, Cutter, Finished, Object, Reader, Step, ValueRef, list_refs};
use rand::{RngExt as _, seq::IndexedRandom as _};

use crate::{
    disk::Disk,
    node::Node,
    world::{Event, World},
};

/// Keys of each shard.
const KEYS: u64 = 8;
/// Milliseconds that a leader has for a value.
const DEADLINE_MS: u64 = 4_000;
/// Microseconds after which an upload is let go of, answered or not.
const UPLOAD_US: u64 = 8_000_000;

/// The values so far.
#[derive(Default)]
pub(crate) struct Values {
    /// Those that may have been written, by shard and key, with their contents.
    written: BTreeMap<(ShardId, Bytes), Vec<Vec<u8>>>,
    /// Keys for which a write was acknowledged.
    acknowledged: BTreeMap<(ShardId, Bytes), u64>,
    /// Writes without an answer.
    waiting: BTreeMap<u64, (ShardId, Bytes)>,
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
            led.map(|replica| (node.id, replica.shard)).collect::<Vec<_>>()
        };
        let running: Vec<_> = self.nodes.values().filter(|node| node.running.is_some() && !node.retired).collect();
        let leaders: Vec<_> = running.iter().flat_map(|node| leads(node)).collect();
        let gateways: Vec<_> = running.iter().map(|node| node.id).collect();
        let Some((leader, shard)) = leaders.choose(&mut self.rng).copied() else { return };
        let Some(gateway) = gateways.choose(&mut self.rng).copied() else { return };
        let len = *[0, 300, 5_000, 5_000, 20_000, 140_000].choose(&mut self.rng).unwrap_or(&300);
        // What a link carries in a tenth of a second: replicas that fetch for longer than clients wait are no fault.
        let len = self.plan.object_bytes_per_ms.map_or(len, |rate| len.min(usize::try_from(rate * 100).unwrap_or(len)));
        let key = Bytes::from(format!("value {}", self.rng.random_range(0..KEYS)));
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
        self.schedule(UPLOAD_US, Event::UploadEnds { node: gateway, number });
        self.values.written.entry((shard, key.clone())).or_default().push(content);
        self.values.waiting.insert(number, (shard, key.clone()));
        let payload = Referring::put(&key, &value.encode(), &value.refs());
        let refs = CommandRefs::new(value.refs(), gateway);
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
            && answer.is_ok()
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
                let reader = node.disk.reader(replica.replica).expect("a replica at rest");
                let found = reader.scan(&Referring::range(), usize::MAX, usize::MAX).expect("a disk at rest");
                let found: BTreeMap<_, _> = found.into_iter().collect();
                for ((shard, key), contents) in &self.values.written {
                    let Some(record) = found.get(&Referring::record_key(key)) else {
                        let acknowledged =
                            *shard == replica.shard && self.values.acknowledged.contains_key(&(*shard, key.clone()));
                        assert!(!acknowledged, "{} of {} lost {key:?}", replica.replica, node.id);
                        continue;
                    };
                    if *shard == replica.shard && !replica.damaged {
                        let content = read(&node.disk, record);
                        let content = content.unwrap_or_else(|error| panic!("{key:?} on {}: {error}", node.id));
                        assert!(contents.contains(&content), "{key:?} on {} was never written", node.id);
                    }
                }
            }
        }
    }
}

/// Stores a value, as a gateway does, held as an upload.
fn store(disk: &Disk, number: u64, content: &[u8]) -> Result<ValueRef, EngineError> {
    let chunking = Chunking::new(1 << 10, 2 << 10, 4 << 10).expect("valid bounds");
    let mut cutter = Cutter::new(chunking, content.len() as u64);
    let (mut rest, mut objects) = (content, Vec::new());
    while let Some(object) = cutter.push(&mut rest).expect("as long as it was said") {
        objects.push(object);
    }
    let Finished { value, objects: last } = cutter.finish();
    objects.extend(last);
    let by_id: BTreeMap<ObjectId, Bytes> = objects.iter().map(|object| (object.id, object.bytes.clone())).collect();
    let (mut queue, mut children) = (value.refs().to_vec(), BTreeMap::<ObjectId, Vec<ObjectId>>::new());
    while let Some(reference) = queue.pop() {
        if reference.height > 0 {
            let below = list_refs(&reference, &by_id[&reference.id]).expect("its own list");
            children.insert(reference.id, below.iter().map(|below| below.id).collect());
            queue.extend(below);
        }
    }
    disk.hold(Holder::Upload(number), &value.refs().ids().collect::<Vec<_>>());
    for Object { id, bytes, .. } in objects {
        disk.import(id, bytes, children.get(&id).map_or(&[], Vec::as_slice))?;
    }
    disk.sync()?;
    Ok(value)
}

/// The content of a value.
fn read(disk: &Disk, record: &[u8]) -> Result<Vec<u8>, EngineError> {
    let value = ValueRef::decode(record).expect("a record is what was written");
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
