//! A disk that fails: the node ends, and no replica is given up.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use flotilla_kv::{KvMachine, Limits};
use flotilla_replication::{Applied, Applier, ApplyTask, Core, Effects, Input, Notice};
use flotilla_storage::{
    EngineError, Log, LogBatch, LogError, LogEvidence, MemoryEngine, MemoryLog, PeerSequence, ReplicaLog, ReplicaWrite,
};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, HardState, Incarnation, LogIndex, NodeId, ObjectId, Position, ReplicaId,
    Term, WalSequence,
};

use crate::harness::{SHARD, descriptor, small_bounds};

const REPLICA: ReplicaId = ReplicaId(1);

fn checkpoint() -> Checkpoint {
    let position = Position {
        index: LogIndex(1),
        term: Term(1),
        conf: ConfState::of_voters([REPLICA]),
        descriptor: descriptor(&[1]),
    };
    Checkpoint { position, system: None, base: Vec::new(), runs: Vec::new() }
}

fn broken() -> io::Error {
    rustix::io::Errno::IO.into()
}

/// A log whose entries cannot be read any more.
#[derive(Clone, Default)]
struct BreakingLog {
    log: MemoryLog,
    broken: Arc<AtomicBool>,
}

impl Log for BreakingLog {
    fn recovered(&self) -> WalSequence {
        self.log.recovered()
    }

    fn evidence(&self) -> LogEvidence {
        self.log.evidence()
    }

    fn set_complete(&self) -> Result<(), LogError> {
        self.log.set_complete()
    }

    fn peer_sequences(&self) -> Vec<PeerSequence> {
        self.log.peer_sequences()
    }

    fn replicas(&self) -> Result<Vec<(ReplicaId, ReplicaLog)>, LogError> {
        self.log.replicas()
    }

    fn is_tombstone(&self, replica: ReplicaId) -> bool {
        self.log.is_tombstone(replica)
    }

    fn entries(&self, id: ReplicaId, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<Entry>, LogError> {
        if self.broken.load(Ordering::Relaxed) {
            Err(broken().into())
        } else {
            self.log.entries(id, from, to, bytes_max)
        }
    }

    fn term(&self, replica: ReplicaId, index: LogIndex) -> Result<Term, LogError> {
        self.log.term(replica, index)
    }

    fn write(&self, batch: LogBatch) -> Result<(), LogError> {
        self.log.write(batch)
    }

    fn reclaim(&self) -> Result<Vec<ReplicaId>, LogError> {
        self.log.reclaim()
    }
}

#[test]
fn a_log_that_cannot_be_read_ends_the_node_and_abandons_no_replica() {
    let log = BreakingLog::default();
    let entry = |index| Entry {
        index: LogIndex(index),
        term: Term(1),
        kind: EntryKind::Normal,
        data: Default::default(),
        context: Default::default(),
    };
    let create = ReplicaWrite {
        create: Some(SHARD),
        checkpoint: Some(checkpoint()),
        truncate: Some((LogIndex(1), Term(1))),
        entries: (2..9).map(entry).collect(),
        hard_state: Some(HardState { term: Term(1), vote: REPLICA, commit: LogIndex(8) }),
        ..ReplicaWrite::new(REPLICA)
    };
    log.write(LogBatch { sequence: WalSequence(1), replicas: vec![create], peer_sequences: Vec::new() }).unwrap();
    let mut effects = Effects::<u64>::default();
    let shared = Arc::new(log.clone());
    let mut core = Core::open(NodeId(1), Incarnation(2), small_bounds(), shared, 7, &mut effects).unwrap();
    log.broken.store(true, Ordering::Relaxed);
    core.flush(0, &mut effects);
    assert!(matches!(effects.fatal, Some(LogError::Io(_))), "{:?}", effects.fatal);
    assert!(!effects.notices.iter().any(|notice| matches!(notice, Notice::Lost { .. })), "{:?}", effects.notices);
}

/// What the applier does when a load fails so.
fn after_load(error: EngineError) -> Applied<u64> {
    let machines = Arc::new(|_| Box::new(KvMachine::new(Limits::default())) as _);
    let mut applier = Applier::new(Arc::new(MemoryEngine::default()), machines);
    let mut out = Applied::default();
    let open = ApplyTask::Open { replica: REPLICA, shard: SHARD, checkpoint: checkpoint(), replaces: false };
    applier.run(0, open, &mut out);
    let load = out.loads.remove(0);
    applier.loaded(0, &load, Err(error.into()), &mut out);
    out
}

#[test]
fn records_that_cannot_be_read_end_the_node_and_damaged_ones_cost_the_replica() {
    for error in [broken().into(), EngineError::Unsynced(Arc::new(broken()))] {
        let out = after_load(error);
        assert!(out.fatal.is_some() && out.inputs.is_empty(), "{out:?}");
    }
    let out = after_load(EngineError::Object(ObjectId::of(b"x")));
    assert!(out.fatal.is_none() && matches!(out.inputs[..], [Input::Broken { replica: REPLICA }]), "{out:?}");
}
