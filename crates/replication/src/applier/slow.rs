//! Work on state machines that may wait for the disk, for a pool of threads.
//!
//! - **Reads** see the state at the time they were handed over: a snapshot of the records and a copy of what
//!   queries need of the machine. So later entries are applied meanwhile, and the answer is the one that the
//!   read would have got at once.
//! - **Entries** that read a record which is not in memory go to the pool with their whole replica. It alone
//!   waits until it is back; entries cannot overtake each other.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use flotilla_storage::{
    DeferredRead, EngineError, MachineError, ReadContext, Remedy, StateEngine, StateReader, remedy,
};
use flotilla_types::{ReplicaId, ShardDescriptor, Timestamp};

use super::{Applied, Committed, Ready, Recalled};
use crate::{Answer, Answered, Input, Query, RequestError};

/// Queries of all replicas that may wait for the pool or run in it; further ones are refused as busy.
pub const SLOW_READS_MAX: usize = 8_192;
/// The same for one replica, so that others get their share.
pub const SLOW_READS_PER_REPLICA_MAX: usize = 1_024;

/// Work that may wait for the disk.
pub enum Slow<T> {
    /// Entries, with the replica that applies them. At most one for each replica.
    Apply(Box<SlowApply<T>>),
    /// A query.
    Read(SlowRead<T>),
}

impl<T> fmt::Debug for Slow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self, Self::Apply(_)) { "Apply" } else { "Read" };
        f.debug_tuple(kind).field(&self.replica()).finish()
    }
}

/// Entries of a replica, and the replica.
pub struct SlowApply<T> {
    pub(super) replica: ReplicaId,
    pub(super) ready: Box<Ready>,
    pub(super) committed: Committed<T>,
}

/// A query, and the state that it sees.
pub struct SlowRead<T> {
    replica: ReplicaId,
    query: Query<T>,
    state: Arc<ReadState>,
    /// Whether the state is that of a pinned snapshot, which may end meanwhile.
    is_pinned: bool,
    _permit: Permit,
}

/// What follows from slow work.
pub struct SlowDone<T> {
    /// Answers.
    pub replies: Vec<(T, Answer)>,
    /// The replica that comes back, for [`Applier::returned`](super::Applier::returned).
    pub returned: Option<Returned<T>>,
    /// The disk or the view failed; the node must end.
    pub fatal: Option<MachineError>,
}

/// A replica that has applied its entries, or has failed to.
pub struct Returned<T> {
    pub(super) replica: ReplicaId,
    pub(super) ready: Box<Ready>,
    pub(super) result: Result<(), MachineError>,
    pub(super) inputs: Vec<Input<T>>,
}

/// A replica's state for queries, at one time.
pub(super) struct ReadState {
    machine: Arc<dyn DeferredRead>,
    records: Arc<dyn StateReader>,
    descriptor: Arc<ShardDescriptor>,
    now: Timestamp,
    clock: Timestamp,
}

impl ReadState {
    /// The state of a replica now. `None` if the machine answers queries without records.
    pub(super) fn of(
        ready: &Ready,
        replica: ReplicaId,
        now: Timestamp,
        engine: &dyn StateEngine,
    ) -> Result<Option<Arc<Self>>, EngineError> {
        let Some(machine) = ready.machine.deferred() else { return Ok(None) };
        let records = engine.snapshot(replica)?;
        let descriptor = ready.position.descriptor.clone();
        Ok(Some(Arc::new(Self { machine, records, descriptor, now, clock: ready.clock })))
    }
}

/// The place of one query among those that wait for the pool or run in it.
struct Permit([Arc<AtomicUsize>; 2]);

impl Permit {
    fn take(all: &Arc<AtomicUsize>, of_replica: &Arc<AtomicUsize>) -> Option<Self> {
        let has_room = all.load(Ordering::Relaxed) < SLOW_READS_MAX
            && of_replica.load(Ordering::Relaxed) < SLOW_READS_PER_REPLICA_MAX;
        has_room.then(|| {
            // Only the apply thread adds, so that the bounds hold.
            let counts = [all.clone(), of_replica.clone()];
            for count in &counts {
                count.fetch_add(1, Ordering::Relaxed);
            }
            Self(counts)
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl<T> SlowRead<T> {
    /// Hands a query over, unless too many wait.
    pub(super) fn new(
        replica: ReplicaId,
        query: Query<T>,
        state: Arc<ReadState>,
        all: &Arc<AtomicUsize>,
        of_replica: &Arc<AtomicUsize>,
    ) -> Result<Self, Query<T>> {
        match Permit::take(all, of_replica) {
            Some(permit) => Ok(Self { replica, query, state, is_pinned: false, _permit: permit }),
            None => Err(query),
        }
    }

    /// The same query, on a pinned snapshot.
    pub(super) fn of_pin(self) -> Self {
        Self { is_pinned: true, ..self }
    }

    fn run(self, now_ms: u64) -> SlowDone<T> {
        let Self { replica, query, state, is_pinned, _permit } = self;
        let mut fatal = None;
        let answer = if query.deadline_ms <= now_ms {
            Err(RequestError::Deadline)
        } else {
            let context = ReadContext { descriptor: &state.descriptor, now: state.now };
            let answer = state.machine.read(&context, &query.payload, &*state.records);
            let answer = answer.map_err(|error| match error {
                // Its records were replaced.
                MachineError::Engine(EngineError::NotOpen(_)) if is_pinned => RequestError::SnapshotExpired,
                error => on_read_failure(replica, error, &mut fatal),
            });
            answer.map(|payload| Answered { payload, clock: state.clock })
        };
        SlowDone { replies: vec![(query.reply, answer)], returned: None, fatal }
    }
}

/// The answer to a failed read. It costs no replica, but a failed disk ends the node.
pub(super) fn on_read_failure(
    replica: ReplicaId,
    error: MachineError,
    fatal: &mut Option<MachineError>,
) -> RequestError {
    let answer = match &error {
        // Destroyed, or replaced by a snapshot, in the meantime.
        MachineError::Engine(EngineError::NotOpen(_)) => return RequestError::Stopped,
        // The store has logged it, and it is tried again.
        MachineError::Engine(EngineError::Object(_)) => {
            tracing::debug!(%replica, %error, "a read met damage");
            return RequestError::Damaged;
        }
        _ => RequestError::Stopped,
    };
    tracing::error!(%replica, %error, "a read failed");
    if remedy(&error) == Remedy::EndNode {
        *fatal = Some(error);
    }
    answer
}

impl<T> SlowApply<T> {
    fn run(self, engine: &dyn StateEngine) -> SlowDone<T> {
        let Self { replica, mut ready, committed } = self;
        let mut out = Applied::default();
        let result = ready.apply(replica, committed, Recalled::default(), engine, &mut out);
        let Applied { inputs, replies, .. } = out;
        match result {
            // At once, and not only when the replica is back.
            Err(error) if matches!(remedy(&error), Remedy::EndNode | Remedy::Retry) => {
                SlowDone { replies, returned: None, fatal: Some(error) }
            }
            result => SlowDone { replies, returned: Some(Returned { replica, ready, result, inputs }), fatal: None },
        }
    }
}

impl<T> Slow<T> {
    /// The replica.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        match self {
            Self::Apply(apply) => apply.replica,
            Self::Read(read) => read.replica,
        }
    }

    /// Does the work; may be slow. `now_ms` is on the core's monotonic clock.
    pub fn run(self, now_ms: u64, engine: &dyn StateEngine) -> SlowDone<T> {
        match self {
            Self::Apply(apply) => apply.run(engine),
            Self::Read(read) => read.run(now_ms),
        }
    }
}
