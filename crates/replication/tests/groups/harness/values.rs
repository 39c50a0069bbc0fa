//! Large values: how tests store and compare them.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_replication::{Answer, CommandRefs, Input, Request};
use flotilla_storage::{StateEngine as _, conformance::Referring};
use flotilla_types::{ClusterVersion, Holder, NodeId, Timestamp};
use flotilla_values::{Chunking, Finished, Reader, Step, ValueRef, cut};

use super::{SHARD, World};

impl World {
    /// Stores a value on a node, as its gateway does. Returns its reference.
    pub(crate) fn upload(&mut self, node: NodeId, content: &[u8]) -> ValueRef {
        let engine = self.nodes[&node].engine.clone();
        let Finished { value, objects } = cut(content, Chunking::new(1 << 10, 2 << 10, 4 << 10).unwrap()).unwrap();
        engine.hold(upload_of(&value), &value.refs().ids().collect::<Vec<_>>());
        for object in objects {
            let children: Vec<_> = object.children().collect();
            engine.import(object.id, object.bytes, &children).unwrap();
        }
        engine.sync().unwrap();
        value
    }

    /// Ends an upload.
    pub(crate) fn end_upload(&mut self, node: NodeId, value: &ValueRef) {
        self.nodes[&node].engine.hold(upload_of(value), &[]);
    }

    /// Proposes a command at a node; the answer appears in `answers` under the returned id.
    pub(crate) fn propose(&mut self, at: NodeId, payload: Bytes, refs: CommandRefs, timeout_ms: u64) -> u64 {
        let reply = self.next_attempt();
        let deadline_ms = self.now_ms() + timeout_ms;
        let after = Timestamp::ZERO;
        let request = Request { shard: SHARD, range_epoch: None, after, payload, refs, deadline_ms, reply };
        self.input(at, Input::Propose(request));
        reply
    }

    /// Waits for the answer to a request.
    pub(crate) fn wait_for(&mut self, request: u64) -> Answer {
        self.run_until(30_000, "an answer", |world| world.answers.contains_key(&request));
        self.answers.remove(&request).expect("it is there")
    }

    /// Raises the cluster version on all nodes that run.
    pub(crate) fn raise(&mut self, version: ClusterVersion) {
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.input(node, Input::ClusterVersion(version));
        }
    }

    /// The values that a replica on a node has, by their keys, read whole from its own objects. Every object must
    /// be durable there.
    pub(crate) fn values_on(&self, node: NodeId) -> BTreeMap<Bytes, Vec<u8>> {
        let node = &self.nodes[&node];
        let Some(replica) = node.status().iter().map(|replica| replica.replica).max() else { return BTreeMap::new() };
        let records = node.engine.reader(replica).unwrap().scan(&Referring::range(), usize::MAX, usize::MAX).unwrap();
        let read = |(key, record): (Bytes, Bytes)| {
            let value = ValueRef::decode(&record).unwrap();
            assert_eq!(node.engine.not_durable(&value.refs().ids().collect::<Vec<_>>()), [], "{}: {key:?}", node.id);
            let mut content = Vec::new();
            let mut reader = Reader::new(&value, 0..value.bytes()).unwrap();
            while let Some(step) = reader.step() {
                match step {
                    Step::List(need) => reader.supply(&node.engine.object(need.id).unwrap()).unwrap(),
                    Step::Chunk(slice) => {
                        content.extend_from_slice(&slice.of(&node.engine.object(slice.need.id).unwrap()).unwrap());
                    }
                }
            }
            (key, content)
        };
        records.into_iter().map(read).collect()
    }
}

fn upload_of(value: &ValueRef) -> Holder {
    let [a, b, c, d, ..] = value.etag().0;
    Holder::Upload(u64::from(u32::from_be_bytes([a, b, c, d])))
}
