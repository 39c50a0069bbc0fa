//! What must hold at every moment, whatever goes wrong: Raft's promises (Ongaro & Ousterhout 2014, figure 3), and those
//! that the host adds about disks, objects and replicas.
//!
//! Checked after each event, on what that event changed. A check that fails panics; the run reports it with its seed.
//! Linearizability is judged at the end, from what clients were told (see `workload`).

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use flotilla_meta::MetaState;
use flotilla_replication::{ApplyTask, LostReason, ReadCounts, ReplicaStatus, Role};
use flotilla_storage::{Log as _, LogBatch, ReplicaWrite};
use flotilla_types::{
    ConfState, Entry, Epoch, HardState, LogIndex, Message, MessageKind, NodeId, ReplicaId, ShardDescriptor, ShardId,
    Term,
};

use crate::{disk::Disk, node::Node};

/// What was seen so far.
#[derive(Default)]
pub(crate) struct Checks {
    /// Each entry that any log ever held, as a hash, and the term of the entry before it.
    entries: BTreeMap<(ShardId, LogIndex, Term), (u64, Option<Term>)>,
    committed: BTreeMap<(ShardId, LogIndex), (Term, u64)>,
    replicas: BTreeMap<ReplicaId, Replica>,
    leaders: BTreeMap<(ShardId, Term), ReplicaId>,
    applied: BTreeMap<(ReplicaId, u64), LogIndex>,
    descriptors: BTreeMap<ShardId, Descriptors>,
    /// The newest configuration of each shard, and the one before: entries that were proposed before a change was applied
    /// may be committed by either.
    confs: BTreeMap<ShardId, [ConfState; 2]>,
    /// Nodes whose disks were damaged or put back: their replicas may break or be lost.
    pub(crate) wounded: BTreeSet<NodeId>,
    pub(crate) counts: Counts,
}

/// How much of everything there was, to show that a run was not idle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Terms with a leader.
    pub elections: u64,
    /// Entries that were committed.
    pub commits: u64,
    /// Checkpoints that became durable.
    pub checkpoints: u64,
    /// Snapshots that replaced a replica's state.
    pub snapshots: u64,
    /// Configurations that were committed.
    pub changes: u64,
    /// Replicas that were given up.
    pub lost: u64,
    /// Strong reads that a leader answered without asking.
    pub leased_reads: u64,
    /// Strong reads for which a quorum was asked.
    pub asked_reads: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        self.elections += other.elections;
        self.commits += other.commits;
        self.checkpoints += other.checkpoints;
        self.snapshots += other.snapshots;
        self.changes += other.changes;
        self.lost += other.lost;
        self.leased_reads += other.leased_reads;
        self.asked_reads += other.asked_reads;
    }
}

/// What was ever durable of a replica. Rolling a disk back does not undo it: a promise was made.
#[derive(Default)]
struct Replica {
    shard: Option<ShardId>,
    terms: BTreeMap<LogIndex, Term>,
    checkpoint: LogIndex,
    hard_state: HardState,
    votes: BTreeMap<Term, ReplicaId>,
    destroyed: bool,
    /// Whether its disk was put back to before its last promises.
    stale: bool,
}

#[derive(Default)]
struct Descriptors {
    by_epoch: BTreeMap<Epoch, ShardDescriptor>,
    ever: BTreeSet<ReplicaId>,
    removed: BTreeSet<ReplicaId>,
}

impl Checks {
    /// Looks at a node's replicas after each round of its raft thread.
    pub(crate) fn status(&mut self, node: &Node, replicas: &[ReplicaStatus]) {
        for replica in replicas {
            let id = replica.replica;
            let destroyed = self.replicas.get(&id).is_some_and(|replica| replica.destroyed);
            assert!(!destroyed, "{id} of {} is back although it was destroyed", node.id);
            self.applied(node, id, replica.applied);
            let Some(group) = &replica.group else { continue };
            assert!(replica.applied <= group.commit, "{id} of {} applied what is not committed", node.id);
            if group.role == Role::Leader {
                self.leads(replica.shard, id, group.term, &group.conf);
            }
        }
    }

    fn leads(&mut self, shard: ShardId, replica: ReplicaId, term: Term, conf: &ConfState) {
        if let Some(leader) = self.leaders.get(&(shard, term)) {
            assert_eq!(*leader, replica, "two leaders of {shard} in {term}");
            return;
        }
        let removed = self.descriptors.get(&shard).is_some_and(|known| known.removed.contains(&replica));
        assert!(!removed, "{replica} leads {shard} in {term} although it was removed");
        let voted = |voter: &ReplicaId| {
            // A lone voter needs nobody's vote; it tells nobody before its own is durable (see `sends`).
            let alone = *voter == replica && conf.voters == [replica] && !conf.is_joint();
            alone || self.replicas.get(voter).is_some_and(|voter| voter.votes.get(&term) == Some(&replica))
        };
        assert!(
            has_quorum(conf, voted),
            "{replica} leads {shard} in {term} without durable votes of a quorum of {conf:?}"
        );
        self.leaders.insert((shard, term), replica);
        self.counts.elections += 1;
    }

    /// Looks at the shards of which a node would answer strong reads without asking, at this moment and by its own clock: nobody else
    /// can have been elected.
    pub(crate) fn leases(&self, node: NodeId, leases: &[(ShardId, Term)]) {
        for (shard, term) in leases {
            let newest = self.leaders.range((*shard, Term(0))..=(*shard, Term(u64::MAX))).next_back();
            if let Some(((_, newer), leader)) = newest {
                assert!(newer <= term, "{node} has a lease of {shard} in {term}, and {leader} leads it in {newer}");
            }
        }
    }

    /// Strong reads that a node let through.
    pub(crate) fn reads(&mut self, before: ReadCounts, after: ReadCounts) {
        self.counts.leased_reads += after.by_lease - before.by_lease;
        self.counts.asked_reads += after.by_round - before.by_round;
    }

    /// Looks at a message that leaves a node: it says nothing that the disk of its sender could take back.
    pub(crate) fn sends(&mut self, message: &Message) {
        let (id, to) = (message.from, message.to);
        let known = self.replicas.get(&id);
        let hard_state = known.map(|known| known.hard_state).unwrap_or_default();
        assert!(!known.is_some_and(|known| known.stale), "{id} speaks although its disk went back: {message:?}");
        let asks = matches!(message.kind, MessageKind::RequestPreVote | MessageKind::RequestPreVoteResponse);
        assert!(
            asks || message.term <= hard_state.term,
            "{id} speaks to {to} in {}, and its disk knows {}: {message:?}",
            message.term,
            hard_state.term
        );
        match message.kind {
            MessageKind::RequestVote => {
                let vote = self.vote(id, message.term, id);
                assert_eq!(vote, Some(id), "{id} asks for votes in {} before its own is durable", message.term);
            }
            MessageKind::RequestVoteResponse if !message.reject => {
                let vote = self.vote(id, message.term, to);
                assert_eq!(vote, Some(to), "{id} grants a vote in {} before it is durable", message.term);
            }
            MessageKind::AppendResponse if !message.reject => {
                let holds = known
                    .is_some_and(|known| known.checkpoint >= message.index || known.terms.contains_key(&message.index));
                assert!(holds, "{id} acknowledges {} before it is durable", message.index);
            }
            _ => {}
        }
    }

    /// Whom the voter can have voted for in this term. A vote that shared its disk write with a later term is not on the disk,
    /// and none in that term can come after it: it counts as durable from the moment it is told.
    fn vote(&mut self, voter: ReplicaId, term: Term, told: ReplicaId) -> Option<ReplicaId> {
        let known = self.replicas.get_mut(&voter)?;
        if term < known.hard_state.term {
            known.votes.entry(term).or_insert(told);
        }
        known.votes.get(&term).copied()
    }

    /// Applying never goes back while a node lives.
    pub(crate) fn applied(&mut self, node: &Node, replica: ReplicaId, index: LogIndex) {
        let before = self.applied.entry((replica, node.life)).or_default();
        assert!(*before <= index, "{replica} went back from {before} to {index}");
        *before = index;
    }

    /// Looks at what a node is about to apply: all replicas apply the same, and a quorum holds it.
    pub(crate) fn task(&mut self, task: &ApplyTask<u64>) {
        match task {
            ApplyTask::Apply { replica, entries, conf, descriptor, .. } => {
                for entry in entries {
                    self.commits(*replica, descriptor.shard, entry, conf);
                }
                self.described(descriptor);
            }
            ApplyTask::Open { replaces: true, .. } => self.counts.snapshots += 1,
            _ => {}
        }
    }

    fn commits(&mut self, replica: ReplicaId, shard: ShardId, entry: &Entry, conf: &ConfState) {
        let found = (entry.term, hash_of(entry));
        if let Some(first) = self.committed.get(&(shard, entry.index)) {
            assert_eq!(*first, found, "{replica} commits something else at {} of {shard}", entry.index);
            return;
        }
        self.committed.insert((shard, entry.index), found);
        self.counts.commits += 1;
        let [newest, before] = self.confs.entry(shard).or_insert_with(|| [conf.clone(), conf.clone()]);
        if newest != conf {
            *before = std::mem::replace(newest, conf.clone());
        }
        let (newest, before) = (newest.clone(), before.clone());
        let holds = |voter: &ReplicaId| {
            self.replicas.get(voter).is_some_and(|voter| {
                voter.checkpoint >= entry.index || voter.terms.get(&entry.index) == Some(&entry.term)
            })
        };
        assert!(
            has_quorum(&newest, holds) || has_quorum(&before, holds),
            "{replica} commits {} of {shard} in {} before a quorum of {conf:?} holds it durably",
            entry.index,
            entry.term
        );
    }

    /// Epochs only grow, an epoch means one descriptor, and who was removed does not come back.
    fn described(&mut self, descriptor: &ShardDescriptor) {
        let known = self.descriptors.entry(descriptor.shard).or_default();
        if let Some(first) = known.by_epoch.get(&descriptor.epoch) {
            assert_eq!(first, descriptor, "one epoch, two descriptors");
            return;
        }
        let newest = known.by_epoch.last_key_value().is_none_or(|(newest, _)| *newest < descriptor.epoch);
        known.by_epoch.insert(descriptor.epoch, descriptor.clone());
        self.counts.changes += 1;
        if !newest {
            return;
        }
        let now: BTreeSet<_> = descriptor.replicas.iter().map(|replica| replica.replica).collect();
        let back: Vec<_> = now.intersection(&known.removed).collect();
        assert!(back.is_empty(), "{back:?} are back in {} although they were removed", descriptor.shard);
        known.removed.extend(known.ever.difference(&now));
        known.ever.extend(now);
    }

    /// What a node knows of the cluster only moves forward, and no shard in it goes back.
    pub(crate) fn metadata(&self, node: &Node, before: &MetaState, after: &MetaState) {
        assert!(before.version() < after.version(), "{} takes older metadata", node.id);
        for shard in after.shards() {
            let known = before.shard(shard.id).map(|before| before.descriptor.epoch).unwrap_or_default();
            let now = shard.descriptor.epoch;
            let forward = known.range <= now.range && known.config <= now.config;
            assert!(forward, "{} of {} goes back from {known:?} to {now:?}", shard.id, node.id);
        }
    }

    /// Looks at what became durable.
    pub(crate) fn written(&mut self, node: &Node, batch: &LogBatch) {
        for write in &batch.replicas {
            self.wrote(node, write);
        }
        let touched: BTreeSet<_> = batch.replicas.iter().map(|write| write.replica).collect();
        for (id, log) in node.disk.replicas().expect("a log in memory") {
            let index = log.checkpoint.position.index;
            if touched.contains(&id) {
                assert!(log.truncated.0 <= index, "{id} lacks entries that its checkpoint does not hold");
                assert!(log.hard_state.commit <= log.last, "{id} knows of commits that its log does not reach");
            }
        }
    }

    fn wrote(&mut self, node: &Node, write: &ReplicaWrite) {
        let id = write.replica;
        let replica = self.replicas.entry(id).or_default();
        assert!(!replica.destroyed || write.destroy, "{id} writes although it was destroyed");
        replica.destroyed |= write.destroy;
        assert!(write.create.is_none() || replica.shard.is_none(), "{id} is created for the second time");
        replica.shard = replica.shard.or(write.create);
        if let Some(checkpoint) = &write.checkpoint {
            let index = checkpoint.position.index;
            assert!(replica.checkpoint <= index, "the checkpoint of {id} went back to {index}");
            replica.checkpoint = index;
            let lacking = node.disk.lacking(checkpoint);
            assert!(lacking.is_empty(), "the checkpoint of {id} names {lacking:?}, which {} lacks", node.id);
            self.counts.checkpoints += 1;
        }
        if let Some(hard_state) = write.hard_state {
            let before = replica.hard_state;
            assert!(before.term <= hard_state.term, "{id} went back from {before:?} to {hard_state:?}");
            let forgets =
                before.term == hard_state.term && before.vote != ReplicaId::NONE && before.vote != hard_state.vote;
            assert!(!forgets, "{id} forgets its vote: {hard_state:?} after {before:?}");
            if hard_state.vote != ReplicaId::NONE {
                let vote = *replica.votes.entry(hard_state.term).or_insert(hard_state.vote);
                assert_eq!(vote, hard_state.vote, "{id} votes twice in {}", hard_state.term);
            }
            replica.hard_state = hard_state;
        }
        if write.clear {
            replica.terms.clear();
        }
        if let Some((index, term)) = write.truncate {
            replica.terms.insert(index, term);
        }
        let Some(shard) = replica.shard else { return };
        for entry in &write.entries {
            let previous = entry.index.0.checked_sub(1).and_then(|index| replica.terms.get(&LogIndex(index)));
            let found = (hash_of(entry), previous.copied());
            let first = self.entries.entry((shard, entry.index, entry.term)).or_insert(found);
            assert_eq!(first.0, found.0, "{shard} has two entries at {} of {}", entry.index, entry.term);
            if let (Some(first), Some(found)) = (first.1, found.1) {
                assert_eq!(first, found, "logs of {shard} agree at {} and differ before it", entry.index);
            }
            first.1 = first.1.or(found.1);
            // Whatever stood behind a new entry is gone.
            replica.terms.split_off(&entry.index);
            replica.terms.insert(entry.index, entry.term);
        }
    }

    /// A disk is put back to an older copy, and peers know: what its replicas promised since, they may not break.
    pub(crate) fn rolled_back(&mut self, copy: &Disk) {
        for (id, log) in copy.replicas().expect("a log in memory") {
            let Some(known) = self.replicas.get_mut(&id) else { continue };
            let conf = &log.checkpoint.position.conf;
            let alone = conf.voters == [id] && !conf.is_joint();
            let last = known.terms.last_key_value().map(|(index, _)| *index).unwrap_or_default();
            known.stale |= !alone && (known.hard_state != log.hard_state || last > log.last);
        }
    }

    /// A node gave replicas up: it must have had a reason.
    pub(crate) fn lost(&mut self, node: &Node, replicas: &[(ShardId, ReplicaId)], reason: LostReason) {
        assert!(self.wounded.contains(&node.id), "{} lost {replicas:?} ({reason:?}) with a sound disk", node.id);
        self.counts.lost += replicas.len() as u64;
    }
}

/// Whether a majority of each half of a configuration is `counted` (dissertation, §4.3).
fn has_quorum(conf: &ConfState, counted: impl Fn(&ReplicaId) -> bool) -> bool {
    let majority = |voters: &[ReplicaId]| {
        voters.is_empty() || 2 * voters.iter().filter(|voter| counted(voter)).count() > voters.len()
    };
    !conf.voters.is_empty() && majority(&conf.voters) && majority(&conf.voters_outgoing)
}

fn hash_of(entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entry.kind, &entry.data, &entry.context).hash(&mut hasher);
    hasher.finish()
}
