//! Checkpoints and log truncation.
//!
//! Invariants: entries are truncated only when a durable checkpoint covers them; at most one job at a time
//! works on a replica's records; a checkpoint that would repeat the last one is not made.

use std::ops::Bound;

use flotilla_consensus::{self as consensus, Follower, Group, Role};
use flotilla_storage::{CompactionDue, ReplicaWrite, Usage};
use flotilla_types::{Checkpoint, CheckpointFormat, Folding, LogIndex, ReplicaId, Term, Timestamp};

use super::{
    ApplyTask, Background, Core, Done, Effects, Write,
    offers::kept_from_by_offers,
    replica::{Checkpointing, Replica},
};
use crate::HostConfig;

/// What a truncation keeps of the entries that the checkpoint covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// Up to `log_tail_entries` of at most `log_tail_bytes_max`, for followers that lag behind.
    Kept,
    /// Only what a follower that responds still needs: the log cannot free space because of the others.
    Released,
}

impl<T> Core<T> {
    pub(super) fn on_applied(
        &mut self,
        id: ReplicaId,
        index: LogIndex,
        clock: Timestamp,
        bytes: usize,
        usage: Usage,
        effects: &mut Effects<T>,
    ) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.applied = replica.applied.max(index);
        replica.clock = replica.clock.max(clock);
        replica.unapplied_bytes = replica.unapplied_bytes.saturating_sub(bytes);
        replica.usage = usage;
        if matches!(replica.checkpointing, Checkpointing::Idle | Checkpointing::Truncating) {
            // It was measured before a checkpoint was installed, and arrives after it.
            replica.usage.frozen_bytes = 0;
        }
        self.schedule.memtables.set(id, usage.active_bytes);
        self.schedule.changed.insert(id);
        self.touched.insert(id);
        self.raft.step(consensus::Input::Applied { replica: id, index }, &mut self.raft_effects);
        self.checkpoint_if_due(id, effects);
    }

    /// The records are loaded and may now be checkpointed or replaced.
    pub(super) fn on_opened(&mut self, id: ReplicaId, index: LogIndex, clock: Timestamp, effects: &mut Effects<T>) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.loading = false;
            replica.installing = false;
        }
        self.end_halt(id, effects);
        self.on_applied(id, index, clock, 0, Usage::default(), effects);
        self.step_pending_snapshot(id, effects);
    }

    /// Starts a checkpoint if it is due. One that cannot start yet is scheduled, and starts with a later tick
    /// or when another one ends.
    fn checkpoint_if_due(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        self.schedule.checkpoints.remove(&id);
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.is_checkpoint_current() {
            replica.checkpoint_wanted = false;
        }
        let due = replica.checkpoint_wanted
            || replica.usage.active_bytes >= self.config.memtable_bytes_max
            || replica.log_bytes >= self.config.log_bytes_max;
        if !due || replica.abandoned || replica.is_checkpoint_current() {
            return;
        }
        if !replica.may_checkpoint() || self.schedule.checkpointing.len() >= self.config.checkpoints_parallel_max {
            self.schedule.checkpoints.insert(id);
            return;
        }
        replica.checkpointing = Checkpointing::Freezing;
        replica.checkpoint_wanted = false;
        replica.log_bytes = 0;
        // One of a damaged replica may wait for long, and must not hold back others.
        if !self.damaged.contains(&id) {
            self.schedule.checkpointing.insert(id);
        }
        effects.apply.push(ApplyTask::Freeze { replica: id });
    }

    /// Requests a checkpoint of the largest memtable if all together exceed their bound, and starts
    /// checkpoints that had to wait.
    pub(super) fn start_due_checkpoints(&mut self, effects: &mut Effects<T>) {
        if self.schedule.memtables.total() > self.config.memtables_bytes_max {
            let may_checkpoint = |id: &ReplicaId| self.replicas.get(id).is_some_and(|replica| replica.may_checkpoint());
            let largest = self.schedule.memtables.largest_first().find(may_checkpoint);
            if let Some(id) = largest
                && let Some(replica) = self.replicas.get_mut(&id)
            {
                replica.checkpoint_wanted = true;
                self.schedule.checkpoints.insert(id);
            }
        }
        let mut next = self.schedule.checkpoints.first().copied();
        while let Some(id) = next
            && self.schedule.checkpointing.len() < self.config.checkpoints_parallel_max
        {
            self.schedule.visits += 1;
            self.checkpoint_if_due(id, effects);
            next = self.schedule.checkpoints.range((Bound::Excluded(id), Bound::Unbounded)).next().copied();
        }
    }

    pub(super) fn want_checkpoint(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.checkpoint_wanted = true;
            self.checkpoint_if_due(id, effects);
        }
    }

    /// The log cannot free space because of this replica. Entries that its checkpoint covers go first: that
    /// costs one small write, and is enough for a replica that is seldom written to. Named again without such
    /// entries, it needs a checkpoint, if there is anything to add to the last one.
    pub(super) fn release_log(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        match replica.checkpointing {
            Checkpointing::Idle => {}
            Checkpointing::Freezing | Checkpointing::Building => {
                replica.releases_log = true;
                return;
            }
            // A truncation is on its way. If it is not enough, the log names the replica again.
            Checkpointing::Truncating | Checkpointing::Writing | Checkpointing::Installing => return,
        }
        if !self.truncate_tail(id, effects)
            && !self.is_held_by_offers(id)
            && let Some(replica) = self.replicas.get_mut(&id)
            && !replica.is_checkpoint_current()
        {
            replica.releases_log = true;
            self.want_checkpoint(id, effects);
        }
    }

    /// Truncates the entries that the checkpoint covers and no follower needs. Returns whether there are any.
    fn truncate_tail(&mut self, id: ReplicaId, effects: &mut Effects<T>) -> bool {
        let Some(group) = self.raft.group(id) else { return false };
        let Some(replica) = self.replicas.get_mut(&id) else { return false };
        if replica.loading || replica.abandoned {
            return false;
        }
        let to = truncation(group, replica, replica.checkpoint, Tail::Released, &self.config);
        if to.0 <= group.truncated().0 {
            return false;
        }
        // Nothing else may write this replica's checkpoint or truncation meanwhile.
        replica.checkpointing = Checkpointing::Truncating;
        effects.writes.push(Write {
            write: Some(ReplicaWrite { truncate: Some(to), ..ReplicaWrite::new(id) }),
            done: Done::Truncated { replica: id, to },
            after: Vec::new(),
        });
        true
    }

    /// Whether the log is kept for a follower that receives a snapshot: another checkpoint would free nothing.
    fn is_held_by_offers(&self, id: ReplicaId) -> bool {
        let (Some(group), Some(replica)) = (self.raft.group(id), self.replicas.get(&id)) else { return false };
        kept_from_by_offers(&replica.offers, &group.status().followers) < replica.checkpoint
    }

    pub(super) fn on_truncated(&mut self, id: ReplicaId, to: (LogIndex, Term), effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.checkpointing == Checkpointing::Truncating {
            replica.checkpointing = Checkpointing::Idle;
        }
        replica.entry_bytes.forget(to.0);
        replica.log_refs.truncated(id, to.0, effects);
        self.raft.step(consensus::Input::Truncated { replica: id, to }, &mut self.raft_effects);
        self.resume_split(id, effects);
        self.step_pending_snapshot(id, effects);
        self.checkpoint_if_due(id, effects);
    }

    /// Builds the checkpoint of a frozen memtable, in the format in force, or the one that merges need.
    fn build_of(&self, id: ReplicaId) -> Background {
        let is_in_merge = |replica: &Replica<T>| {
            replica.descriptor.is_frozen()
                || replica.splitting.as_ref().is_some_and(|splitting| splitting.merging.is_some())
        };
        let format = CheckpointFormat::of(self.cluster_version);
        let is_in_merge = self.replicas.get(&id).is_some_and(|replica| is_in_merge(replica));
        let format = if is_in_merge { format.max(CheckpointFormat::Manifests) } else { format };
        Background::Build { replica: id, format }
    }

    pub(super) fn on_frozen(&mut self, id: ReplicaId, frozen: bool, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.checkpointing != Checkpointing::Freezing {
            return;
        }
        self.schedule.changed.insert(id);
        if frozen {
            replica.checkpointing = Checkpointing::Building;
            // The engine reports this with the next entry, but a leader that refuses for lack of memory may
            // see none.
            replica.usage.frozen_bytes += std::mem::take(&mut replica.usage.active_bytes);
            self.schedule.memtables.set(id, 0);
            effects.background.push(self.build_of(id));
        } else {
            replica.checkpointing = Checkpointing::Idle;
            replica.checkpoint_wanted = true;
            replica.end_split(id, effects);
            self.schedule.checkpointing.remove(&id);
            self.schedule.checkpoints.insert(id);
            self.resume_split(id, effects);
            self.step_pending_snapshot(id, effects);
        }
    }

    /// The objects are durable: one synced batch moves the checkpoint pointer and truncates entries that it
    /// covers.
    pub(super) fn on_built(
        &mut self,
        id: ReplicaId,
        checkpoint: Option<Checkpoint>,
        split: Option<Box<Checkpoint>>,
        effects: &mut Effects<T>,
    ) {
        if self.replicas.get(&id).is_none_or(|replica| replica.checkpointing != Checkpointing::Building) {
            return;
        }
        let Some(checkpoint) = checkpoint else {
            // The shell has waited before reporting the failure, so build again at once.
            effects.background.push(self.build_of(id));
            return;
        };
        let Some(checkpoint) = self.with_merged_tables(id, checkpoint, effects) else { return };
        let Some(group) = self.raft.group(id) else { return };
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.compacted = false;
        let tail = if std::mem::take(&mut replica.releases_log) { Tail::Released } else { Tail::Kept };
        let truncate = truncation(group, replica, checkpoint.position.index, tail, &self.config);
        replica.checkpointing = Checkpointing::Writing;
        effects.writes.push(Write {
            write: Some(ReplicaWrite {
                checkpoint: Some(checkpoint.clone()),
                truncate: (truncate.0 > group.truncated().0).then_some(truncate),
                ..ReplicaWrite::new(id)
            }),
            done: Done::Checkpointed { replica: id, checkpoint, truncate },
            after: Vec::new(),
        });
        if let Some(split) = split {
            self.create_split_off(id, *split, effects);
        }
        self.destroy_merged(id, effects);
    }

    pub(super) fn on_checkpointed(
        &mut self,
        id: ReplicaId,
        checkpoint: Checkpoint,
        truncate: (LogIndex, Term),
        effects: &mut Effects<T>,
    ) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.checkpoint = checkpoint.position.index;
        replica.note_checkpoint(&checkpoint);
        replica.checkpointing = Checkpointing::Installing;
        replica.entry_bytes.forget(truncate.0);
        replica.log_refs.truncated(id, truncate.0, effects);
        self.schedule.changed.insert(id);
        if self.open_merged(id, &checkpoint, truncate, effects) {
            return;
        }
        effects.background.push(Background::InstallCheckpoint { replica: id, checkpoint: checkpoint.clone() });
        let input = consensus::Input::Checkpointed { replica: id, checkpoint, truncate: Some(truncate) };
        self.raft.step(input, &mut self.raft_effects);
    }

    pub(super) fn on_checkpoint_installed(&mut self, id: ReplicaId, due: CompactionDue, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.checkpointing = Checkpointing::Idle;
        replica.usage.frozen_bytes = 0;
        // It was made while this checkpoint was.
        replica.compacted |= due.made;
        replica.checkpoint_wanted |= due.made;
        self.schedule.checkpointing.remove(&id);
        self.schedule.changed.insert(id);
        if due.made {
            self.schedule.checkpoints.insert(id);
        }
        if replica.pending_snapshot.is_none() {
            // It goes on by the log.
            Self::end_receiving(id, replica, effects);
        }
        self.resume_split(id, effects);
        self.step_pending_snapshot(id, effects);
        self.propose_asked_split(id, effects);
        self.start_due_checkpoints(effects);
        self.on_fold_due(id, due.fold);
        let folds_here = Folding::of(self.cluster_version) == Folding::Local && due.fold.is_some();
        if due.compact || folds_here {
            self.schedule.compactions.insert(id);
            self.start_compaction(None, effects);
        }
    }

    /// Starts the next compaction, if none runs: of the first replica after `last` that waits.
    fn start_compaction(&mut self, last: Option<ReplicaId>, effects: &mut Effects<T>) {
        if self.schedule.compacting.is_some() {
            return;
        }
        let waiting = &mut self.schedule.compactions;
        let after = last.and_then(|last| waiting.range((Bound::Excluded(last), Bound::Unbounded)).next().copied());
        let Some(replica) = after.or_else(|| waiting.first().copied()) else { return };
        waiting.remove(&replica);
        self.schedule.compacting = Some(replica);
        effects.background.push(Background::Compact { replica, folding: Folding::of(self.cluster_version) });
    }

    /// A compaction has ended. What it has made waits for a checkpoint that names it.
    pub(super) fn on_compacted(&mut self, id: ReplicaId, done: bool, effects: &mut Effects<T>) {
        self.schedule.compacting.take_if(|compacting| *compacting == id);
        if let Some(replica) = self.replicas.get_mut(&id).filter(|_| done) {
            replica.compacted = true;
            self.want_checkpoint(id, effects);
        }
        self.start_compaction(Some(id), effects);
    }
}

/// The last entry to truncate after a checkpoint at `index`, with its term.
fn truncation<T>(
    group: &Group,
    replica: &Replica<T>,
    index: LogIndex,
    tail: Tail,
    config: &HostConfig,
) -> (LogIndex, Term) {
    let tail_from = replica.entry_bytes.tail(index, config.log_tail_bytes_max());
    let kept_from = index.0.saturating_sub(config.log_tail_entries).max(tail_from.0);
    // Only a leader knows what its followers need.
    let status = group.status();
    let needed_from = match (status.role, tail) {
        (Role::Leader, _) => {
            let followers = status.followers.iter();
            let needs = |follower: &&Follower| tail == Tail::Kept || !group.is_silent(follower.replica);
            followers.filter(needs).map(|follower| follower.matched.0).min().unwrap_or(u64::MAX)
        }
        // It may lead later.
        (_, Tail::Kept) => 0,
        (_, Tail::Released) => u64::MAX,
    };
    let offered_from = kept_from_by_offers(&replica.offers, &status.followers).0;
    let to = LogIndex(index.0.min(needed_from.max(kept_from)).min(offered_from).max(group.truncated().0.0));
    group.term_of(to).map_or(group.truncated(), |term| (to, term))
}
