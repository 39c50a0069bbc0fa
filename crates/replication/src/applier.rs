//! The state machines of a node: applies committed entries, answers queries, freezes memtables.
//!
//! Synchronous and deterministic: the host runs it on its own thread, a simulator inline. Loading records may
//! take long, so it is emitted as a [`Load`] and completed by [`Applier::loaded`]; meanwhile the tasks of
//! that replica wait in order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_storage::{
    ApplyContext, EngineError, MachineError, ReadContext, Remedy, StateEngine, StateMachine, StateReader, remedy,
};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, LogIndex, Position, ReplicaId, ShardDescriptor, ShardId, Timestamp,
};

use crate::{Answer, Answered, ApplyTask, Batch, BatchError, Input, RequestError};

/// Tasks of one replica that may wait for a load; beyond it reads are refused as busy.
const WAITING_MAX: usize = 4_096;

/// Makes the state machine of a shard.
pub type MachineFactory = Box<dyn Fn(ShardId) -> Box<dyn StateMachine> + Send>;

/// A replica's records that must be loaded before its tasks continue.
#[derive(Debug, Clone)]
pub struct Load {
    /// The replica.
    pub replica: ReplicaId,
    /// The checkpoint that names them.
    pub checkpoint: Checkpoint,
    /// Whether the checkpoint is a snapshot that replaces the replica's records.
    pub replaces: bool,
    /// How often this has failed already.
    pub failures: u32,
}

impl Load {
    /// Loads the records; slow.
    pub fn run(&self, engine: &dyn StateEngine) -> Result<(), EngineError> {
        if self.replaces {
            engine.install_snapshot(self.replica, &self.checkpoint)
        } else {
            engine.open(self.replica, &self.checkpoint)
        }
    }
}

/// The effects of running tasks.
#[derive(Debug)]
pub struct Applied<T> {
    /// Inputs for the core.
    pub inputs: Vec<Input<T>>,
    /// Answers.
    pub replies: Vec<(T, Answer)>,
    /// Loads to run on another thread and report to [`Applier::loaded`].
    pub loads: Vec<Load>,
    /// The disk or the view failed: nothing is lost, and the next start goes on from what is durable. The
    /// node must end.
    pub fatal: Option<MachineError>,
}

impl<T> Default for Applied<T> {
    fn default() -> Self {
        Self { inputs: Vec::new(), replies: Vec::new(), loads: Vec::new(), fatal: None }
    }
}

#[expect(clippy::large_enum_variant, reason = "one per replica, seldom in the large variant")]
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

/// The contents of a replica.
pub struct ReplicaContents {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// The state machine's own state after that entry.
    pub system: Bytes,
    /// A reader of its records; not a snapshot, it sees later writes.
    pub records: Arc<dyn StateReader>,
}

/// The state machines of a node.
pub struct Applier<T> {
    engine: Arc<dyn StateEngine>,
    machines: MachineFactory,
    slots: BTreeMap<ReplicaId, Slot<T>>,
}

impl<T> Applier<T> {
    /// An applier without replicas.
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
                self.destroy(replica, out);
            }
            (slot, ApplyTask::Open { shard, checkpoint, replaces, .. }) => {
                // This load supersedes the pending one, and tasks that waited for that are outdated.
                if let Some(Slot::Loading { waiting, .. }) = slot {
                    drop_tasks(std::mem::take(waiting), out);
                }
                if !replaces {
                    self.engine.claim(replica, &checkpoint);
                }
                out.loads.push(Load { replica, checkpoint: checkpoint.clone(), replaces, failures: 0 });
                self.slots.insert(replica, Slot::Loading { shard, checkpoint, waiting: VecDeque::new() });
            }
            // Only reads are bounded here; the core bounds waiting entries.
            (Some(Slot::Loading { waiting, .. }), ApplyTask::Read { queries, .. }) if waiting.len() >= WAITING_MAX => {
                out.replies.extend(queries.into_iter().map(|(_, reply)| (reply, Err(RequestError::Busy))));
            }
            (Some(Slot::Loading { waiting, .. }), task) => waiting.push_back(task),
            (Some(Slot::Ready(ready)), task) => {
                if let Err(error) = ready.run(replica, wall_ms, task, &*self.engine, out) {
                    let shard = ready.shard;
                    self.slots.insert(replica, Slot::Broken);
                    on_failure(replica, shard, error, out);
                }
            }
            (Some(Slot::Broken) | None, task) => drop_tasks([task], out),
        }
    }

    /// Completes a load: restores the state machine and runs the tasks that waited.
    pub fn loaded(&mut self, wall_ms: u64, load: &Load, result: Result<(), EngineError>, out: &mut Applied<T>) {
        let replica = load.replica;
        if !self.slots.contains_key(&replica) {
            // Closed while it was loading: the load has opened it in the engine again.
            self.destroy(replica, out);
        }
        let Some(Slot::Loading { checkpoint, .. }) = self.slots.get(&replica) else { return };
        // A newer load is in flight.
        if *checkpoint != load.checkpoint {
            return;
        }
        let Some(Slot::Loading { shard, checkpoint, waiting }) = self.slots.remove(&replica) else { return };
        let restored = result.map_err(MachineError::from).and_then(|()| self.restore(replica, shard, &checkpoint));
        match restored {
            Ok(ready) => {
                let (version, upkeep_due_ms) = (ready.machine.version(), ready.machine.upkeep_due_ms());
                let (index, clock) = (ready.position.index, ready.clock);
                out.inputs.push(Input::Opened { replica, index, clock, version, upkeep_due_ms });
                self.slots.insert(replica, Slot::Ready(Box::new(ready)));
                for task in waiting {
                    self.run(wall_ms, task, out);
                }
            }
            Err(error) => {
                tracing::error!(%replica, %shard, %error, "a replica's records cannot be loaded");
                drop_tasks(waiting, out);
                self.slots.insert(replica, Slot::Broken);
                on_failure(replica, shard, error, out);
            }
        }
    }

    /// The contents of a replica at the moment; `None` while it is not loaded.
    pub fn contents(&self, replica: ReplicaId) -> Option<ReplicaContents> {
        match self.slots.get(&replica) {
            Some(Slot::Ready(ready)) => Some(ReplicaContents {
                applied: ready.position.index,
                system: ready.machine.system(),
                records: ready.reader.clone(),
            }),
            _ => None,
        }
    }

    fn destroy(&self, replica: ReplicaId, out: &mut Applied<T>) {
        if let Err(error) = self.engine.destroy(replica) {
            tracing::warn!(%replica, %error, "records of a destroyed replica could not be removed");
            end_if_disk_failed(error.into(), out);
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
    /// Runs one task. After an error the replica takes no more of them.
    fn run<T>(
        &mut self,
        replica: ReplicaId,
        wall_ms: u64,
        task: ApplyTask<T>,
        engine: &dyn StateEngine,
        out: &mut Applied<T>,
    ) -> Result<(), MachineError> {
        match task {
            ApplyTask::Apply { entries, conf, descriptor, waiters, .. } => {
                let applied = self.apply(replica, entries, conf, descriptor, waiters, engine, out);
                applied.inspect_err(|error| {
                    tracing::error!(%replica, shard = %self.shard, %error, "a replica failed to apply an entry");
                })
            }
            ApplyTask::Read { queries, .. } => {
                let now = Timestamp::from_millis(wall_ms).max(self.clock);
                let context = ReadContext { descriptor: &self.position.descriptor, now };
                for (query, reply) in queries {
                    let answer = self.machine.read(&context, &query, &*self.reader);
                    let answer = answer.map_err(|error| {
                        tracing::error!(%replica, %error, "a read failed");
                        end_if_disk_failed(error, out);
                        RequestError::Stopped
                    });
                    let clock = self.clock;
                    out.replies.push((reply, answer.map(|payload| Answered { payload, clock })));
                }
                Ok(())
            }
            ApplyTask::Freeze { .. } => {
                let system = join_system(self.clock, &self.machine.system());
                let frozen = engine.freeze(replica, self.position.clone(), system);
                let frozen = frozen.unwrap_or_else(|error| {
                    tracing::warn!(%replica, %error, "a memtable could not be frozen");
                    end_if_disk_failed(error.into(), out);
                    false
                });
                out.inputs.push(Input::Frozen { replica, frozen });
                Ok(())
            }
            ApplyTask::Open { .. } | ApplyTask::Close { .. } => Ok(()),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one task")]
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
                let clock = self.clock;
                let answers = outcomes.into_iter().map(|payload| Ok(Answered { payload, clock }));
                out.replies.extend(replies.into_iter().zip(answers));
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
            version: self.machine.version(),
            upkeep_due_ms: self.machine.upkeep_due_ms(),
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
        let batch = Batch::decode(entry.data.clone()).map_err(|error| match error {
            BatchError::Malformed => MachineError::Corrupt("an entry is not a batch"),
            BatchError::Version { found, known } => MachineError::Version { found: found.into(), known: known.into() },
        })?;
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

/// Reports that a replica failed: it is abandoned or waits for an upgrade, or the node ends. The apply thread can wait for nothing,
/// so what could be retried elsewhere ends the node here. An entry must not be applied twice anyway: the
/// state machine may have changed before it met the error.
fn on_failure<T>(replica: ReplicaId, shard: ShardId, error: MachineError, out: &mut Applied<T>) {
    match remedy(&error) {
        Remedy::AbandonReplica => out.inputs.push(Input::Broken { replica }),
        Remedy::AwaitUpgrade if shard == ShardId::META => out.fatal = Some(error),
        Remedy::AwaitUpgrade => {}
        Remedy::Retry | Remedy::EndNode => out.fatal = Some(error),
    }
}

/// After a failure that costs no replica, such as that of a read.
fn end_if_disk_failed<T>(error: MachineError, out: &mut Applied<T>) {
    if remedy(&error) == Remedy::EndNode {
        out.fatal = Some(error);
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

/// Answers the callers of tasks that no state machine will run.
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

/// The system state of a checkpoint: the host's clock (u64, big-endian), then the machine's own state.
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
    if Timestamp(clock) >= Timestamp::MAX {
        return Err(MachineError::Corrupt("the clock of the system state is out of range"));
    }
    Ok((Timestamp(clock), system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_state_with_a_clock_out_of_range_is_corrupt() {
        let split = |clock| split_system(join_system(clock, b"machine"));
        assert!(matches!(split(Timestamp(7)), Ok((Timestamp(7), machine)) if &machine[..] == b"machine"));
        assert!(matches!(split(Timestamp(u64::MAX)), Err(MachineError::Corrupt(_))));
        assert!(split_system(Bytes::from_static(b"short")).is_err());
    }
}
