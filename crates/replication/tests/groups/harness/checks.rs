//! What must hold at every moment, whatever happens: Raft's promises, and those of the host to its clients.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_replication::{ApplyTask, ReplicaStatus, Role};
use flotilla_storage::ReplicaLog;
use flotilla_types::{LogIndex, NodeId, ReplicaId, ShardId, Term};

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Checks {
    committed: BTreeMap<(ShardId, LogIndex), (Term, Bytes, Bytes)>,
    leaders: BTreeMap<(ShardId, Term), ReplicaId>,
    applied: BTreeMap<(ReplicaId, u64), LogIndex>,
    checkpoints: BTreeMap<ReplicaId, LogIndex>,
    registers: BTreeMap<Bytes, Register>,
    /// Replicas that installed a snapshot.
    pub installed: BTreeSet<ReplicaId>,
    /// Strong reads that were answered.
    pub reads: u64,
    /// Writes that were acknowledged.
    pub writes: u64,
}

/// A key whose number only grows.
#[derive(Default)]
struct Register {
    /// The highest number that anybody was told.
    known: u64,
    /// The highest number that anybody may have written.
    asked: u64,
    /// The sums that additions were told, each once.
    sums: BTreeSet<u64>,
}

impl Checks {
    /// Looks at a node after each round.
    pub(crate) fn status(&mut self, node: NodeId, life: u64, replicas: &[ReplicaStatus]) {
        for replica in replicas {
            self.applied(replica.replica, life, replica.applied);
            let Some(group) = &replica.group else { continue };
            assert!(replica.applied <= group.commit, "{} of {node} applied what is not committed", replica.replica);
            if group.role == Role::Leader {
                let leader = *self.leaders.entry((replica.shard, group.term)).or_insert(replica.replica);
                assert_eq!(leader, replica.replica, "two leaders in {}", group.term);
            }
        }
    }

    /// Looks at the shards of which a node would answer strong reads without asking: nobody else can have been elected.
    pub(crate) fn leases(&self, node: NodeId, leases: &[(ShardId, Term)]) {
        for (shard, term) in leases {
            let newest = self.leaders.range((*shard, Term(0))..=(*shard, Term(u64::MAX))).next_back();
            if let Some(((_, newer), leader)) = newest {
                assert!(newer <= term, "{node} has a lease of {shard} in {term}, and {leader} leads it in {newer}");
            }
        }
    }

    /// Applying never goes back while a node lives.
    pub(crate) fn applied(&mut self, replica: ReplicaId, life: u64, index: LogIndex) {
        let before = self.applied.entry((replica, life)).or_default();
        assert!(*before <= index, "{replica} went back from {before} to {index}");
        *before = index;
    }

    /// Looks at what a node is about to apply: all replicas apply the same.
    pub(crate) fn task(&mut self, task: &ApplyTask<u64>) {
        match task {
            ApplyTask::Apply { replica, entries, descriptor, .. } => {
                for entry in entries {
                    let found = (entry.term, entry.data.clone(), entry.context.clone());
                    let first = self.committed.entry((descriptor.shard, entry.index)).or_insert_with(|| found.clone());
                    assert_eq!(*first, found, "{replica} commits something else at {}", entry.index);
                }
            }
            ApplyTask::Open { replica, replaces: true, .. } => {
                self.installed.insert(*replica);
            }
            _ => {}
        }
    }

    /// Looks at a log after each write.
    pub(crate) fn durable(&mut self, replicas: &[(ReplicaId, ReplicaLog)]) {
        for (id, log) in replicas {
            let index = log.checkpoint.position.index;
            let before = self.checkpoints.entry(*id).or_default();
            assert!(*before <= index, "the checkpoint of {id} went back from {before} to {index}");
            *before = index;
            assert!(log.truncated.0 <= index, "{id} lacks entries that its checkpoint does not hold");
        }
    }

    /// These replicas were put back to an earlier state, from outside.
    pub(crate) fn forget(&mut self, replicas: Vec<(ReplicaId, ReplicaLog)>) {
        self.checkpoints.clear();
        self.durable(&replicas);
    }

    fn register(&mut self, key: &Bytes) -> &mut Register {
        self.registers.entry(key.clone()).or_default()
    }

    /// What somebody who starts now must at least see.
    pub(crate) fn known(&mut self, key: &Bytes) -> u64 {
        self.register(key).known
    }

    /// What an operation on a growing number may write at most.
    pub(crate) fn asked(&mut self, key: &Bytes, number: impl FnOnce(u64) -> u64) -> u64 {
        let register = self.register(key);
        register.asked = register.asked.max(number(register.asked));
        register.asked
    }

    /// An addition of one was told its sum.
    pub(crate) fn added(&mut self, key: &Bytes, sum: u64, known: u64) {
        self.writes += 1;
        self.seen(key, sum, known + 1);
        assert!(self.register(key).sums.insert(sum), "two additions to {key:?} were told {sum}");
    }

    /// A store was acknowledged.
    pub(crate) fn stored(&mut self, key: &Bytes, number: u64) {
        self.writes += 1;
        self.seen(key, number, 0);
    }

    /// A strong read was answered.
    pub(crate) fn read(&mut self, key: &Bytes, number: u64, known: u64) {
        self.reads += 1;
        self.seen(key, number, known);
    }

    fn seen(&mut self, key: &Bytes, number: u64, known: u64) {
        let register = self.register(key);
        assert!(number >= known, "{key:?} is {number}, but {known} was there before");
        assert!(number <= register.asked, "{key:?} is {number}, but nobody wrote more than {}", register.asked);
        register.known = register.known.max(number);
    }

    /// What each key must hold once nobody writes any more.
    pub(crate) fn totals(&self) -> BTreeMap<Bytes, u64> {
        self.registers.iter().map(|(key, register)| (key.clone(), register.asked)).collect()
    }
}
