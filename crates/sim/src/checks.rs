//! The invariants that hold at all times, under all faults: Raft's safety properties (Ongaro & Ousterhout
//! 2014, figure 3), and those that the host adds for disks, objects and replicas.
//!
//! Each event is followed by checks of the state it changed. A check that fails panics; the run reports it
//! with its seed. Linearizability is checked at the end, from the history of the clients (see
//! `linearizability`).

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_control::{Finding, ShardConsistency};
use flotilla_meta::{MetaState, NodeRole};
use flotilla_replication::{
    ApplyTask, Freeze, LostReason, Merge, ReadCounts, ReplicaStatus, Role, ShardChange, Split, refs_of,
};
use flotilla_route::Sequence;
use flotilla_storage::{
    ApplyContext, Log as _, LogBatch, ReplicaWrite,
    conformance::{DescriptorHistory, Observer},
};
use flotilla_types::{
    Checkpoint, ConfState, Entry, Epoch, HardState, LogIndex, Message, MessageKind, NodeId, ObjectId, ReplicaId,
    SessionId, ShardDescriptor, ShardId, Tables, Term, Timestamp,
};
use parking_lot::Mutex;

use crate::{disk::Disk, node::Node};

/// Everything observed so far that later events are checked against.
#[derive(Default)]
pub(crate) struct Checks {
    /// Each entry that any log ever held, as a hash, and the term of the entry before it.
    entries: BTreeMap<(ShardId, LogIndex, Term), (u64, Option<Term>)>,
    committed: BTreeMap<(ShardId, LogIndex), (Term, u64)>,
    replicas: BTreeMap<ReplicaId, Replica>,
    leaders: BTreeMap<(ShardId, Term), ReplicaId>,
    applied: BTreeMap<(ReplicaId, u64), LogIndex>,
    descriptors: BTreeMap<ShardId, Descriptors>,
    /// The shards that were split off: from which one, at which entry, and how.
    splits: BTreeMap<ShardId, (ShardId, LogIndex, Split)>,
    /// Epochs in which shards were frozen and have been merged, with what they were merged into.
    merged: BTreeMap<(ShardId, Epoch), ShardId>,
    /// Epochs in which shards were frozen and have got their keys back.
    thawed: BTreeSet<(ShardId, Epoch)>,
    /// By which descriptors replicas judge their entries; the state machines report to it too.
    history: Arc<Mutex<DescriptorHistory>>,
    /// The base of each fold, and the replicas that have named it.
    bases: BTreeMap<(ShardId, LogIndex), (ObjectId, BTreeSet<ReplicaId>)>,
    /// The command, as a hash, that each number of each session names. Over all shards, because shards that
    /// split or merge copy and unite their sessions.
    commands: BTreeMap<(SessionId, Sequence), u64>,
    /// The newest configuration of each shard and the one before: entries proposed before a change was
    /// applied may be committed by a quorum of either.
    confs: BTreeMap<ShardId, [ConfState; 2]>,
    /// Nodes whose disks were damaged or rolled back, or that are removed: they may lose replicas.
    pub(crate) damaged_nodes: BTreeSet<NodeId>,
    /// Shards of which one replica got a flaw.
    pub(crate) flawed: BTreeSet<ShardId>,
    pub(crate) counts: Counts,
}

/// Counts that show that a run was not idle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Elections won: pairs of shard and term that had a leader.
    pub elections: u64,
    /// Entries that were committed.
    pub commits: u64,
    /// Checkpoints that became durable.
    pub checkpoints: u64,
    /// Snapshots that replaced a replica's state.
    pub snapshots: u64,
    /// Answers to pulls that lacked an object.
    pub objects_gone: u64,
    /// Objects that pulls have fetched.
    pub objects_fetched: u64,
    /// Orders of what entries and commands refer to that were fulfilled.
    pub gathered: u64,
    /// Large values that were acknowledged.
    pub values: u64,
    /// Entries that refer to objects and were written to a log.
    pub referring: u64,
    /// Those of them that came from another node than the one that offers the snapshot.
    pub objects_elsewhere: u64,
    /// Objects whose bytes did not match their ids.
    pub objects_bad: u64,
    /// Shard descriptors with a new epoch that were applied.
    pub config_changes: u64,
    /// Changes of the range epoch that were committed.
    pub range_changes: u64,
    /// Shards that were split off.
    pub splits: u64,
    /// Shards that were merged into their neighbours.
    pub merges: u64,
    /// Shards that were frozen and have got their keys back.
    pub thaws: u64,
    /// Bases of folds that a second replica, or a further one, has made as the first one did.
    pub bases_compared: u64,
    /// Replicas that nodes abandoned.
    pub replicas_lost: u64,
    /// Replicas that were given up because they differ from others.
    pub replicas_diverged: u64,
    /// Comparisons of replicas that found them to be equal.
    pub found_equal: u64,
    /// Replicas that were reported as damaged, and went on.
    pub replicas_damaged: u64,
    /// Strong reads served under a lease.
    pub leased_reads: u64,
    /// Strong reads confirmed by a quorum round.
    pub quorum_reads: u64,
    /// Routes of clients' requests that a shard refused as outdated.
    pub stale_routes: u64,
    /// Attempts of writes in doubt that went to a shard whose range had changed.
    pub asked_again: u64,
}

impl Counts {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Self) {
        self.elections += other.elections;
        self.commits += other.commits;
        self.checkpoints += other.checkpoints;
        self.snapshots += other.snapshots;
        self.objects_gone += other.objects_gone;
        self.objects_fetched += other.objects_fetched;
        self.gathered += other.gathered;
        self.referring += other.referring;
        self.values += other.values;
        self.objects_elsewhere += other.objects_elsewhere;
        self.objects_bad += other.objects_bad;
        self.config_changes += other.config_changes;
        self.range_changes += other.range_changes;
        self.splits += other.splits;
        self.merges += other.merges;
        self.thaws += other.thaws;
        self.bases_compared += other.bases_compared;
        self.replicas_lost += other.replicas_lost;
        self.replicas_diverged += other.replicas_diverged;
        self.found_equal += other.found_equal;
        self.replicas_damaged += other.replicas_damaged;
        self.leased_reads += other.leased_reads;
        self.quorum_reads += other.quorum_reads;
        self.stale_routes += other.stale_routes;
        self.asked_again += other.asked_again;
    }
}

/// The state of a replica that was ever durable. Rolling a disk back does not undo it: peers may rely on it.
#[derive(Default)]
struct Replica {
    shard: Option<ShardId>,
    terms: BTreeMap<LogIndex, Term>,
    checkpoint: LogIndex,
    hard_state: HardState,
    votes: BTreeMap<Term, ReplicaId>,
    destroyed: bool,
    /// Whether its disk was rolled back to before its last promises.
    stale: bool,
}

#[derive(Default)]
struct Descriptors {
    by_epoch: BTreeMap<Epoch, ShardDescriptor>,
    ever: BTreeSet<ReplicaId>,
    removed: BTreeSet<ReplicaId>,
}

impl Checks {
    /// Checks a node's replicas after each round of its raft thread.
    pub(crate) fn status(&mut self, node: &Node, replicas: &[ReplicaStatus]) {
        for replica in replicas {
            let id = replica.replica;
            let destroyed = self.replicas.get(&id).is_some_and(|replica| replica.destroyed);
            assert!(!destroyed, "{id} of {} exists again after it was destroyed", node.id);
            assert!(node.role != NodeRole::Gateway, "{id} is on the gateway {}", node.id);
            self.applied(node, id, replica.applied);
            let Some(group) = &replica.group else { continue };
            assert!(replica.applied <= group.commit, "{id} of {} applied entries that are not committed", node.id);
            if group.role == Role::Leader {
                self.leader(replica.shard, id, group.term, &group.conf);
            }
        }
    }

    fn leader(&mut self, shard: ShardId, replica: ReplicaId, term: Term, conf: &ConfState) {
        if let Some(leader) = self.leaders.get(&(shard, term)) {
            assert_eq!(*leader, replica, "two leaders of {shard} in {term}");
            return;
        }
        let removed = self.descriptors.get(&shard).is_some_and(|known| known.removed.contains(&replica));
        assert!(!removed, "{replica} leads {shard} in {term} after it was removed");
        // The entry of the split is the vote of all, and a quorum of the shard before holds it.
        let inherits = term == Term(2) && self.splits.get(&shard).is_some_and(|(_, _, split)| split.heir == replica);
        let voted = |voter: &ReplicaId| {
            if inherits {
                return true;
            }
            // A lone voter needs no other vote; it sends nothing before its own is durable (see `message`).
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

    /// Checks that a number which a gateway is about to propose names no other command.
    pub(crate) fn numbered(&mut self, session: SessionId, sequence: Sequence, command: &[u8]) {
        assert!(session != SessionId(0) && sequence.0 != 0, "a command of a gateway has no number");
        let mut hasher = DefaultHasher::new();
        command.hash(&mut hasher);
        let hash = hasher.finish();
        let first = *self.commands.entry((session, sequence)).or_insert(hash);
        assert_eq!(first, hash, "number {} of session {session} names two commands", sequence.0);
    }

    /// Checks that a write is later than what its gateway had seen of any shard.
    pub(crate) fn caused(&self, seen: Timestamp, version: Timestamp) {
        assert!(seen < version, "a write got {version:?} although its gateway had seen {seen:?} before");
    }

    /// Checks the leases that a node holds at this moment by its own clock: no other replica may have been
    /// elected since.
    pub(crate) fn leases(&self, node: NodeId, leases: &[(ShardId, Term)]) {
        for (shard, term) in leases {
            let newest = self.leaders.range((*shard, Term(0))..=(*shard, Term(u64::MAX))).next_back();
            if let Some(((_, newer), leader)) = newest {
                assert!(newer <= term, "{node} holds a lease of {shard} in {term}, but {leader} leads it in {newer}");
            }
        }
    }

    /// Counts the strong reads that a node confirmed.
    pub(crate) fn reads(&mut self, before: ReadCounts, after: ReadCounts) {
        self.counts.leased_reads += after.by_lease - before.by_lease;
        self.counts.quorum_reads += after.by_round - before.by_round;
    }

    /// Checks a message that leaves a node: it must promise nothing that is not durable on the sender.
    pub(crate) fn message(&mut self, message: &Message) {
        let (id, to) = (message.from, message.to);
        let known = self.replicas.get(&id);
        let hard_state = known.map(|known| known.hard_state).unwrap_or_default();
        assert!(
            !known.is_some_and(|known| known.stale),
            "{id} sends a message after its disk was rolled back: {message:?}"
        );
        let is_pre_vote = matches!(message.kind, MessageKind::RequestPreVote | MessageKind::RequestPreVoteResponse);
        assert!(
            is_pre_vote || message.term <= hard_state.term,
            "{id} sends to {to} in {}, but only {} is durable: {message:?}",
            message.term,
            hard_state.term
        );
        match message.kind {
            MessageKind::RequestVote => {
                let vote = self.vote(id, message.term, id);
                assert_eq!(vote, Some(id), "{id} requests votes in {} before its own is durable", message.term);
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

    /// The candidate that the voter has durably voted for in this term. A vote whose disk write also carried
    /// a later term is not on the disk, but no other vote in that term can follow: it counts as durable once
    /// it is sent.
    fn vote(&mut self, voter: ReplicaId, term: Term, candidate: ReplicaId) -> Option<ReplicaId> {
        let known = self.replicas.get_mut(&voter)?;
        if term < known.hard_state.term {
            known.votes.entry(term).or_insert(candidate);
        }
        known.votes.get(&term).copied()
    }

    /// Checks that the applied index does not decrease while a process runs.
    pub(crate) fn applied(&mut self, node: &Node, replica: ReplicaId, index: LogIndex) {
        let before = self.applied.entry((replica, node.life)).or_default();
        assert!(*before <= index, "the applied index of {replica} went back from {before} to {index}");
        *before = index;
    }

    /// Checks entries that a node is about to apply: all replicas apply the same ones, and a quorum holds
    /// them durably.
    pub(crate) fn apply_task(&mut self, task: &ApplyTask<u64>) {
        match task {
            ApplyTask::Apply { replica, entries, shard_change, conf, descriptor, .. } => {
                for entry in entries {
                    self.committed_entry(*replica, descriptor.shard, entry, conf);
                }
                if let (Some(last), Some(change)) = (entries.last(), shard_change) {
                    self.shard_change(*replica, last.index, change, descriptor);
                }
                if let Some(last) = entries.last() {
                    self.history.lock().holds_after(last.index, descriptor);
                }
                self.descriptor(descriptor);
            }
            ApplyTask::Open { replaces: true, .. } => self.counts.snapshots += 1,
            _ => {}
        }
    }

    /// Checks a change of a shard, of which this is the descriptor after it.
    fn shard_change(&mut self, replica: ReplicaId, index: LogIndex, change: &ShardChange, after: &ShardDescriptor) {
        match change {
            ShardChange::Split(split) => self.split(replica, index, split, after),
            ShardChange::Merge(merge) => self.merge(index, merge, after),
            ShardChange::Freeze(_) | ShardChange::Abort { .. } => {
                self.history.lock().changes_range(after.shard, index);
            }
            ShardChange::Thaw(thaw) => {
                if self.history.lock().changes_range(after.shard, index) {
                    self.counts.thaws += 1;
                }
                let frozen = (after.shard, Freeze::epoch_after(thaw.epoch));
                let merged = self.merged.get(&frozen);
                assert!(merged.is_none(), "{} gets its keys back, and was merged into {merged:?}", after.shard);
                self.thawed.insert(frozen);
            }
            ShardChange::Bump => {
                if self.history.lock().changes_range(after.shard, index) {
                    self.counts.range_changes += 1;
                }
            }
            ShardChange::Fold { .. } => {}
        }
    }

    /// Checks a merge: a shard that was merged had not got its keys back, and was merged into one shard.
    fn merge(&mut self, index: LogIndex, merge: &Merge, after: &ShardDescriptor) {
        if self.history.lock().moves_range(after.shard, index, after.epoch.range) {
            self.counts.range_changes += 1;
            self.counts.merges += 1;
        }
        let frozen = (merge.source, merge.source_epoch);
        assert!(!self.thawed.contains(&frozen), "{} is merged, and has its keys again", merge.source);
        let into = *self.merged.entry(frozen).or_insert(after.shard);
        assert_eq!(into, after.shard, "{} is merged into two shards", merge.source);
        assert_eq!(after.range.end, merge.source_range.end, "{} lacks keys that it took over", after.shard);
    }

    /// Checks the split of a shard, of which this is the descriptor after it.
    fn split(&mut self, replica: ReplicaId, index: LogIndex, split: &Split, after: &ShardDescriptor) {
        let first = self.splits.entry(split.child).or_insert_with(|| (after.shard, index, split.clone()));
        assert_eq!(*first, (after.shard, index, split.clone()), "{replica} splits {} off otherwise", split.child);
        if self.history.lock().changes_range(after.shard, index) {
            self.counts.range_changes += 1;
            self.counts.splits += 1;
        }
        assert_eq!(after.range.end, split.at, "{replica} keeps keys that it gave up");
    }

    /// Checks that the shards of each collection share its keys among them: none has no shard, and none two.
    fn covers(node: &Node, meta: &MetaState) {
        let mut ends: BTreeMap<_, (ShardId, Bytes)> = BTreeMap::new();
        let mut shards: Vec<_> = meta.shards().filter(|shard| shard.id != ShardId::META).collect();
        shards.sort_unstable_by(|a, b| a.descriptor.range.start.cmp(&b.descriptor.range.start));
        for record in shards {
            let range = &record.descriptor.range;
            let before = ends.insert(record.collection, (record.id, range.end.clone()));
            if let Some((before, end)) = before {
                assert_eq!(end, range.start, "{before} and {} of {} do not meet", record.id, node.id);
            }
        }
    }

    /// Tells the checks by which descriptor a state machine applies each entry: the one after the entry
    /// before.
    pub(crate) fn observer(&self) -> Observer {
        let history = self.history.clone();
        Arc::new(move |context: &ApplyContext<'_>| {
            history.lock().holds_after(LogIndex(context.index.0 - 1), context.descriptor);
        })
    }

    fn committed_entry(&mut self, replica: ReplicaId, shard: ShardId, entry: &Entry, conf: &ConfState) {
        let found = (entry.term, hash_of(entry));
        if let Some(first) = self.committed.get(&(shard, entry.index)) {
            assert_eq!(*first, found, "{replica} commits another entry at {} of {shard}", entry.index);
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

    /// Checks that epochs only grow, that an epoch has one descriptor, and that removed replicas do not come
    /// back.
    fn descriptor(&mut self, descriptor: &ShardDescriptor) {
        let known = self.descriptors.entry(descriptor.shard).or_default();
        if let Some(first) = known.by_epoch.get(&descriptor.epoch) {
            assert_eq!(first, descriptor, "two descriptors have the same epoch");
            return;
        }
        // A change of the range alone leaves the replicas as they are.
        let newest = known.by_epoch.keys().all(|known| known.config < descriptor.epoch.config);
        known.by_epoch.insert(descriptor.epoch, descriptor.clone());
        self.counts.config_changes += 1;
        if !newest {
            return;
        }
        let now: BTreeSet<_> = descriptor.replicas.iter().map(|replica| replica.replica).collect();
        let back: Vec<_> = now.intersection(&known.removed).collect();
        assert!(back.is_empty(), "{back:?} are in {} again after they were removed", descriptor.shard);
        known.removed.extend(known.ever.difference(&now));
        known.ever.extend(now);
    }

    /// Checks that a node's metadata only becomes newer, and that no shard's epoch in it decreases.
    pub(crate) fn metadata(&self, node: &Node, before: &MetaState, after: &MetaState) {
        assert!(before.version() < after.version(), "{} takes metadata that is not newer", node.id);
        for shard in after.shards() {
            let known = before.shard(shard.id).map(|before| before.descriptor.epoch).unwrap_or_default();
            let now = shard.descriptor.epoch;
            let forward = known.range <= now.range && known.config <= now.config;
            assert!(forward, "{} of {} goes back from {known:?} to {now:?}", shard.id, node.id);
        }
        Self::covers(node, after);
    }

    /// Checks a batch of the log that became durable.
    pub(crate) fn log_batch(&mut self, node: &Node, batch: &LogBatch) {
        for write in &batch.replicas {
            self.replica_write(node, write);
        }
        let touched: BTreeSet<_> = batch.replicas.iter().map(|write| write.replica).collect();
        for (id, log) in node.disk.replicas().expect("a log in memory") {
            let index = log.checkpoint.position.index;
            if touched.contains(&id) {
                assert!(log.truncated.0 <= index, "{id} truncated entries that its checkpoint does not cover");
                assert!(log.hard_state.commit <= log.last, "the commit index of {id} is after the end of its log");
            }
        }
    }

    fn replica_write(&mut self, node: &Node, write: &ReplicaWrite) {
        let id = write.replica;
        let replica = self.replicas.entry(id).or_default();
        assert!(!replica.destroyed || write.destroy, "{id} writes after it was destroyed");
        replica.destroyed |= write.destroy;
        assert!(write.create.is_none() || replica.shard.is_none(), "{id} is created twice");
        replica.shard = replica.shard.or(write.create);
        if let Some(checkpoint) = &write.checkpoint {
            let index = checkpoint.position.index;
            assert!(replica.checkpoint <= index, "the checkpoint of {id} went back to {index}");
            replica.checkpoint = index;
            // A replica that has nothing yet was only told a descriptor.
            if index > LogIndex(0) {
                self.history.lock().holds_after(index, &checkpoint.position.descriptor);
            }
            let missing = node.disk.missing_from(checkpoint);
            assert!(missing.is_empty(), "the checkpoint of {id} names {missing:?}, which {} lacks", node.id);
            self.counts.checkpoints += 1;
            self.bases(id, checkpoint);
        }
        for entry in &write.entries {
            let objects: Vec<_> = refs_of(entry).ids().collect();
            let missing = node.disk.not_durable(&objects);
            assert!(missing.is_empty(), "{id} writes {}, and {} lacks {missing:?} of it", entry.index, node.id);
            self.counts.referring += u64::from(!objects.is_empty());
        }
        let replica = self.replicas.entry(id).or_default();
        if let Some(hard_state) = write.hard_state {
            let before = replica.hard_state;
            assert!(before.term <= hard_state.term, "the term of {id} went back from {before:?} to {hard_state:?}");
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
            // A new entry truncates everything after it.
            replica.terms.split_off(&entry.index);
            replica.terms.insert(entry.index, entry.term);
        }
    }

    /// Checks that replicas whose base is of the same fold name the same one.
    fn bases(&mut self, replica: ReplicaId, checkpoint: &Checkpoint) {
        let Tables::Manifests(tables) = &checkpoint.tables else { return };
        let shard = checkpoint.position.descriptor.shard;
        for table in tables {
            let Some(fold) = table.fold else { continue };
            let index = checkpoint.position.index;
            assert!(fold <= index, "the checkpoint of {replica} at {index} names the base of {fold}");
            let (first, named_by) =
                self.bases.entry((shard, fold)).or_insert_with(|| (table.manifest, BTreeSet::from([replica])));
            if self.flawed.contains(&shard) {
                continue;
            }
            assert_eq!(*first, table.manifest, "{replica} has another base of {shard} at {fold}");
            self.counts.bases_compared += u64::from(named_by.insert(replica));
        }
    }

    /// Records that a disk is rolled back to an older copy, which peers can notice: a replica that made
    /// promises since may send nothing more. One that was destroyed since is there again, to be destroyed.
    pub(crate) fn rolled_back(&mut self, copy: &Disk) {
        for (id, log) in copy.replicas().expect("a log in memory") {
            let Some(known) = self.replicas.get_mut(&id) else { continue };
            known.destroyed = false;
            let conf = &log.checkpoint.position.conf;
            let alone = conf.voters == [id] && !conf.is_joint();
            let last = known.terms.last_key_value().map(|(index, _)| *index).unwrap_or_default();
            known.stale |= !alone && (known.hard_state != log.hard_state || last > log.last);
        }
    }

    /// Checks that a node that reports a damaged replica has a damaged disk.
    pub(crate) fn replica_damaged(&mut self, node: &Node) {
        assert!(self.damaged_nodes.contains(&node.id), "{} reports damage of an undamaged disk", node.id);
        self.counts.replicas_damaged += 1;
    }

    /// Checks that no comparison says that replicas differ if none has a flaw.
    pub(crate) fn compared(&mut self, finding: &Finding) {
        match finding {
            Finding::Compared(ShardConsistency::Equal) => self.counts.found_equal += 1,
            Finding::Compared(_) => {}
            Finding::Different { shard, odd, reason } => {
                assert!(self.flawed.contains(shard), "{shard} has no flaw, and {odd:?} is said to differ: {reason}");
            }
            Finding::Inconclusive { .. } | Finding::Equal { .. } => {}
        }
    }

    /// Checks that a node that abandoned replicas has a damaged disk.
    pub(crate) fn replicas_lost(&mut self, node: &Node, replicas: &[(ShardId, ReplicaId)], reason: LostReason) {
        if reason == LostReason::Diverged {
            for (shard, replica) in replicas {
                assert!(node.is_wrong(*replica), "{} gave up {replica} of {shard}, which is not wrong", node.id);
                self.counts.replicas_diverged += 1;
            }
            return;
        }
        assert!(
            self.damaged_nodes.contains(&node.id),
            "{} lost {replicas:?} ({reason:?}) with an undamaged disk",
            node.id
        );
        self.counts.replicas_lost += replicas.len() as u64;
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
