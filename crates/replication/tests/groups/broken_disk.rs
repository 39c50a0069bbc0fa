//! A disk that fails, or a binary that is too old: the node ends, and no replica is given up.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use flotilla_consensus::GroupError;
use flotilla_kv::{KvMachine, Limits};
use flotilla_replication::{Applied, Applier, ApplyTask, Batch, Core, Effects, Input, Notice, RequestError};
use flotilla_storage::{
    EngineError, Log, LogBatch, LogError, LogEvidence, MemoryEngine, MemoryLog, PeerSequence, ReplicaLog, ReplicaWrite,
    switch_command,
};
use flotilla_types::{
    Checkpoint, ConfState, Entry, EntryKind, HardState, Incarnation, LogIndex, NodeId, ObjectId, Position, ReplicaId,
    ShardId, Term, Timestamp, VersionRange, WalSequence,
};

use crate::harness::{SHARD, descriptor, small_bounds};

const REPLICA: ReplicaId = ReplicaId(1);

fn checkpoint() -> Checkpoint {
    let position = Position {
        index: LogIndex(1),
        term: Term(1),
        conf: Arc::new(ConfState::of_voters([REPLICA])),
        descriptor: Arc::new(descriptor(&[1])),
    };
    Checkpoint::empty(position)
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
    assert!(matches!(effects.fatal, Some(GroupError::Log(LogError::Io(_)))), "{:?}", effects.fatal);
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

#[test]
fn what_only_a_newer_binary_knows_costs_no_replica_and_ends_the_node_if_the_metadata_group_says_so() {
    let newer = switch_command(VersionRange::supported().max.next());
    let newer = Batch { timestamp: Timestamp(1), refs: flotilla_types::Refs::NONE, commands: vec![newer] }.encode();
    let mut other_format = newer.to_vec();
    other_format[0] += 2;
    for (shard, data) in [
        (SHARD, newer.clone()),
        (SHARD, other_format.clone().into()),
        (ShardId::META, newer),
        (ShardId::META, other_format.into()),
    ] {
        let engine = Arc::new(MemoryEngine::default());
        let machines = Arc::new(|_| Box::new(KvMachine::new(Limits::default())) as _);
        let mut applier = Applier::new(engine.clone(), machines);
        let mut out = Applied::<u64>::default();
        let checkpoint = checkpoint();
        let open = ApplyTask::Open { replica: REPLICA, shard, checkpoint: checkpoint.clone(), replaces: false };
        applier.run(0, open, &mut out);
        let load = out.loads.remove(0);
        applier.loaded(0, &load, load.run(&*engine), &mut out);
        assert!(matches!(out.inputs[..], [Input::Opened { .. }]) && out.fatal.is_none(), "{out:?}");
        out.inputs.clear();

        let entry = Entry { index: LogIndex(2), term: Term(1), kind: EntryKind::Normal, data, context: Bytes::new() };
        let Position { conf, descriptor, .. } = checkpoint.position;
        let waiters = vec![(LogIndex(2), vec![7])];
        let task = ApplyTask::Apply {
            replica: REPLICA,
            entries: vec![entry],
            shard_change: None,
            conf,
            descriptor,
            waiters,
            source: None,
        };
        applier.run(0, task, &mut out);
        assert!(out.inputs.is_empty(), "{out:?}");
        assert!(matches!(out.replies[..], [(7, Err(RequestError::Unknown))]), "{out:?}");
        let reason = out.fatal.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(reason.contains("install a binary that supports"), shard == ShardId::META, "{out:?}");
    }
}
