//! When to checkpoint, what to truncate, and how a snapshot's objects come before the snapshot.

use flotilla_consensus::{self as consensus, Role};
use flotilla_storage::{ReplicaWrite, Usage};
use flotilla_types::{Checkpoint, LogIndex, Message, NodeId, ReplicaId, Term, Timestamp};

use super::{
    ApplyTask, Background, Core, Done, Effects, Write,
    replica::{Checkpointing, Parked, Replica},
};

/// A follower that was sent a snapshot and does not get on is sent another one after so many milliseconds: the message or
/// the follower's pull was lost, or the follower's node has not created the replica yet. One that is pulling ignores it.
const SNAPSHOT_RETRY_MS: u64 = 500;

impl<T> Core<T> {
    pub(super) fn applied(
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
        self.touched.insert(id);
        self.raft.step(consensus::Input::Applied { replica: id, index }, &mut self.raft_effects);
        self.checkpoint_if_due(id, effects);
    }

    /// Records are loaded: from here on they may be checkpointed or replaced.
    pub(super) fn opened(&mut self, id: ReplicaId, index: LogIndex, clock: Timestamp, effects: &mut Effects<T>) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.loading = false;
        }
        self.applied(id, index, clock, 0, Usage::default(), effects);
        self.step_parked(id, effects);
    }

    fn checkpoint_if_due(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let running = self.replicas.values().filter(|replica| replica.checkpointing != Checkpointing::Idle).count();
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let due = replica.checkpoint_wanted
            || replica.usage.active_bytes >= self.config.memtable_bytes_max
            || replica.log_bytes >= self.config.log_bytes_max;
        if !due
            || replica.dormant
            || replica.given_up
            || replica.loading
            || replica.checkpointing != Checkpointing::Idle
            || running >= self.config.checkpoints_parallel_max
        {
            return;
        }
        replica.checkpointing = Checkpointing::Freezing;
        replica.checkpoint_wanted = false;
        replica.log_bytes = 0;
        effects.apply.push(ApplyTask::Freeze { replica: id });
    }

    /// Keeps all memtables together under their bound, and starts what had to wait.
    pub(super) fn checkpoint_largest(&mut self, effects: &mut Effects<T>) {
        // Usage that was measured before a checkpoint settled may arrive after it.
        for idle in self.replicas.values_mut().filter(|replica| replica.checkpointing == Checkpointing::Idle) {
            idle.usage.frozen_bytes = 0;
        }
        let total: usize = self.replicas.values().map(|replica| replica.usage.active_bytes).sum();
        if total > self.config.memtables_bytes_max {
            let idle = self.replicas.values_mut().filter(|replica| replica.checkpointing == Checkpointing::Idle);
            if let Some(largest) = idle.max_by_key(|replica| replica.usage.active_bytes) {
                largest.checkpoint_wanted = true;
            }
        }
        let ids: Vec<_> = self.replicas.keys().copied().collect();
        for id in ids {
            self.checkpoint_if_due(id, effects);
        }
    }

    pub(super) fn want_checkpoint(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.checkpoint_wanted = true;
            self.checkpoint_if_due(id, effects);
        }
    }

    pub(super) fn frozen(&mut self, id: ReplicaId, frozen: bool, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.checkpointing != Checkpointing::Freezing {
            return;
        }
        if frozen {
            replica.checkpointing = Checkpointing::Building;
            // What the engine will say with the next entry; a leader that refuses for want of memory may see none.
            replica.usage.frozen_bytes += std::mem::take(&mut replica.usage.active_bytes);
            effects.background.push(Background::Build { replica: id });
        } else {
            replica.checkpointing = Checkpointing::Idle;
            replica.checkpoint_wanted = true;
            self.step_parked(id, effects);
        }
    }

    /// The objects are durable: one synced batch moves the pointer and lets entries behind it go.
    pub(super) fn built(&mut self, id: ReplicaId, checkpoint: Option<Checkpoint>, effects: &mut Effects<T>) {
        let Some(group) = self.raft.group(id) else { return };
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.checkpointing != Checkpointing::Building {
            return;
        }
        let Some(checkpoint) = checkpoint else {
            // The shell waited before it reported; build again.
            effects.background.push(Background::Build { replica: id });
            return;
        };
        let kept_from = checkpoint.position.index.0.saturating_sub(self.config.log_tail_entries);
        // Only a leader knows who needs what; another replica may lead tomorrow and keeps the whole tail.
        let slowest = if group.role().0 == Role::Leader {
            group.status().followers.iter().map(|follower| follower.matched.0).min().unwrap_or(u64::MAX)
        } else {
            0
        };
        let to = LogIndex(checkpoint.position.index.0.min(slowest.max(kept_from)).max(group.truncated().0.0));
        let truncate = group.term_of(to).map_or(group.truncated(), |term| (to, term));
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
    }

    pub(super) fn checkpointed(
        &mut self,
        id: ReplicaId,
        checkpoint: Checkpoint,
        truncate: (LogIndex, Term),
        effects: &mut Effects<T>,
    ) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.checkpoint = checkpoint.position.index;
        replica.checkpointing = Checkpointing::Settling;
        effects.background.push(Background::Settle { replica: id, checkpoint: checkpoint.clone() });
        let input = consensus::Input::Checkpointed { replica: id, checkpoint, truncate: Some(truncate) };
        self.raft.step(input, &mut self.raft_effects);
    }

    pub(super) fn settled(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.checkpointing = Checkpointing::Idle;
        replica.usage.frozen_bytes = 0;
        self.step_parked(id, effects);
        self.checkpoint_largest(effects);
    }

    /// "The log has it" implies "the objects are here": a snapshot waits outside until its objects are durable.
    pub(super) fn park_snapshot(&mut self, from: NodeId, message: Message, effects: &mut Effects<T>) {
        let id = message.to;
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let Some(snapshot) = &message.snapshot else { return };
        let position = &snapshot.checkpoint.position;
        if !position.conf.contains(id)
            || position.descriptor.shard != replica.shard
            || replica.dormant
            || replica.given_up
        {
            return;
        }
        if position.index <= replica.handed_out {
            // Needs no objects: the group refuses it and tells the leader how far it is.
            self.raft.step(consensus::Input::Message(message), &mut self.raft_effects);
            return;
        }
        // One pull at a time; the leader offers again when this one comes to nothing.
        if replica.parked.is_some() {
            return;
        }
        let checkpoint = snapshot.checkpoint.clone();
        replica.parked = Some(Parked { message, complete: false });
        effects.background.push(Background::Pull { replica: id, from, checkpoint });
    }

    pub(super) fn pulled(&mut self, id: ReplicaId, checkpoint: &Checkpoint, complete: bool, effects: &mut Effects<T>) {
        let parked = self.replicas.get_mut(&id).map(|replica| &mut replica.parked);
        match parked {
            Some(Some(parked)) if complete => {
                parked.complete = true;
                self.step_parked(id, effects);
            }
            Some(parked) if !complete => *parked = None,
            _ if complete => effects.background.push(Background::Release { objects: checkpoint.objects().collect() }),
            _ => {}
        }
    }

    /// Steps a snapshot whose objects are here, once nothing else works on the records that it replaces: a checkpoint that
    /// is built or settled beside it would bring back what it replaced.
    fn step_parked(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.loading || replica.checkpointing != Checkpointing::Idle {
            return;
        }
        let Some(parked) = replica.parked.take_if(|parked| parked.complete) else { return };
        let objects = parked.message.snapshot.iter().flat_map(|snapshot| snapshot.checkpoint.objects()).collect();
        self.raft.step(consensus::Input::Message(parked.message), &mut self.raft_effects);
        if self.raft.group(id).is_some_and(consensus::Group::has_incoming_snapshot) {
            replica.loading = true;
        } else {
            effects.background.push(Background::Release { objects });
        }
    }

    /// Lets go of a snapshot that will not be stepped.
    pub(super) fn drop_parked(replica: &mut Replica<T>, effects: &mut Effects<T>) {
        if let Some(parked) = replica.parked.take_if(|parked| parked.complete)
            && let Some(snapshot) = parked.message.snapshot
        {
            effects.background.push(Background::Release { objects: snapshot.checkpoint.objects().collect() });
        }
    }

    /// A snapshot is durable in the log: its records replace those of the replica.
    pub(super) fn installed(&mut self, id: ReplicaId, checkpoint: Checkpoint, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else {
            effects.background.push(Background::Release { objects: checkpoint.objects().collect() });
            return;
        };
        replica.checkpoint = checkpoint.position.index;
        let shard = replica.shard;
        effects.apply.push(ApplyTask::Open { replica: id, shard, checkpoint, replaces: true });
    }

    pub(super) fn retry_snapshots(&mut self) {
        for (id, replica) in &mut self.replicas {
            if replica.snapshots_sent.is_empty() {
                continue;
            }
            let waiting: Vec<_> = match self.raft.group(*id) {
                Some(group) if replica.leads() => group.status().followers,
                _ => Vec::new(),
            };
            let now_ms = self.now_ms;
            let waits = |to: &ReplicaId| waiting.iter().any(|follower| follower.replica == *to && follower.in_snapshot);
            replica.snapshots_sent.retain(|to, sent_ms| {
                if !waits(to) {
                    return false;
                }
                let silent = *sent_ms + SNAPSHOT_RETRY_MS <= now_ms;
                if silent {
                    let failed = consensus::Input::SnapshotSent { replica: *id, to: *to, arrived: false };
                    self.raft.step(failed, &mut self.raft_effects);
                }
                !silent
            });
        }
    }
}
