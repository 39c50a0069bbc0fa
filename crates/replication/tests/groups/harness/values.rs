//! Large values: a state machine whose records refer to objects, and how tests store and compare them.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flotilla_replication::{Answer, CommandRefs, Input, Request};
use flotilla_storage::{
    ApplyContext, DeferredRead, MachineError, ReadContext, StateEngine as _, StateMachine, StateReader, Upcoming,
    Value, WriteSet,
};
use flotilla_types::{
    Bucket, ByteOrder, ClusterVersion, CollectionId, Holder, KeyRange, NodeId, ObjectId, RecordKey, Refs, Timestamp,
};
use flotilla_values::{Chunking, Cutter, Finished, Object, Reader, Step, ValueRef};

use super::{SHARD, World};

/// After the version byte: no command of the key-value machine begins so.
const PUT: u8 = 0xee;
const DELETE: u8 = 0xed;
/// Where these records are.
const COLLECTION: CollectionId = CollectionId(9_999);

/// A machine that writes and deletes records which refer to objects, and leaves other commands to another one.
pub(super) struct Referring<M>(M);

impl<M> Referring<M> {
    pub(super) fn over(machine: M) -> Self {
        Self(machine)
    }
}

/// A command that writes a record with this value and these references.
pub(crate) fn put(key: &[u8], value: &[u8], refs: &Refs) -> Bytes {
    let mut command = BytesMut::new();
    command.put_slice(&[ClusterVersion::VALUE_REFS.0 as u8, PUT, key.len() as u8]);
    command.put_slice(key);
    command.put_u8(u8::from(!refs.is_empty()));
    if !refs.is_empty() {
        refs.encode(&mut command, ByteOrder::Big);
    }
    command.put_slice(value);
    command.freeze()
}

/// A command that deletes a record.
pub(crate) fn delete(key: &[u8]) -> Bytes {
    [&[ClusterVersion::VALUE_REFS.0 as u8, DELETE, key.len() as u8], key].concat().into()
}

fn record_key(key: &[u8]) -> Bytes {
    RecordKey::new(COLLECTION, Bucket(0), key).into_bytes()
}

fn is_ours(command: &Bytes) -> bool {
    matches!(command.get(1), Some(&(PUT | DELETE)))
}

fn apply(mut command: Bytes, writes: &mut WriteSet) {
    command.advance(1);
    let is_put = command.get_u8() == PUT;
    let length = usize::from(command.get_u8());
    let key = record_key(&command.split_to(length));
    let value = is_put.then(|| {
        let has_refs = command.get_u8() == 1;
        let refs = has_refs.then(|| Refs::decode(&mut command, ByteOrder::Big).expect("its own command"));
        let refs = refs.unwrap_or_default();
        Value::new(command, refs)
    });
    writes.push((key, value));
}

impl<M: StateMachine> StateMachine for Referring<M> {
    fn apply(
        &mut self,
        context: &ApplyContext<'_>,
        commands: &[Bytes],
        records: &dyn StateReader,
        writes: &mut WriteSet,
    ) -> Result<Vec<Bytes>, MachineError> {
        let (ours, others): (Vec<_>, Vec<_>) = commands.iter().cloned().partition(is_ours);
        let mut outcomes = self.0.apply(context, &others, records, writes)?.into_iter();
        ours.into_iter().for_each(|command| apply(command, writes));
        let outcome = |command| if is_ours(command) { Bytes::new() } else { outcomes.next().expect("one for each") };
        Ok(commands.iter().map(outcome).collect())
    }

    fn read(&self, context: &ReadContext<'_>, query: &[u8], records: &dyn StateReader) -> Result<Bytes, MachineError> {
        self.0.read(context, query, records)
    }

    fn keys_read(&self, commands: &[Bytes], keys: &mut Vec<Bytes>) {
        let others: Vec<_> = commands.iter().filter(|command| !is_ours(command)).cloned().collect();
        self.0.keys_read(&others, keys);
    }

    fn scans(&self, entries: &Upcoming) -> bool {
        self.0.scans(entries)
    }

    fn deferred(&self) -> Option<Arc<dyn DeferredRead>> {
        self.0.deferred()
    }

    fn version(&self) -> Option<ClusterVersion> {
        self.0.version()
    }

    fn upkeep_due_ms(&self) -> Option<u64> {
        self.0.upkeep_due_ms()
    }

    fn system(&self) -> Bytes {
        self.0.system()
    }

    fn restore(&mut self, system: &[u8], records: &dyn StateReader) -> Result<(), MachineError> {
        self.0.restore(system, records)
    }
}

impl World {
    /// Stores a value on a node, as its gateway does. Returns its reference.
    pub(crate) fn upload(&mut self, node: NodeId, content: &[u8]) -> ValueRef {
        let engine = self.nodes[&node].engine.clone();
        let mut cutter = Cutter::new(Chunking::new(1 << 10, 2 << 10, 4 << 10).unwrap(), content.len() as u64);
        let (mut rest, mut objects) = (content, Vec::new());
        while let Some(object) = cutter.push(&mut rest).unwrap() {
            objects.push(object);
        }
        let Finished { value, objects: last } = cutter.finish();
        objects.extend(last);
        engine.hold(upload_of(&value), &value.refs().ids().collect::<Vec<_>>());
        let lists: BTreeMap<ObjectId, Vec<ObjectId>> = lists_of(&value, &objects);
        for Object { id, bytes, .. } in objects {
            engine.import(id, bytes, lists.get(&id).map_or(&[], Vec::as_slice)).unwrap();
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
        let range = KeyRange::of_buckets(COLLECTION, Bucket(0), Bucket(0));
        let records = node.engine.reader(replica).unwrap().scan(&range, usize::MAX, usize::MAX).unwrap();
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

    /// The key under which [`values_on`](Self::values_on) has a record.
    pub(crate) fn value_key(key: &[u8]) -> Bytes {
        record_key(key)
    }
}

fn upload_of(value: &ValueRef) -> Holder {
    let [a, b, c, d, ..] = value.etag().0;
    Holder::Upload(u64::from(u32::from_be_bytes([a, b, c, d])))
}

/// The children of the lists of a value.
fn lists_of(value: &ValueRef, objects: &[Object]) -> BTreeMap<ObjectId, Vec<ObjectId>> {
    let by_id: BTreeMap<_, _> = objects.iter().map(|object| (object.id, object.bytes.clone())).collect();
    let mut queue = value.refs().to_vec();
    let mut lists = BTreeMap::new();
    while let Some(reference) = queue.pop() {
        if reference.height > 0 {
            let below = flotilla_values::list_refs(&reference, &by_id[&reference.id]).unwrap();
            lists.insert(reference.id, below.iter().map(|below| below.id).collect());
            queue.extend(below);
        }
    }
    lists
}
