//! Snapshots that replicas here receive.
//!
//! Invariants: a snapshot is stepped only when its objects are durable here; at most one job at a time works
//! on a replica's records. What was fetched is held for the replica until a snapshot is installed, or is not
//! needed any more: a pull that is interrupted, or that a newer offer replaces, fetches nothing twice.

use flotilla_consensus as consensus;
use flotilla_types::{Checkpoint, Holder, Message, NodeId, ReplicaId};

use super::{
    ApplyTask, Background, Core, Effects, Hold,
    replica::{Checkpointing, PendingSnapshot, Replica},
};

impl<T> Core<T> {
    /// Holds a snapshot message back until its objects are durable here, and starts to pull them.
    pub(super) fn receive_snapshot(&mut self, from: NodeId, message: Message, effects: &mut Effects<T>) {
        let id = message.to;
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let Some(snapshot) = &message.snapshot else { return };
        let position = &snapshot.checkpoint.position;
        if !position.conf.contains(id)
            || position.descriptor.shard != replica.shard
            || replica.unverified
            || replica.abandoned
            // Its objects are held for the same holder. The leader offers another one again, if it is needed.
            || replica.installing
        {
            return;
        }
        if position.index <= replica.delivered {
            // Outdated, so it needs no objects: the group refuses it and tells the leader its position.
            if replica.pending_snapshot.is_none() {
                Self::end_receiving(id, replica, effects);
            }
            self.raft.step(consensus::Input::Message(message), &mut self.raft_effects);
            return;
        }
        // The same again, or one that was overtaken. A leader that offers another one keeps the objects, and the
        // log, of that one only.
        let offer = (message.term, position.index);
        if replica.pending_snapshot.as_ref().is_some_and(|pending| offer <= pending.offer()) {
            return;
        }
        let checkpoint = snapshot.checkpoint.clone();
        replica.receives = Some(position.index);
        replica.pending_snapshot = Some(Box::new(PendingSnapshot { message, complete: false }));
        effects.background.push(Background::Pull { replica: id, from, checkpoint });
    }

    /// A pull has ended. What it fetched stays held, so that the next one need not fetch it again.
    pub(super) fn on_pulled(
        &mut self,
        id: ReplicaId,
        checkpoint: &Checkpoint,
        complete: bool,
        effects: &mut Effects<T>,
    ) {
        let Some(replica) = self.replicas.get_mut(&id).filter(|replica| !replica.abandoned) else {
            effects.holds.push(Hold::end(Holder::Receiver(id)));
            return;
        };
        // Another one for a newer offer may be under way.
        let pending = &mut replica.pending_snapshot;
        let Some(ended) = pending.as_mut().filter(|pending| pending.checkpoint() == Some(checkpoint)) else { return };
        if complete {
            ended.complete = true;
            self.step_pending_snapshot(id, effects);
        } else {
            *pending = None;
            Self::end_overtaken(id, replica, effects);
        }
    }

    /// A replica that has by the log what the last snapshot would have brought needs nothing of it.
    pub(super) fn end_overtaken(id: ReplicaId, replica: &mut Replica<T>, effects: &mut Effects<T>) {
        let is_overtaken = replica.receives.is_some_and(|index| index <= replica.delivered);
        if is_overtaken && replica.pending_snapshot.is_none() && !replica.installing {
            Self::end_receiving(id, replica, effects);
        }
    }

    /// Steps a snapshot whose objects are here, once no other job works on the records that it replaces: a
    /// checkpoint built or installed at the same time would bring the old records back.
    pub(super) fn step_pending_snapshot(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        if replica.loading || replica.checkpointing != Checkpointing::Idle {
            return;
        }
        let Some(pending) = replica.pending_snapshot.take_if(|pending| pending.complete) else { return };
        self.raft.step(consensus::Input::Message(pending.message), &mut self.raft_effects);
        if self.raft.group(id).is_some_and(consensus::Group::has_incoming_snapshot) {
            replica.loading = true;
            replica.installing = true;
        } else {
            Self::end_receiving(id, replica, effects);
        }
    }

    /// Lets go of what was fetched for snapshots that will not be installed.
    pub(super) fn end_receiving(id: ReplicaId, replica: &mut Replica<T>, effects: &mut Effects<T>) {
        replica.pending_snapshot = None;
        if replica.receives.take().is_some() {
            effects.holds.push(Hold::end(Holder::Receiver(id)));
        }
    }

    /// A snapshot is durable in the log: load its records in place of the replica's own. That ends the hold on
    /// what was fetched.
    pub(super) fn on_snapshot_persisted(&mut self, id: ReplicaId, checkpoint: Checkpoint, effects: &mut Effects<T>) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.receives = None;
        replica.compacted = false;
        replica.checkpoint = checkpoint.position.index;
        replica.note_checkpoint(&checkpoint);
        self.schedule.changed.insert(id);
        let shard = replica.shard;
        effects.apply.push(ApplyTask::Open { replica: id, shard, checkpoint, replaces: true });
    }
}
