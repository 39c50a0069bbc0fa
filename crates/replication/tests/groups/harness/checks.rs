//! Invariants that are checked continuously: Raft's safety properties, and the host's guarantees to its
//! clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_replication::{ApplyTask, ReplicaStatus, Role, ShardChange};
use flotilla_storage::{ReplicaLog, conformance::DescriptorHistory};
use flotilla_types::{EntryKind, LogIndex, NodeId, ObjectId, ReplicaId, ShardId, TableKind, Tables, Term};
use parking_lot::Mutex;

/// The observations so far.
#[derive(Default)]
pub(crate) struct Checks {
    committed: BTreeMap<(ShardId, LogIndex), (Term, Bytes, Bytes)>,
    leaders: BTreeMap<(ShardId, Term), ReplicaId>,
    applied: BTreeMap<(ReplicaId, u64), LogIndex>,
    checkpoints: BTreeMap<ReplicaId, LogIndex>,
    registers: BTreeMap<Bytes, Register>,
    /// By which descriptors the replicas judge; the state machines report to it too.
    pub descriptors: Arc<Mutex<DescriptorHistory>>,
    /// Committed changes of the range.
    pub shard_changes: BTreeSet<LogIndex>,
    /// Committed folds.
    pub folds: BTreeSet<LogIndex>,
    /// The base of each of them, and the replicas that have named it.
    pub bases: BTreeMap<(ShardId, LogIndex), (ObjectId, BTreeSet<ReplicaId>)>,
    /// How often a further replica named the base that another one had named.
    pub bases_compared: usize,
    /// Replicas that have named a base that no log had ordered.
    pub local_bases: BTreeSet<ReplicaId>,
    /// Replicas that installed a snapshot.
    pub installed: BTreeSet<ReplicaId>,
    /// Snapshot messages that were sent.
    pub snapshots_sent: u64,
    /// Orders of what entries and commands refer to that were fulfilled.
    pub gathered: u64,
    /// Entries that refer to objects and were written to a log.
    pub referring: u64,
    /// Bytes of objects that were stored from peers.
    pub pulled_bytes: usize,
    /// Answers that lacked an object.
    pub objects_gone: u64,
    /// Strong reads that were answered.
    pub reads: u64,
    /// Writes that were acknowledged.
    pub writes: u64,
}

/// A key whose number only grows.
#[derive(Default)]
struct Register {
    /// The highest number in any answer.
    observed: u64,
    /// The highest number that may have been written.
    requested: u64,
    /// The sums that additions returned, each once.
    sums: BTreeSet<u64>,
}

impl Checks {
    /// Checks a node's status after each round.
    pub(crate) fn status(&mut self, node: NodeId, life: u64, replicas: &[ReplicaStatus]) {
        for replica in replicas {
            self.applied(replica.replica, life, replica.applied);
            let Some(group) = &replica.group else { continue };
            assert!(replica.applied <= group.commit, "{} of {node} applied an uncommitted entry", replica.replica);
            if group.role == Role::Leader {
                let leader = *self.leaders.entry((replica.shard, group.term)).or_insert(replica.replica);
                assert_eq!(leader, replica.replica, "two leaders in {}", group.term);
            }
        }
    }

    /// Checks the leases of a node: no other leader can have been elected.
    pub(crate) fn leases(&self, node: NodeId, leases: &[(ShardId, Term)]) {
        for (shard, term) in leases {
            let newest = self.leaders.range((*shard, Term(0))..=(*shard, Term(u64::MAX))).next_back();
            if let Some(((_, newer), leader)) = newest {
                assert!(newer <= term, "{node} has a lease of {shard} in {term}, and {leader} leads it in {newer}");
            }
        }
    }

    /// Checks that the applied index never goes back before a restart.
    pub(crate) fn applied(&mut self, replica: ReplicaId, life: u64, index: LogIndex) {
        let before = self.applied.entry((replica, life)).or_default();
        assert!(*before <= index, "{replica} went back from {before} to {index}");
        *before = index;
    }

    /// Checks a task: all replicas apply the same entries.
    pub(crate) fn task(&mut self, task: &ApplyTask<u64>) {
        match task {
            ApplyTask::Apply { replica, entries, descriptor, .. } => {
                let mut descriptors = self.descriptors.lock();
                for entry in entries {
                    let change = (entry.kind == EntryKind::Shard).then(|| ShardChange::decode(&entry.context));
                    match change {
                        Some(Ok(ShardChange::Bump)) => {
                            let _ = descriptors.changes_range(descriptor.shard, entry.index);
                            self.shard_changes.insert(entry.index);
                        }
                        Some(Ok(ShardChange::Fold { .. })) => drop(self.folds.insert(entry.index)),
                        // This world has one shard, which is neither split nor merged.
                        Some(_) | None => {}
                    }
                    let found = (entry.term, entry.data.clone(), entry.context.clone());
                    let first = self.committed.entry((descriptor.shard, entry.index)).or_insert_with(|| found.clone());
                    assert_eq!(*first, found, "{replica} commits a different entry at {}", entry.index);
                }
                descriptors.holds_after(entries.last().expect("a task has entries").index, descriptor);
            }
            ApplyTask::Open { replica, replaces: true, .. } => {
                self.installed.insert(*replica);
            }
            _ => {}
        }
    }

    /// Checks a log after each write.
    pub(crate) fn durable(&mut self, replicas: &[(ReplicaId, ReplicaLog)]) {
        for (id, log) in replicas {
            let index = log.checkpoint.position.index;
            let before = self.checkpoints.entry(*id).or_default();
            assert!(*before <= index, "the checkpoint of {id} went back from {before} to {index}");
            *before = index;
            assert!(log.truncated.0 <= index, "{id} truncated entries that its checkpoint does not cover");
            self.bases(*id, log);
            // A replica that has nothing yet was only told a descriptor.
            if index > LogIndex(0) {
                self.descriptors.lock().holds_after(index, &log.checkpoint.position.descriptor);
            }
        }
    }

    /// Replicas whose base is of the same fold name the same one.
    fn bases(&mut self, replica: ReplicaId, log: &ReplicaLog) {
        let Tables::Manifests(tables) = &log.checkpoint.tables else { return };
        for base in tables.iter().filter(|table| table.kind == TableKind::Base) {
            let Some(fold) = base.fold else {
                self.local_bases.insert(replica);
                continue;
            };
            let first = self.bases.entry((log.shard, fold));
            let (first, named_by) = first.or_insert_with(|| (base.manifest, BTreeSet::from([replica])));
            assert_eq!(*first, base.manifest, "{replica} has another base at {fold}");
            self.bases_compared += usize::from(named_by.insert(replica));
        }
    }

    /// These replicas were restored from a backup: their checkpoints may go back.
    pub(crate) fn forget(&mut self, replicas: Vec<(ReplicaId, ReplicaLog)>) {
        self.checkpoints.clear();
        self.durable(&replicas);
    }

    fn register(&mut self, key: &Bytes) -> &mut Register {
        self.registers.entry(key.clone()).or_default()
    }

    /// The least number that an operation starting now must see.
    pub(crate) fn observed(&mut self, key: &Bytes) -> u64 {
        self.register(key).observed
    }

    /// Records the number that an operation may write, given the highest requested so far.
    pub(crate) fn requested(&mut self, key: &Bytes, number: impl FnOnce(u64) -> u64) -> u64 {
        let register = self.register(key);
        register.requested = register.requested.max(number(register.requested));
        register.requested
    }

    /// Checks the sum that an addition of one returned. `observed` is from the start of the operation.
    pub(crate) fn added(&mut self, key: &Bytes, sum: u64, observed: u64) {
        self.writes += 1;
        self.check_number(key, sum, observed + 1);
        assert!(self.register(key).sums.insert(sum), "two additions to {key:?} returned {sum}");
    }

    /// Records an acknowledged store.
    pub(crate) fn stored(&mut self, key: &Bytes, number: u64) {
        self.writes += 1;
        self.check_number(key, number, 0);
    }

    /// Checks the answer to a strong read. `observed` is from the start of the operation.
    pub(crate) fn read(&mut self, key: &Bytes, number: u64, observed: u64) {
        self.reads += 1;
        self.check_number(key, number, observed);
    }

    fn check_number(&mut self, key: &Bytes, number: u64, least: u64) {
        let register = self.register(key);
        assert!(number >= least, "{key:?} is {number}, but must be at least {least}");
        let most = register.requested;
        assert!(number <= most, "{key:?} is {number}, but at most {most} was ever written");
        register.observed = register.observed.max(number);
    }

    /// The number that each key must hold after all writes are done.
    pub(crate) fn totals(&self) -> BTreeMap<Bytes, u64> {
        self.registers.iter().map(|(key, register)| (key.clone(), register.requested)).collect()
    }
}
