//! Splits: when one is proposed, the checkpoint that both halves begin with, and the replica that comes of it.
//!
//! Invariants: the new replica is created in the batch that makes the old one's checkpoint at the split durable, so
//! that a replica has either both or meets the entry again; entries behind a split are applied only when no earlier
//! checkpoint is being made; a replica that is here already, or must not be, is left as it is.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotilla_consensus::{Merge, Origin, ShardChange, Split};
use flotilla_storage::ReplicaLog;
use flotilla_types::{
    Checkpoint, Epoch, HardState, Holder, LogIndex, Message, NodeId, ReplicaId, ShardDescriptor, ShardId, Term,
};

use super::{
    ApplyTask, Core, Effects, Hold, created,
    replica::{Checkpointing, Replica},
};

/// The term of a new shard's first leader, in which every replica has voted for it.
const FIRST_TERM: Term = Term(2);
/// Bytes in memory from which a leader checkpoints before it proposes a split: the new shard serves nothing while they
/// are written.
pub(super) const FLUSH_BYTES_MIN: usize = 256 << 10;
/// Descriptors of split off shards that a replica remembers, for requests that were routed to itself.
const HEIRS_MAX: usize = 8;
/// New replicas whose messages are kept until they are created, and messages of each.
const UNBORN_MAX: usize = 64;
const UNBORN_MESSAGES_MAX: usize = 8;

/// What a replica has to do with splits and merges of its shard.
pub(super) struct Splitting<T> {
    /// The split that is proposed when the checkpoint that is being made is there.
    asked: Option<Split>,
    /// The key at which the shard is to be split, and whether what that gives up has been counted.
    counted: Option<(Bytes, bool)>,
    /// The shard before whose split off this replica has checkpointed.
    flushed: Option<ShardId>,
    /// The term and the entry of the last one that was proposed here.
    pub(super) proposed: Option<(Term, LogIndex)>,
    /// The one at which a checkpoint is being made.
    under_way: Option<Split>,
    /// The merge at which a checkpoint is being made.
    pub(super) merging: Option<Merge>,
    /// The epoch at which this replica has checkpointed before a step of a merge.
    pub(super) flushed_at: Option<Epoch>,
    /// Tasks that wait for a checkpoint to end: another one, from the entry of a split or a merge on, or the one at a
    /// merge.
    held_back: VecDeque<ApplyTask<T>>,
    /// The shards that were split off, newest last.
    pub(super) heirs: Vec<ShardDescriptor>,
}

impl<T> Default for Splitting<T> {
    fn default() -> Self {
        Self {
            asked: None,
            counted: None,
            flushed: None,
            proposed: None,
            under_way: None,
            merging: None,
            flushed_at: None,
            held_back: VecDeque::new(),
            heirs: Vec::new(),
        }
    }
}

impl<T> Splitting<T> {
    /// The merges at which checkpoints are to be made.
    pub(super) fn merges(&self) -> impl Iterator<Item = &Merge> {
        self.merging.iter().chain(self.held_back.iter().filter_map(merge_of))
    }

    /// Hands over the tasks before the next one that makes a checkpoint.
    fn release(&mut self, effects: &mut Effects<T>) {
        let until = self.held_back.iter().position(makes_checkpoint).unwrap_or(self.held_back.len());
        effects.apply.extend(self.held_back.drain(..until));
    }
}

/// Messages for a replica that is not there yet, with their senders.
type Kept = Vec<(NodeId, ShardId, Message)>;

/// Replicas that come of splits which this node has seen.
#[derive(Default)]
pub(super) struct Unborn {
    /// Those that are not created yet: the replica that each comes of, and messages for it.
    expected: BTreeMap<ReplicaId, (ReplicaId, Kept)>,
    /// Those whose creation is being written, and messages for them: they promise a vote, so their groups begin when it
    /// is durable.
    created: BTreeMap<ReplicaId, (ReplicaLog, Kept)>,
}

impl Unborn {
    /// Keeps a message for a replica that is about to be created. Any other one is dropped.
    pub(super) fn keep(&mut self, from: NodeId, shard: ShardId, message: Message) {
        let expected = self.expected.get_mut(&message.to).map(|(_, kept)| kept);
        let created = self.created.get_mut(&message.to).map(|(_, kept)| kept);
        let kept = expected.or(created);
        if let Some(kept) = kept.filter(|kept| kept.len() < UNBORN_MESSAGES_MAX) {
            kept.push((from, shard, message));
        }
    }

    /// Whether the creation of a replica is being written.
    pub(super) fn awaits(&self, replica: ReplicaId) -> bool {
        self.created.contains_key(&replica)
    }

    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.expected.remove(&replica);
        self.created.remove(&replica);
    }
}

impl<T> Replica<T> {
    pub(super) fn splitting(&mut self) -> &mut Splitting<T> {
        self.splitting.get_or_insert_default()
    }

    /// Hands a task to the state machine, behind those that wait.
    pub(super) fn hand_over(&mut self, task: ApplyTask<T>, effects: &mut Effects<T>) {
        match &mut self.splitting {
            Some(splitting) if splitting.merging.is_some() || !splitting.held_back.is_empty() => {
                splitting.held_back.push_back(task);
            }
            _ => effects.apply.push(task),
        }
    }

    /// Hands over what waits, whatever checkpoint is being made: the replica is not used any more.
    pub(super) fn end_splitting(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        self.end_split(id, effects);
        effects.apply.extend(self.splitting.take().into_iter().flat_map(|splitting| splitting.held_back));
    }

    /// The checkpoint at a split or a merge is not made.
    pub(super) fn end_split(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        if let Some(splitting) = &mut self.splitting {
            splitting.under_way = None;
            if splitting.merging.take().is_some() {
                effects.holds.push(Hold::end(Holder::Merge(id)));
            }
        }
    }
}

/// Whether a task waits until no other checkpoint of the replica is being made.
fn makes_checkpoint<T>(task: &ApplyTask<T>) -> bool {
    matches!(task, ApplyTask::Apply { shard_change: Some(change), .. } if change.makes_checkpoint())
}

fn merge_of<T>(task: &ApplyTask<T>) -> Option<&Merge> {
    match task {
        ApplyTask::Apply { shard_change: Some(ShardChange::Merge(merge)), .. } => Some(merge),
        _ => None,
    }
}

fn split_of<T>(task: &ApplyTask<T>) -> Option<&Split> {
    match task {
        ApplyTask::Apply { shard_change: Some(ShardChange::Split(split)), .. } => Some(split),
        _ => None,
    }
}

impl<T> Core<T> {
    /// Proposes the split of a shard led here, when little is in memory. Whoever wants it asks again.
    pub(super) fn propose_split(&mut self, id: ReplicaId, split: &Split, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let (term, applied) = (replica.term, replica.applied);
        if !replica.may_propose() || replica.is_backlogged(&self.config) || replica.shard == ShardId::META {
            return;
        }
        let is_idle = matches!(replica.checkpointing, Checkpointing::Idle | Checkpointing::Truncating);
        let is_full = replica.usage.active_bytes >= FLUSH_BYTES_MIN && replica.may_checkpoint();
        let splitting = replica.splitting();
        if splitting.proposed.is_some_and(|(of, index)| of == term && applied < index) {
            return;
        }
        if !splitting.counted.as_ref().is_some_and(|(at, done)| *at == split.at && *done) {
            splitting.asked = Some(split.clone());
            self.count_ahead(id, &split.at, effects);
            return;
        }
        if !is_idle {
            splitting.asked = Some(split.clone());
            return;
        }
        if is_full && splitting.flushed.replace(split.child) != Some(split.child) {
            splitting.asked = Some(split.clone());
            self.want_checkpoint(id, effects);
            return;
        }
        let change = ShardChange::Split(split.clone());
        let proposed = self.raft.propose_shard_change(id, &change, &mut self.raft_effects);
        if let (Ok(index), Some(replica)) = (proposed, self.replicas.get_mut(&id)) {
            tracing::info!(shard = %replica.shard, %index, ?change, "a change of a shard is proposed");
            replica.splitting().proposed = Some((term, index));
        }
    }

    /// A split of a shard is planned: followers count as well, so that none of them reads records at the entry.
    pub(super) fn prepare_split(&mut self, shard: ShardId, at: &Bytes, effects: &mut Effects<T>) {
        if let Some(id) = self.serving.get(&shard).copied() {
            self.count_ahead(id, at, effects);
        }
    }

    /// Counts ahead what a split at this key gives up, once.
    fn count_ahead(&mut self, id: ReplicaId, at: &Bytes, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.loading || replica.abandoned || replica.halted {
            return;
        }
        let splitting = replica.splitting();
        if splitting.counted.as_ref().is_none_or(|(counted, _)| counted != at) {
            splitting.counted = Some((at.clone(), false));
            replica.hand_over(ApplyTask::CountAhead { replica: id, at: at.clone() }, effects);
        }
    }

    /// A count has ended. If it could not be made, the split counts.
    pub(super) fn on_counted(&mut self, id: ReplicaId, at: &Bytes, effects: &mut Effects<T>) {
        let splitting = self.replicas.get_mut(&id).and_then(|replica| replica.splitting.as_mut());
        let counted = splitting.and_then(|splitting| splitting.counted.as_mut()).filter(|(counted, _)| counted == at);
        if let Some((_, done)) = counted {
            *done = true;
            self.propose_asked_split(id, effects);
        }
    }

    /// Hands committed entries to the state machine. Those that end in a split or a merge wait until no checkpoint is
    /// being made.
    pub(super) fn hand_over_committed(
        &mut self,
        id: ReplicaId,
        task: ApplyTask<T>,
        before: &ShardDescriptor,
        effects: &mut Effects<T>,
    ) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if !makes_checkpoint(&task) {
            replica.hand_over(task, effects);
            return;
        }
        if let Some(split) = split_of(&task) {
            self.expect_split_off(id, split, before);
        }
        if let Some(merge) = merge_of(&task) {
            self.expect_merge(id, merge);
        }
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.splitting().held_back.push_back(task);
        }
        self.resume_split(id, effects);
    }

    /// A split of this descriptor is committed: the new replica is about to be created.
    fn expect_split_off(&mut self, id: ReplicaId, split: &Split, before: &ShardDescriptor) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if let (Some(child), true) = (split.child_of(id), self.unborn.expected.len() < UNBORN_MAX) {
            self.unborn.expected.entry(child).or_insert((id, Vec::new()));
        }
        let heir = split.halves(before).ok().map(|(_, heir)| heir);
        let splitting = replica.splitting();
        if splitting.heirs.len() >= HEIRS_MAX {
            splitting.heirs.remove(0);
        }
        splitting.heirs.extend(heir);
    }

    /// Hands over what waits for a checkpoint to end, up to the next split, or the next merge.
    pub(super) fn resume_split(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let is_idle = replica.checkpointing == Checkpointing::Idle;
        let Some(splitting) = replica.splitting.as_mut().filter(|_| is_idle) else { return };
        splitting.release(effects);
        let Some(next) = splitting.held_back.pop_front() else { return };
        splitting.under_way = split_of(&next).cloned();
        splitting.merging = merge_of(&next).cloned();
        splitting.counted = None;
        replica.checkpointing = Checkpointing::Freezing;
        replica.checkpoint_wanted = false;
        replica.log_bytes = 0;
        if splitting.merging.is_some() {
            self.hand_over_merge(id, next, effects);
        } else {
            effects.apply.push(next);
            splitting.release(effects);
        }
        if !self.damaged.contains(&id) {
            self.schedule.checkpointing.insert(id);
        }
    }

    /// A checkpoint has ended: whatever waits for that goes on.
    pub(super) fn propose_asked_split(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let splitting = self.replicas.get_mut(&id).and_then(|replica| replica.splitting.as_mut());
        if let Some(split) = splitting.and_then(|splitting| splitting.asked.take()) {
            self.propose_split(id, &split, effects);
        }
    }

    /// The checkpoint at a split is built: creates the new replica, in the batch of that checkpoint.
    pub(super) fn create_split_off(&mut self, id: ReplicaId, checkpoint: Checkpoint, effects: &mut Effects<T>) {
        let splitting = self.replicas.get_mut(&id).and_then(|replica| replica.splitting.as_mut());
        let Some(split) = splitting.and_then(|splitting| splitting.under_way.take()) else { return };
        let Some(child) = split.child_of(id) else { return };
        let messages = self.unborn.expected.remove(&child).map(|(_, messages)| messages).unwrap_or_default();
        let position = &checkpoint.position;
        let is_unwanted = self.replicas.contains_key(&child)
            || self.being_destroyed.contains_key(&child)
            || self.log.is_tombstone(child)
            || !self.handshake.may_create(self.node, &position.descriptor);
        if is_unwanted {
            tracing::info!(replica = %child, shard = %split.child, "a replica that is split off is not created here");
            return;
        }
        let (index, term) = (position.index, position.term);
        let hard_state = HardState { term: FIRST_TERM, vote: split.heir, commit: index };
        effects.holds.push(Hold { holder: Holder::Checkpoint(child), objects: checkpoint.objects().collect() });
        let state = ReplicaLog { shard: split.child, hard_state, truncated: (index, term), last: index, checkpoint };
        effects.writes.push(created(child, &state));
        self.add_replica(child, &state, false, effects);
        self.unborn.created.insert(child, (state, messages));
    }

    /// Whether a replica is about to be created by a split that a replica here applies.
    pub(super) fn is_expected(&mut self, id: ReplicaId) -> bool {
        let Some((parent, _)) = self.unborn.expected.get(&id) else { return false };
        let is_expected = self.replicas.get(parent).is_some_and(|parent| !parent.abandoned && !parent.halted);
        if !is_expected {
            self.unborn.expected.remove(&id);
        }
        is_expected
    }

    /// The creation of a replica is durable, and its vote with it. The one for which all have voted leads now.
    pub(super) fn on_created(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some((state, messages)) = self.unborn.created.remove(&id) else { return };
        if self.replicas.get(&id).is_none_or(|replica| replica.abandoned) {
            return;
        }
        let origin = if state.hard_state.vote == id { Origin::Heir } else { Origin::Created };
        self.open_group(id, &state, origin, effects);
        self.touched.insert(id);
        for (from, shard, message) in messages {
            self.receive(from, shard, message, effects);
        }
    }
}
