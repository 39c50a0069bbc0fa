//! The state machines of a node: applies committed entries, answers queries, freezes memtables.
//!
//! Synchronous and deterministic: the host runs it on its own thread, a simulator inline. It never waits for
//! a disk. Loading records is emitted as a [`Load`] and completed by [`Applier::loaded`]; entries that read a
//! record which is not in memory are emitted as [`Slow`] and completed by [`Applier::returned`]. Meanwhile
//! the tasks of that replica wait in order. Queries that need the disk are emitted as [`Slow`] too, and
//! nothing waits for them.

mod chain;
mod merge;
mod pins;
mod recalled;
mod slow;
mod split;
mod system;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, atomic::AtomicUsize},
};

use bytes::Bytes;
use flotilla_consensus::ShardChange;
use flotilla_failpoints::{Place, number};
use flotilla_storage::{
    ApplyContext, EngineError, Fold, InMemory, MachineError, ReadContext, Remedy, StateEngine, StateMachine,
    StateReader, WriteSet, remedy,
};
use flotilla_types::{
    Checkpoint, ClusterVersion, ConfState, Entry, EntryKind, KeyRange, LogIndex, Position, ReplicaId, ShardDescriptor,
    ShardId, Timestamp,
};

use chain::Chain;
pub use chain::{ChainDigest, ChainSamples, Fingerprints, SAMPLE_SPACING, SAMPLES_MAX, SYSTEM_SPACING};
use pins::Pins;
pub use pins::{PIN_IDLE_MS, PIN_MS_MAX, PINNED_BYTES_MAX, PINS_MAX, PinId, PinnedQuery};
use recalled::Recalled;
use slow::{ReadState, on_read_failure};
pub use slow::{Returned, SLOW_READS_MAX, SLOW_READS_PER_REPLICA_MAX, Slow, SlowApply, SlowDone, SlowRead};
use system::{join_system, split_system};

use crate::{Answer, Answered, ApplyTask, Batch, BatchError, Input, Query, RequestError, damage};

/// Tasks of one replica that may wait while it is loaded or away; beyond it reads are refused as busy.
const WAITING_MAX: usize = 4_096;

/// Makes the state machine of a shard.
pub type MachineFactory = Arc<dyn Fn(ShardId) -> Box<dyn StateMachine> + Send + Sync>;

/// A replica's records and its state machine, which must be loaded before its tasks continue.
#[derive(Clone)]
pub struct Load {
    /// The replica.
    pub replica: ReplicaId,
    /// Its shard.
    pub shard: ShardId,
    /// The checkpoint that names them.
    pub checkpoint: Checkpoint,
    /// Whether the checkpoint is a snapshot that replaces the replica's records.
    pub replaces: bool,
    /// How often this has failed already.
    pub failures: u32,
    machines: MachineFactory,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { replica, shard, checkpoint, replaces, failures, .. } = self;
        write!(f, "Load {replica} of {shard} at {} replaces {replaces} ", checkpoint.position.index)?;
        write!(f, "failures {failures}")
    }
}

/// What a load has made.
pub struct Loaded(Box<Ready>);

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loaded at {}", self.0.position.index)
    }
}

impl Load {
    /// Loads the records and restores the state machine; slow.
    pub fn run(&self, engine: &dyn StateEngine) -> Result<Loaded, MachineError> {
        self.load_records(engine)?;
        let Self { replica, shard, checkpoint, .. } = self;
        let reader = engine.reader(*replica)?;
        let (clock, mut system) = split_system(engine.system(checkpoint)?)?;
        let mut machine = (self.machines)(*shard);
        let position = checkpoint.position.clone();
        let chain = Chain::decode(&mut system, *replica, position.index)?;
        machine.restore(&system, &*reader)?;
        // The first checkpoint of a shard has nothing.
        let copied = (checkpoint.objects().next().is_some()).then_some(position.index);
        let slow_reads = Arc::default();
        Ok(Loaded(Box::new(Ready {
            shard: *shard,
            machine,
            reader,
            position,
            clock,
            chain,
            copied,
            slow_reads,
            merged: false,
        })))
    }

    /// The same load after so many failures.
    pub(crate) fn again(&self, failures: u32) -> Self {
        Self { failures, ..self.clone() }
    }

    fn load_records(&self, engine: &dyn StateEngine) -> Result<(), EngineError> {
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
    /// Work that may wait for the disk, to run on other threads.
    pub slow: Vec<Slow<T>>,
    /// Replicas whose records are to be removed from the engine, on another thread.
    pub destroyed: Vec<ReplicaId>,
    /// The disk or the view failed: nothing is lost, and the next start goes on from what is durable. The
    /// node must end.
    pub fatal: Option<MachineError>,
}

impl<T> Default for Applied<T> {
    fn default() -> Self {
        Self {
            inputs: Vec::new(),
            replies: Vec::new(),
            loads: Vec::new(),
            slow: Vec::new(),
            destroyed: Vec::new(),
            fatal: None,
        }
    }
}

enum Slot<T> {
    /// Loads of one replica run one after the other: an earlier one that is retried must not replace what a
    /// later one has loaded.
    Loading {
        /// The load that follows and makes this one outdated.
        next: Option<Box<ApplyTask<T>>>,
        waiting: VecDeque<ApplyTask<T>>,
    },
    Ready(Box<Ready>),
    /// It applies entries in the pool.
    Away {
        waiting: VecDeque<ApplyTask<T>>,
        /// What it has to say of its state before them.
        before: Box<Before>,
    },
    Broken,
}

/// A replica before the entries that it applies in the pool.
struct Before {
    applied: LogIndex,
    meaning: ClusterVersion,
    chain: Option<Chain>,
}

struct Ready {
    shard: ShardId,
    machine: Box<dyn StateMachine>,
    reader: Arc<dyn StateReader>,
    position: Position,
    clock: Timestamp,
    chain: Option<Chain>,
    /// While it has no chain: the entry up to which another replica may have made its state.
    copied: Option<LogIndex>,
    /// Its queries that wait for the pool or run in it.
    slow_reads: Arc<AtomicUsize>,
    /// It was merged: the records of both are loaded next, and those here are of one alone.
    merged: bool,
}

/// Committed entries, and what holds after them.
struct Committed<T> {
    entries: Vec<Entry>,
    shard_change: Option<ShardChange>,
    conf: Arc<ConfState>,
    descriptor: Arc<ShardDescriptor>,
    waiters: Vec<(LogIndex, Vec<T>)>,
    /// For a merge: the checkpoint of the other replica.
    source: Option<Box<Checkpoint>>,
}

/// What is known of a replica's contents at the moment.
pub enum Contents {
    /// They are at rest until the next task.
    AtRest(ReplicaContents),
    /// Entries are being applied.
    Moving,
    /// The replica is not loaded, or failed.
    NotServing,
}

/// The contents of a replica.
pub struct ReplicaContents {
    /// The last entry that it has applied.
    pub applied: LogIndex,
    /// The range of its shard after that entry. Others' records may be found as well: a split leaves them for a while.
    pub range: KeyRange,
    /// The state machine's own state after that entry.
    pub system: Bytes,
    /// Bytes of the keys and values of its records, if the state machine counts them.
    pub record_bytes: Option<u64>,
    /// Its records after that entry: a snapshot, which sees no later write.
    pub records: Arc<dyn StateReader>,
}

/// How many records a replica has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// A key in their middle, if they are more than was asked for.
    pub middle: Option<Bytes>,
}

impl ReplicaContents {
    /// Measures the records. Their middle, which takes longer, only if they have more bytes than `above`. `None` if the
    /// state machine does not count them.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn size(&self, above: u64) -> Result<Option<Size>, EngineError> {
        let Some(bytes) = self.record_bytes else { return Ok(None) };
        let range = self.range.intersection(&KeyRange::of_users());
        let middle = if bytes > above { self.records.middle(&range)? } else { None };
        Ok(Some(Size { bytes, middle }))
    }
}

/// The state machines of a node.
pub struct Applier<T> {
    engine: Arc<dyn StateEngine>,
    machines: MachineFactory,
    slots: BTreeMap<ReplicaId, Slot<T>>,
    /// Queries of all replicas that wait for the pool or run in it.
    slow_reads: Arc<AtomicUsize>,
    pins: Pins,
}

impl<T> Applier<T> {
    /// An applier without replicas.
    pub fn new(engine: Arc<dyn StateEngine>, machines: MachineFactory) -> Self {
        Self { engine, machines, slots: BTreeMap::new(), slow_reads: Arc::default(), pins: Pins::default() }
    }

    /// Runs one task. `wall_ms` is Unix milliseconds.
    pub fn run(&mut self, wall_ms: u64, task: ApplyTask<T>, out: &mut Applied<T>) {
        let replica = replica_of(&task);
        match (self.slots.get_mut(&replica), task) {
            // Everything waits for a replica that is away, so that no change of the engine meets its writes.
            (Some(Slot::Away { waiting, .. }), task) => {
                if matches!(task, ApplyTask::Close { .. }) {
                    drop_tasks(std::mem::take(waiting), out);
                }
                wait(waiting, task, out);
            }
            (_, ApplyTask::Close { .. }) => {
                self.pins.end_all_of(replica);
                if let Some(Slot::Loading { waiting, .. }) = self.slots.remove(&replica) {
                    drop_tasks(waiting, out);
                }
                out.destroyed.push(replica);
            }
            (Some(Slot::Loading { next, waiting }), open @ ApplyTask::Open { .. }) => {
                drop_tasks(std::mem::take(waiting), out);
                *next = Some(Box::new(open));
            }
            (_, ApplyTask::Open { shard, checkpoint, replaces, .. }) => {
                self.pins.end_all_of(replica);
                let machines = self.machines.clone();
                out.loads.push(Load { replica, shard, checkpoint, replaces, failures: 0, machines });
                self.slots.insert(replica, Slot::Loading { next: None, waiting: VecDeque::new() });
            }
            // Only reads are bounded here; the core bounds waiting entries.
            (Some(Slot::Loading { waiting, .. }), task) => wait(waiting, task, out),
            (
                Some(Slot::Ready(ready)),
                ApplyTask::Apply { entries, shard_change, conf, descriptor, waiters, source, .. },
            ) => {
                let committed = Committed { entries, shard_change, conf, descriptor, waiters, source };
                let new = committed.entries.iter().filter(|entry| entry.index > ready.position.index);
                let reads = committed.shard_change.as_ref().is_some_and(ShardChange::makes_checkpoint);
                match Recalled::of(&*ready.machine, &*ready.reader, new).filter(|_| !reads) {
                    Some(recalled) => {
                        if let Err(error) = ready.apply(replica, committed, recalled, &*self.engine, out) {
                            let shard = ready.shard;
                            self.slots.insert(replica, Slot::Broken);
                            on_failure(replica, shard, error, &*self.engine, out);
                        }
                    }
                    None => {
                        let away = Slot::Away { waiting: VecDeque::new(), before: Box::new(ready.before()) };
                        if let Some(Slot::Ready(ready)) = self.slots.insert(replica, away) {
                            let apply = SlowApply { replica, ready, committed };
                            out.slow.push(Slow::Apply(Box::new(apply)));
                        }
                    }
                }
            }
            (Some(Slot::Ready(ready)), task) => {
                // With some views a checkpoint waits for open snapshots.
                if matches!(task, ApplyTask::Freeze { .. }) && self.engine.snapshots_delay_checkpoints() {
                    self.pins.end_all_of(replica);
                }
                ready.run(replica, wall_ms, task, &*self.engine, (&self.slow_reads, &mut self.pins), out);
            }
            (Some(Slot::Broken) | None, task) => drop_tasks([task], out),
        }
    }

    /// Completes a load: runs the tasks that waited.
    pub fn loaded(&mut self, wall_ms: u64, load: &Load, result: Result<Loaded, MachineError>, out: &mut Applied<T>) {
        let replica = load.replica;
        if !self.slots.contains_key(&replica) {
            // Closed while it was loading: the load has opened it in the engine again.
            out.destroyed.push(replica);
        }
        if !matches!(self.slots.get(&replica), Some(Slot::Loading { .. })) {
            return;
        }
        let Some(Slot::Loading { next, waiting }) = self.slots.remove(&replica) else { return };
        if let Some(open) = next {
            self.run(wall_ms, *open, out);
            waiting.into_iter().for_each(|task| self.run(wall_ms, task, out));
            return;
        }
        match result {
            Ok(Loaded(ready)) => {
                let (version, upkeep_due_ms) = (ready.machine.version(), ready.machine.upkeep_due_ms());
                let (index, clock) = (ready.position.index, ready.clock);
                out.inputs.push(Input::Opened { replica, index, clock, version, upkeep_due_ms });
                self.slots.insert(replica, Slot::Ready(ready));
                for task in waiting {
                    self.run(wall_ms, task, out);
                }
            }
            Err(error) => {
                tracing::error!(%replica, shard = %load.shard, %error, "a replica's records cannot be loaded");
                drop_tasks(waiting, out);
                self.slots.insert(replica, Slot::Broken);
                on_failure(replica, load.shard, error, &*self.engine, out);
            }
        }
    }

    /// Takes back a replica that has applied entries in the pool, and runs the tasks that waited.
    pub fn returned(&mut self, wall_ms: u64, returned: Returned<T>, out: &mut Applied<T>) {
        let Returned { replica, ready, result, inputs } = returned;
        let shard = ready.shard;
        let Some(Slot::Away { waiting, .. }) = self.slots.remove(&replica) else { return };
        match result {
            Ok(()) => {
                out.inputs.extend(inputs);
                self.slots.insert(replica, Slot::Ready(ready));
            }
            Err(error) => {
                out.inputs.extend(inputs);
                self.slots.insert(replica, Slot::Broken);
                on_failure(replica, shard, error, &*self.engine, out);
            }
        }
        for task in waiting {
            self.run(wall_ms, task, out);
        }
    }

    /// Ends snapshots that were not used for long. Call it now and then while [`open_pins`](Self::open_pins)
    /// says that there are some.
    pub fn expire_pins(&mut self, wall_ms: u64) {
        self.pins.expire(wall_ms);
    }

    /// The number of open snapshots, kept up to date.
    pub fn open_pins(&self) -> Arc<AtomicUsize> {
        self.pins.count()
    }

    /// What a replica says of its state, to be compared with others: before the entries that it applies in the pool,
    /// if it does. `None` if it is loaded, or failed.
    pub fn fingerprints(&mut self, replica: ReplicaId) -> Option<Fingerprints> {
        let (applied, meaning, chain, system) = match self.slots.get_mut(&replica)? {
            Slot::Ready(ready) => {
                let system = ready.chain.is_some().then(|| ready.machine.system());
                (ready.position.index, ready.machine.meaning(), &mut ready.chain, system)
            }
            Slot::Away { before, .. } => (before.applied, before.meaning, &mut before.chain, None),
            Slot::Loading { .. } | Slot::Broken => return None,
        };
        if let Some(chain) = chain {
            chain.note_base(self.engine.logged_base(replica));
        }
        Some(Fingerprints {
            applied,
            meaning,
            chain: chain.as_ref().map(|chain| chain.samples(system.as_deref())),
            bases: chain.as_ref().map(Chain::bases).unwrap_or_default(),
        })
    }

    /// The contents of a replica at the moment.
    pub fn contents(&self, replica: ReplicaId) -> Contents {
        match self.slots.get(&replica) {
            Some(Slot::Ready(ready)) if ready.merged => Contents::Moving,
            Some(Slot::Ready(ready)) => match self.engine.snapshot(replica) {
                Ok(records) => Contents::AtRest(ReplicaContents {
                    applied: ready.position.index,
                    range: ready.position.descriptor.range.clone(),
                    system: ready.machine.system(),
                    record_bytes: ready.machine.record_bytes(),
                    records,
                }),
                Err(_) => Contents::NotServing,
            },
            Some(Slot::Away { .. }) => Contents::Moving,
            Some(Slot::Loading { .. } | Slot::Broken) | None => Contents::NotServing,
        }
    }
}

impl Ready {
    fn before(&self) -> Before {
        Before { applied: self.position.index, meaning: self.machine.meaning(), chain: self.chain.clone() }
    }

    /// Answers queries or freezes.
    fn run<T>(
        &mut self,
        replica: ReplicaId,
        wall_ms: u64,
        task: ApplyTask<T>,
        engine: &dyn StateEngine,
        (slow_reads, pins): (&Arc<AtomicUsize>, &mut Pins),
        out: &mut Applied<T>,
    ) {
        match task {
            ApplyTask::Read { index, queries, .. } => {
                assert!(self.position.index >= index, "{replica} reads at {index} before it has applied that entry");
                let (pinned, queries): (Vec<_>, Vec<_>) =
                    queries.into_iter().partition(|query| PinnedQuery::decode(&query.payload).is_some());
                for query in pinned {
                    self.read_pinned(replica, wall_ms, query, engine, (slow_reads, pins), out);
                }
                self.read(replica, wall_ms, queries, engine, slow_reads, out);
            }
            ApplyTask::CountAhead { at, .. } => out.inputs.push(self.count_ahead(replica, at, engine)),
            ApplyTask::Freeze { .. } => {
                if let Some(chain) = &mut self.chain {
                    chain.note_base(engine.logged_base(replica));
                }
                let system = join_system(self.clock, (self.chain.as_ref(), replica), &self.machine.system());
                let frozen = engine.freeze(replica, self.position.clone(), system);
                let frozen = frozen.unwrap_or_else(|error| {
                    tracing::warn!(%replica, %error, "a memtable could not be frozen");
                    end_if_disk_failed(error.into(), out);
                    false
                });
                out.inputs.push(Input::Frozen { replica, frozen });
            }
            ApplyTask::Open { .. } | ApplyTask::Apply { .. } | ApplyTask::Close { .. } => {}
        }
    }

    /// Answers the queries that memory can answer, and hands over the others.
    fn read<T>(
        &self,
        replica: ReplicaId,
        wall_ms: u64,
        queries: Vec<Query<T>>,
        engine: &dyn StateEngine,
        slow_reads: &Arc<AtomicUsize>,
        out: &mut Applied<T>,
    ) {
        let now = Timestamp::from_millis(wall_ms).max(self.clock);
        let context = ReadContext { descriptor: &self.position.descriptor, now };
        // The same state for all of them, taken once.
        let mut state = None;
        for query in queries {
            let mut answer = self.machine.read(&context, &query.payload, &InMemory(&*self.reader));
            if matches!(answer, Err(MachineError::Engine(EngineError::NotInMemory))) {
                let taken = match &state {
                    Some(taken) => Ok(Some(Arc::clone(taken))),
                    None => ReadState::of(self, replica, now, engine),
                };
                answer = match taken {
                    Ok(Some(taken)) => {
                        state = Some(taken.clone());
                        match SlowRead::new(replica, query, taken, slow_reads, &self.slow_reads) {
                            Ok(read) => out.slow.push(Slow::Read(read)),
                            Err(query) => out.replies.push((query.reply, Err(RequestError::Busy))),
                        }
                        continue;
                    }
                    Ok(None) => self.machine.read(&context, &query.payload, &*self.reader),
                    Err(error) => Err(error.into()),
                };
            }
            let answer = answer.map_err(|error| on_read_failure(replica, error, &mut out.fatal));
            let clock = self.clock;
            out.replies.push((query.reply, answer.map(|payload| Answered { payload, clock })));
        }
    }

    /// Applies entries, all under the descriptor before them. After an error the replica takes no more of
    /// them.
    fn apply<T>(
        &mut self,
        replica: ReplicaId,
        committed: Committed<T>,
        mut recalled: Recalled,
        engine: &dyn StateEngine,
        out: &mut Applied<T>,
    ) -> Result<(), MachineError> {
        let Committed { entries, shard_change, conf, descriptor, waiters, source } = committed;
        let last = entries.last().map_or(LogIndex(0), |entry| entry.index);
        let mut waiters: VecDeque<_> = waiters.into();
        let mut bytes = 0;
        let mut failure = None;
        let is_frozen = self.position.descriptor.is_frozen();
        for entry in entries {
            bytes += entry.size_bytes();
            if entry.index <= self.position.index {
                continue;
            }
            let is_change = entry.kind != EntryKind::Normal;
            assert!(!is_change || entry.index == last, "{replica} got entries behind the change at {}", entry.index);
            let meaning = self.machine.meaning();
            let applied = if is_frozen {
                self.pass_over(&entry).map(|()| Vec::new())
            } else {
                self.apply_entry(replica, &entry, &mut recalled, engine)
            };
            let outcomes = match applied {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            let orders_fold = entry.index == last && matches!(shard_change, Some(ShardChange::Fold { .. }));
            if !is_frozen {
                self.pass_chain(entry.index, orders_fold, meaning);
            }
            self.position.index = entry.index;
            self.position.term = entry.term;
            if waiters.front().is_some_and(|(index, _)| *index == entry.index)
                && let Some((_, replies)) = waiters.pop_front()
            {
                let clock = self.clock;
                if is_frozen {
                    let stale = || RequestError::StaleEpoch { now: [(*self.position.descriptor).clone()].into() };
                    out.replies.extend(replies.into_iter().map(|reply| (reply, Err(stale()))));
                    continue;
                }
                let answers = outcomes.into_iter().map(|payload| Ok(Answered { payload, clock }));
                out.replies.extend(replies.into_iter().zip(answers));
            }
        }
        if failure.is_some() && shard_change.as_ref().is_some_and(ShardChange::makes_checkpoint) {
            out.inputs.push(Input::Frozen { replica, frozen: false });
        }
        if let Some(error) = failure {
            tracing::error!(%replica, shard = %self.shard, %error, "a replica failed to apply an entry");
            let unknown = waiters.into_iter().flat_map(|(_, replies)| replies);
            out.replies.extend(unknown.map(|reply| (reply, Err(RequestError::Unknown))));
            return Err(error);
        }
        if self.position.index == last {
            self.position.conf = conf;
            let before = std::mem::replace(&mut self.position.descriptor, descriptor);
            if let Some(change) = &shard_change {
                let changed = self.change_shard(replica, change, &before, source.as_deref(), engine);
                if changed.is_err() && change.makes_checkpoint() {
                    out.inputs.push(Input::Frozen { replica, frozen: false });
                }
                if let Err(error) = changed {
                    tracing::error!(%replica, shard = %self.shard, %error, ?change, "a change of a shard failed");
                    return Err(error);
                }
            }
        }
        let is_fold = matches!(shard_change, Some(ShardChange::Fold { .. }));
        let has_frozen = shard_change.as_ref().is_some_and(ShardChange::makes_checkpoint);
        out.inputs.push(Input::Applied {
            replica,
            index: self.position.index,
            clock: self.clock,
            version: self.machine.version(),
            upkeep_due_ms: self.machine.upkeep_due_ms(),
            bytes,
            usage: engine.usage(replica),
        });
        out.inputs.extend(is_fold.then_some(Input::FoldPinned { replica }));
        out.inputs.extend(has_frozen.then_some(Input::Frozen { replica, frozen: true }));
        Ok(())
    }

    /// An entry was applied by a machine of this meaning.
    fn pass_chain(&mut self, index: LogIndex, orders_fold: bool, before: ClusterVersion) {
        match &mut self.chain {
            Some(chain) => chain.pass(index, orders_fold, || self.machine.system()),
            None if chain::begins(index, before, self.machine.meaning()) => {
                self.chain = Some(Chain::begin(index, self.copied.map(|_| index)));
            }
            None => {}
        }
    }

    /// A change of the shard takes effect here, at the position of its entry. The group has moved the
    /// descriptor by the same change.
    fn change_shard(
        &mut self,
        replica: ReplicaId,
        change: &ShardChange,
        before: &ShardDescriptor,
        source: Option<&Checkpoint>,
        engine: &dyn StateEngine,
    ) -> Result<(), MachineError> {
        let moved = change.after(before);
        assert_eq!(moved.as_ref(), Ok(&*self.position.descriptor), "{replica} judges by another range than its group");
        match change {
            ShardChange::Bump | ShardChange::Freeze(_) | ShardChange::Abort { .. } | ShardChange::Thaw(_) => Ok(()),
            ShardChange::Fold { piece_bytes } => {
                let fold = Fold { index: self.position.index, piece_bytes: *piece_bytes };
                Ok(engine.pin_fold(replica, fold)?)
            }
            ShardChange::Split(split) => self.split(replica, split, before, engine),
            ShardChange::Merge(merge) => self.merge(replica, merge, source, engine),
        }
    }

    fn apply_entry(
        &mut self,
        replica: ReplicaId,
        entry: &Entry,
        recalled: &mut Recalled,
        engine: &dyn StateEngine,
    ) -> Result<Vec<Bytes>, MachineError> {
        if entry.index != self.position.index.next() {
            return Err(MachineError::Corrupt("committed entries came with a gap"));
        }
        if entry.kind != EntryKind::Normal || entry.data.is_empty() {
            return Ok(Vec::new());
        }
        let batch = Batch::decode(entry.data.clone()).map_err(|error| match error {
            BatchError::Malformed => MachineError::Corrupt("an entry is not a batch"),
            BatchError::Version { found, known } => MachineError::Version { found: found.into(), known: known.into() },
        })?;
        // One that was proposed before a merge does not know the clock of the other shard.
        let is_late = batch.timestamp <= self.clock && self.machine.meaning() >= ClusterVersion::MERGES;
        let timestamp = if is_late { self.clock.plus(1) } else { batch.timestamp };
        let context = ApplyContext {
            index: entry.index,
            term: entry.term,
            timestamp,
            descriptor: &self.position.descriptor,
            refs: &batch.refs,
        };
        let mut writes = Vec::new();
        let outcomes = {
            let records = recalled.over(&*self.reader);
            self.machine.apply(&context, &batch.commands, &records, &mut writes)?
        };
        if outcomes.len() != batch.commands.len() {
            return Err(MachineError::Corrupt("the state machine did not answer each command"));
        }
        let flaw = if self.shard == ShardId::META { None } else { number(Place::ApplyFlaw) };
        flaw.filter(|flaw| *flaw == 1).into_iter().for_each(|_| add_flaw(&mut writes));
        if let Some(chain) = &mut self.chain {
            chain.add(entry.index, &writes, &outcomes);
        }
        flaw.filter(|flaw| *flaw == 2).into_iter().for_each(|_| add_flaw(&mut writes));
        if !writes.is_empty() {
            recalled.forget(&writes);
            engine.write(replica, writes, entry.index)?;
        }
        let last = timestamp.plus((batch.commands.len() as u64).saturating_sub(1));
        self.clock = self.clock.max(last);
        Ok(outcomes)
    }
}

/// Adds a record that no entry has written, under a key that nobody else uses. Only tests do.
fn add_flaw(writes: &mut WriteSet) {
    if let Some((key, value)) = writes.iter().find(|(_, value)| value.is_some()).cloned() {
        writes.push(([&key, &b"\xff flaw"[..]].concat().into(), value));
    }
}

/// Reports that a replica failed: it is abandoned or waits for an upgrade, or the node ends. The apply thread can
/// wait for nothing, so what could be retried elsewhere ends the node here. An entry must not be applied twice
/// anyway: the state machine may have changed before it met the error.
///
/// One that has met known damage is not abandoned. It applies nothing more, and votes and stores entries until it
/// is replaced: a group with damage on several nodes keeps its quorum.
fn on_failure<T>(
    replica: ReplicaId,
    shard: ShardId,
    error: MachineError,
    engine: &dyn StateEngine,
    out: &mut Applied<T>,
) {
    match remedy(&error) {
        Remedy::AbandonReplica if matches!(&error, MachineError::Engine(error) if damage::is_known(engine, replica, error)) =>
        {
            out.inputs.extend([Input::Halted { replica }, Input::Damaged(engine.damaged())]);
        }
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

/// Lets a task wait. Only reads are bounded here; the core bounds waiting entries.
fn wait<T>(waiting: &mut VecDeque<ApplyTask<T>>, task: ApplyTask<T>, out: &mut Applied<T>) {
    match task {
        ApplyTask::Read { queries, .. } if waiting.len() >= WAITING_MAX => {
            out.replies.extend(queries.into_iter().map(|query| (query.reply, Err(RequestError::Busy))));
        }
        task => waiting.push_back(task),
    }
}

fn replica_of<T>(task: &ApplyTask<T>) -> ReplicaId {
    match task {
        ApplyTask::Open { replica, .. }
        | ApplyTask::Apply { replica, .. }
        | ApplyTask::Read { replica, .. }
        | ApplyTask::CountAhead { replica, .. }
        | ApplyTask::Freeze { replica }
        | ApplyTask::Close { replica } => *replica,
    }
}

/// Answers the callers of tasks that no state machine will run.
fn drop_tasks<T>(tasks: impl IntoIterator<Item = ApplyTask<T>>, out: &mut Applied<T>) {
    for task in tasks {
        match task {
            ApplyTask::Apply { replica, shard_change, waiters, .. } => {
                let freezes = shard_change.as_ref().is_some_and(ShardChange::makes_checkpoint);
                out.inputs.extend(freezes.then_some(Input::Frozen { replica, frozen: false }));
                let waiters = waiters.into_iter().flat_map(|(_, replies)| replies);
                out.replies.extend(waiters.map(|reply| (reply, Err(RequestError::Unknown))));
            }
            ApplyTask::Read { queries, .. } => {
                out.replies.extend(queries.into_iter().map(|query| (query.reply, Err(RequestError::Stopped))));
            }
            ApplyTask::CountAhead { replica, at } => out.inputs.push(Input::Counted { replica, at }),
            ApplyTask::Freeze { replica } => out.inputs.push(Input::Frozen { replica, frozen: false }),
            ApplyTask::Open { .. } | ApplyTask::Close { .. } => {}
        }
    }
}
