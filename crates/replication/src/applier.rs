//! The state machines of a node: applies committed entries, answers queries, closes memtables.
//!
//! Synchronous and deterministic: the host runs it on one thread of its own, a simulator runs it in line. Loading
//! records may take long, so it is asked for as a [`Load`] and finished by [`Applier::loaded`]; meanwhile the tasks
//! of that replica wait in order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_storage::{ApplyContext, EngineError, MachineError, ReadContext, StateEngine, StateMachine, StateReader};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, LogIndex, Position, ReplicaId, ShardDescriptor, ShardId, Timestamp,
};

use crate::{Answer, ApplyTask, Batch, Input, RequestError};

/// Tasks that may wait for a load before reads are refused.
const WAITING_MAX: usize = 4_096;

/// Makes the state machine of a shard.
pub type MachineFactory = Box<dyn Fn(ShardId) -> Box<dyn StateMachine> + Send>;

/// Records that must be loaded before a replica goes on.
#[derive(Debug, Clone)]
pub struct Load {
    /// Whose.
    pub replica: ReplicaId,
    /// From where.
    pub checkpoint: Checkpoint,
    /// Whether the checkpoint replaces what the replica holds.
    pub replaces: bool,
}

impl Load {
    /// Loads; slow. The engine claims what it installed, so that the pins of the pull can go.
    pub fn run(&self, engine: &dyn StateEngine) -> Result<(), EngineError> {
        if self.replaces {
            let installed = engine.install(self.replica, &self.checkpoint);
            engine.release(&self.checkpoint.objects().collect::<Vec<_>>());
            installed
        } else {
            engine.open(self.replica, &self.checkpoint)
        }
    }
}

/// What a task led to.
#[derive(Debug)]
pub struct Applied<T> {
    /// For the core.
    pub inputs: Vec<Input<T>>,
    /// Answers.
    pub replies: Vec<(T, Answer)>,
    /// To be run elsewhere and reported to [`Applier::loaded`].
    pub loads: Vec<Load>,
    /// The view failed: nothing is lost, but only a restart rebuilds it. The node must end.
    pub fatal: Option<MachineError>,
}

impl<T> Default for Applied<T> {
    fn default() -> Self {
        Self { inputs: Vec::new(), replies: Vec::new(), loads: Vec::new(), fatal: None }
    }
}

#[expect(clippy::large_enum_variant, reason = "there is one for each replica, and it is seldom loading")]
enum Slot<T> {
    Loading { shard: ShardId, checkpoint: Checkpoint, waiting: VecDeque<ApplyTask<T>> },
    Ready(Box<Ready>),
    Broken,
}

struct Ready {
    shard: ShardId,
    machine: Box<dyn StateMachine>,
    reader: Arc<dyn StateReader>,
    position: Position,
    clock: Timestamp,
}

/// What a replica holds.
pub struct Held {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// The state machine's own state after that entry.
    pub system: Bytes,
    /// Reads its records, and goes on to see later ones.
    pub records: Arc<dyn StateReader>,
}

/// The state machines of a node.
pub struct Applier<T> {
    engine: Arc<dyn StateEngine>,
    machines: MachineFactory,
    slots: BTreeMap<ReplicaId, Slot<T>>,
}

impl<T> Applier<T> {
    /// No replicas yet.
    pub fn new(engine: Arc<dyn StateEngine>, machines: MachineFactory) -> Self {
        Self { engine, machines, slots: BTreeMap::new() }
    }

    /// Runs one task. `wall_ms` is Unix milliseconds.
    pub fn run(&mut self, wall_ms: u64, task: ApplyTask<T>, out: &mut Applied<T>) {
        let replica = replica_of(&task);
        match (self.slots.get_mut(&replica), task) {
            (_, ApplyTask::Close { .. }) => {
                if let Some(Slot::Loading { waiting, .. }) = self.slots.remove(&replica) {
                    drop_tasks(waiting, out);
                }
                self.destroy(replica);
            }
            (slot, ApplyTask::Open { shard, checkpoint, replaces, .. }) => {
                // The core asks for one load at a time; tasks that waited for another one are older than this one.
                if let Some(Slot::Loading { waiting, .. }) = slot {
                    drop_tasks(std::mem::take(waiting), out);
                }
                if !replaces {
                    self.engine.claim(replica, &checkpoint);
                }
                out.loads.push(Load { replica, checkpoint: checkpoint.clone(), replaces });
                self.slots.insert(replica, Slot::Loading { shard, checkpoint, waiting: VecDeque::new() });
            }
            // Entries that wait are bounded by the core.
            (Some(Slot::Loading { waiting, .. }), ApplyTask::Read { queries, .. }) if waiting.len() >= WAITING_MAX => {
                out.replies.extend(queries.into_iter().map(|(_, reply)| (reply, Err(RequestError::Busy))));
            }
            (Some(Slot::Loading { waiting, .. }), task) => waiting.push_back(task),
            (Some(Slot::Ready(ready)), task) => {
                if !ready.run(replica, wall_ms, task, &*self.engine, out) {
                    self.slots.insert(replica, Slot::Broken);
                    out.inputs.push(Input::Broken { replica });
                }
            }
            (Some(Slot::Broken) | None, task) => drop_tasks([task], out),
        }
    }

    /// A load is done: restores the state machine and runs what waited.
    pub fn loaded(&mut self, wall_ms: u64, load: &Load, result: Result<(), EngineError>, out: &mut Applied<T>) {
        let replica = load.replica;
        if !self.slots.contains_key(&replica) {
            // Closed while it was loaded: the engine must forget it once more.
            self.destroy(replica);
        }
        let Some(Slot::Loading { checkpoint, .. }) = self.slots.get(&replica) else { return };
        // A newer load is under way.
        if *checkpoint != load.checkpoint {
            return;
        }
        let Some(Slot::Loading { shard, checkpoint, waiting }) = self.slots.remove(&replica) else { return };
        let restored = result.map_err(MachineError::from).and_then(|()| self.restore(replica, shard, &checkpoint));
        match restored {
            Ok(ready) => {
                out.inputs.push(Input::Opened { replica, index: ready.position.index, clock: ready.clock });
                self.slots.insert(replica, Slot::Ready(Box::new(ready)));
                for task in waiting {
                    self.run(wall_ms, task, out);
                }
            }
            Err(error) => {
                tracing::error!(%replica, %shard, %error, "a replica's records cannot be loaded");
                drop_tasks(waiting, out);
                self.slots.insert(replica, Slot::Broken);
                out.inputs.push(Input::Broken { replica });
            }
        }
    }

    /// What a replica holds at the moment. `None` while it has nothing to show.
    pub fn look(&self, replica: ReplicaId) -> Option<Held> {
        match self.slots.get(&replica) {
            Some(Slot::Ready(ready)) => Some(Held {
                applied: ready.position.index,
                system: ready.machine.system(),
                records: ready.reader.clone(),
            }),
            _ => None,
        }
    }

    fn destroy(&self, replica: ReplicaId) {
        if let Err(error) = self.engine.destroy(replica) {
            tracing::warn!(%replica, %error, "records of a destroyed replica could not be removed");
        }
    }

    fn restore(&self, replica: ReplicaId, shard: ShardId, checkpoint: &Checkpoint) -> Result<Ready, MachineError> {
        let reader = self.engine.reader(replica)?;
        let (clock, system) = split_system(self.engine.system(checkpoint)?)?;
        let mut machine = (self.machines)(shard);
        machine.restore(&system, &*reader)?;
        Ok(Ready { shard, machine, reader, position: checkpoint.position.clone(), clock })
    }
}

impl Ready {
    /// Whether the replica can go on.
    fn run<T>(
        &mut self,
        replica: ReplicaId,
        wall_ms: u64,
        task: ApplyTask<T>,
        engine: &dyn StateEngine,
        out: &mut Applied<T>,
    ) -> bool {
        match task {
            ApplyTask::Apply { entries, conf, descriptor, waiters, .. } => {
                let applied = self.apply(replica, entries, conf, descriptor, waiters, engine, out);
                let Err(error) = applied else { return true };
                tracing::error!(%replica, shard = %self.shard, %error, "a replica cannot apply");
                if matches!(error, MachineError::Engine(EngineError::View(_))) {
                    out.fatal = Some(error);
                }
                false
            }
            ApplyTask::Read { queries, .. } => {
                let now = Timestamp::from_millis(wall_ms).max(self.clock);
                let context = ReadContext { descriptor: &self.position.descriptor, now };
                for (query, reply) in queries {
                    let answer = self.machine.read(&context, &query, &*self.reader);
                    let answer = answer.map_err(|error| {
                        tracing::error!(%replica, %error, "a read failed");
                        RequestError::Stopped
                    });
                    out.replies.push((reply, answer));
                }
                true
            }
            ApplyTask::Freeze { .. } => {
                let system = join_system(self.clock, &self.machine.system());
                let frozen = engine.freeze(replica, self.position.clone(), system);
                if let Err(error) = &frozen {
                    tracing::warn!(%replica, %error, "a memtable could not be closed");
                }
                out.inputs.push(Input::Frozen { replica, frozen: frozen.unwrap_or(false) });
                true
            }
            ApplyTask::Open { .. } | ApplyTask::Close { .. } => true,
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one task, taken apart once")]
    fn apply<T>(
        &mut self,
        replica: ReplicaId,
        entries: Vec<Entry>,
        conf: ConfState,
        descriptor: ShardDescriptor,
        waiters: Vec<(LogIndex, Vec<T>)>,
        engine: &dyn StateEngine,
        out: &mut Applied<T>,
    ) -> Result<(), MachineError> {
        let mut waiters: VecDeque<_> = waiters.into();
        let mut bytes = 0;
        let mut failure = None;
        for entry in entries {
            bytes += entry.size_bytes();
            if entry.index <= self.position.index {
                continue;
            }
            let outcomes = match self.apply_entry(replica, &entry, engine) {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            self.position.index = entry.index;
            self.position.term = entry.term;
            if waiters.front().is_some_and(|(index, _)| *index == entry.index)
                && let Some((_, replies)) = waiters.pop_front()
            {
                out.replies.extend(replies.into_iter().zip(outcomes.into_iter().map(Ok)));
            }
        }
        if let Some(error) = failure {
            let unknown = waiters.into_iter().flat_map(|(_, replies)| replies);
            out.replies.extend(unknown.map(|reply| (reply, Err(RequestError::Unknown))));
            return Err(error);
        }
        self.position.conf = conf;
        self.position.descriptor = descriptor;
        out.inputs.push(Input::Applied {
            replica,
            index: self.position.index,
            clock: self.clock,
            bytes,
            usage: engine.usage(replica),
        });
        Ok(())
    }

    fn apply_entry(
        &mut self,
        replica: ReplicaId,
        entry: &Entry,
        engine: &dyn StateEngine,
    ) -> Result<Vec<Bytes>, MachineError> {
        if entry.index != self.position.index.next() {
            return Err(MachineError::Corrupt("committed entries came with a gap"));
        }
        if entry.kind == EntryKind::ConfChange || entry.data.is_empty() {
            return Ok(Vec::new());
        }
        let batch = Batch::decode(entry.data.clone()).map_err(|_| MachineError::Corrupt("an entry is not a batch"))?;
        let context = ApplyContext {
            index: entry.index,
            term: entry.term,
            timestamp: batch.timestamp,
            descriptor: &self.position.descriptor,
        };
        let mut writes = Vec::new();
        let outcomes = self.machine.apply(&context, &batch.commands, &*self.reader, &mut writes)?;
        if outcomes.len() != batch.commands.len() {
            return Err(MachineError::Corrupt("the state machine did not answer each command"));
        }
        if !writes.is_empty() {
            engine.write(replica, writes, entry.index)?;
        }
        let last = batch.timestamp.plus((batch.commands.len() as u64).saturating_sub(1));
        self.clock = self.clock.max(last);
        Ok(outcomes)
    }
}

fn replica_of<T>(task: &ApplyTask<T>) -> ReplicaId {
    match task {
        ApplyTask::Open { replica, .. }
        | ApplyTask::Apply { replica, .. }
        | ApplyTask::Read { replica, .. }
        | ApplyTask::Freeze { replica }
        | ApplyTask::Close { replica } => *replica,
    }
}

/// Tasks that no state machine will run: whoever waits is told what is known.
fn drop_tasks<T>(tasks: impl IntoIterator<Item = ApplyTask<T>>, out: &mut Applied<T>) {
    for task in tasks {
        match task {
            ApplyTask::Apply { waiters, .. } => {
                let waiters = waiters.into_iter().flat_map(|(_, replies)| replies);
                out.replies.extend(waiters.map(|reply| (reply, Err(RequestError::Unknown))));
            }
            ApplyTask::Read { queries, .. } => {
                out.replies.extend(queries.into_iter().map(|(_, reply)| (reply, Err(RequestError::Stopped))));
            }
            ApplyTask::Freeze { replica } => out.inputs.push(Input::Frozen { replica, frozen: false }),
            ApplyTask::Open { .. } | ApplyTask::Close { .. } => {}
        }
    }
}

/// A checkpoint's system state is the host's clock (u64, big-endian), then the machine's own.
fn join_system(clock: Timestamp, machine: &[u8]) -> Bytes {
    let mut system = BytesMut::with_capacity(8 + machine.len());
    system.put_u64(clock.0);
    system.put_slice(machine);
    system.freeze()
}

fn split_system(mut system: Bytes) -> Result<(Timestamp, Bytes), MachineError> {
    if system.is_empty() {
        return Ok((Timestamp::ZERO, system));
    }
    let clock = system.try_get_u64().map_err(|_| MachineError::Corrupt("the system state is cut short"))?;
    if Timestamp(clock) >= Timestamp::END {
        return Err(MachineError::Corrupt("the system state is of no time"));
    }
    Ok((Timestamp(clock), system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_state_of_no_time_is_damaged() {
        let split = |clock| split_system(join_system(clock, b"machine"));
        assert!(matches!(split(Timestamp(7)), Ok((Timestamp(7), machine)) if &machine[..] == b"machine"));
        assert!(matches!(split(Timestamp(u64::MAX)), Err(MachineError::Corrupt(_))));
        assert!(split_system(Bytes::from_static(b"short")).is_err());
    }
}
