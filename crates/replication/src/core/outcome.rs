//! Turns what the Raft groups are ready to do into effects for the shell.

use flotilla_consensus::{self as consensus, CommittedEntries, Persist, Role, RoleChange, ShardChange};
use flotilla_storage::ReplicaWrite;
use flotilla_types::{EntryKind, LogIndex, Message, ShardId, WalSequence};

use super::{
    ApplyTask, Core, Done, Effects, Hold, Notice, Outgoing, RequestError, Write, entry_bytes::EntryBytes,
    log_refs::bytes_of,
};

/// Steps in which the bytes of a log's tail are counted.
const TAIL_STEPS: u64 = 16;

impl<T> Core<T> {
    pub(super) fn on_written(&mut self, sequence: WalSequence, done: Vec<Done>, effects: &mut Effects<T>) {
        self.handshake.synced(sequence);
        for done in done {
            match done {
                Done::Round { replica, number, installed } => {
                    if let Some(checkpoint) = installed {
                        self.on_snapshot_persisted(replica, checkpoint, effects);
                    }
                    if let Some(held) = self.replicas.get_mut(&replica) {
                        held.log_refs.written(replica, number, effects);
                    }
                    self.raft.step(consensus::Input::Persisted { replica, number }, &mut self.raft_effects);
                    self.touched.insert(replica);
                }
                Done::Created { replica } => self.on_created(replica, effects),
                Done::Checkpointed { replica, checkpoint, truncate } => {
                    self.on_checkpointed(replica, checkpoint, truncate, effects);
                }
                Done::Truncated { replica, to } => self.on_truncated(replica, to, effects),
                Done::Destroyed { replica } => {
                    let refs = self.being_destroyed.remove(&replica).unwrap_or_default();
                    effects.holds.extend(refs.into_iter().map(Hold::end));
                    effects.apply.push(ApplyTask::Close { replica });
                    effects.notices.push(Notice::Destroyed { replica });
                }
            }
        }
    }

    /// Collects the output of all groups until there is none left.
    pub(super) fn drain(&mut self, effects: &mut Effects<T>) {
        self.raft.drain(&mut self.raft_effects);
        let ready = std::mem::take(&mut self.raft_effects);
        for change in ready.roles {
            self.on_role_changed(change, effects);
        }
        for (shard, message) in ready.sends {
            if let Some(outgoing) = self.outgoing(shard, message, effects) {
                effects.sends.push(outgoing);
            }
        }
        for (shard, persist) in ready.persists {
            self.persist(shard, persist, effects);
        }
        for committed in ready.committed {
            self.deliver_committed(committed, effects);
        }
        for read in ready.reads {
            self.on_read_confirmed(read.replica, &read.context, read.index, effects);
        }
        for replica in ready.rests {
            self.on_rests(replica);
        }
        for replica in ready.wakes {
            self.rest.remove(replica);
        }
        for replica in ready.wants_checkpoint {
            self.want_checkpoint(replica, effects);
        }
        for (replica, error) in ready.failed {
            self.on_group_failed(replica, error, effects);
        }
    }

    fn on_role_changed(&mut self, change: RoleChange, effects: &mut Effects<T>) {
        let last = self.raft.group(change.replica).map(consensus::Group::last);
        let Some(replica) = self.replicas.get_mut(&change.replica) else { return };
        let led = replica.leads() && (change.role != Role::Leader || change.term != replica.term);
        replica.role = change.role;
        replica.term = change.term;
        replica.leader = change.leader;
        // Raft takes nothing any more from the leader that sent it, and no other one may ever send it again.
        if replica.parked_of_earlier_term(change.term) {
            self.drop_parked(change.replica);
        }
        let Some(replica) = self.replicas.get_mut(&change.replica) else { return };
        let (shard, leads) = (replica.shard, replica.leads());
        if led {
            replica.fail_leader_requests(effects);
            self.end_offers(change.replica, effects);
        }
        if led || leads {
            self.choose_serving(shard);
        }
        let Some(replica) = self.replicas.get_mut(&change.replica) else { return };
        if change.role == Role::Leader
            && let Some(last) = last
        {
            replica.first_of_term = last;
            self.schedule.announced.new.insert(change.replica);
            if replica.fold_due.is_some() {
                self.schedule.folds.insert(change.replica);
            }
            effects.notices.push(Notice::Descriptor((*replica.descriptor).clone()));
        }
        effects.notices.push(Notice::Leader { shard: replica.shard, term: change.term, node: replica.leader_node() });
    }

    fn outgoing(&mut self, shard: ShardId, message: Message, effects: &mut Effects<T>) -> Option<Outgoing> {
        let group = self.raft.group(message.from);
        let replica = self.replicas.get_mut(&message.from)?;
        let known = group.and_then(|group| group.node_of(message.to));
        let node = known.or_else(|| replica.routes.get(&message.to).copied())?;
        if let Some(snapshot) = &message.snapshot {
            self.on_offer_sent(message.from, message.to, &snapshot.checkpoint, effects);
        }
        Some(Outgoing { node, shard, message, synced: WalSequence(0) })
    }

    fn persist(&mut self, shard: ShardId, persist: Persist, effects: &mut Effects<T>) {
        let after = persist.after.into_iter();
        let after: Vec<_> = after.filter_map(|message| self.outgoing(shard, message, effects)).collect();
        let Some(replica) = self.replicas.get_mut(&persist.replica) else { return };
        if let Some(group) = self.raft.group(persist.replica) {
            let whole = persist.install.is_some().then_some(LogIndex(0));
            replica.log_refs.writes(group, persist.number, whole, &persist.entries);
        }
        replica.log_bytes =
            persist.entries.iter().fold(replica.log_bytes, |bytes, entry| bytes.saturating_add(bytes_of(entry)));
        if replica.log_bytes >= self.config.log_bytes_max {
            self.schedule.checkpoints.insert(persist.replica);
        }
        let mut write = ReplicaWrite::new(persist.replica);
        write.hard_state = persist.hard_state;
        write.entries = persist.entries;
        if let Some(checkpoint) = &persist.install {
            write.clear = true;
            write.truncate = Some((checkpoint.position.index, checkpoint.position.term));
            write.checkpoint = Some(checkpoint.clone());
            replica.delivered = checkpoint.position.index;
            replica.log_bytes = 0;
            replica.entry_bytes = EntryBytes::after(checkpoint.position.index);
            replica.descriptor = checkpoint.position.descriptor.clone();
            self.schedule.changed.insert(persist.replica);
            // What waits for objects may be covered, and nobody keeps those any more. The leader sends the rest again.
            self.drop_parked(persist.replica);
        }
        let writes = write.hard_state.is_some() || !write.entries.is_empty() || persist.install.is_some();
        effects.writes.push(Write {
            write: writes.then_some(write),
            done: Done::Round { replica: persist.replica, number: persist.number, installed: persist.install },
            after,
        });
    }

    fn deliver_committed(&mut self, committed: CommittedEntries, effects: &mut Effects<T>) {
        let id = committed.replica;
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let Some(last) = committed.entries.last() else { return };
        replica.delivered = last.index;
        Self::end_overtaken(id, replica, effects);
        replica.unapplied_bytes += committed.entries.iter().map(flotilla_types::Entry::size_bytes).sum::<usize>();
        let step = self.config.log_tail_bytes_max() / TAIL_STEPS;
        for entry in &committed.entries {
            replica.entry_bytes.add(entry.index, bytes_of(entry), step);
        }
        if last.kind == EntryKind::ConfChange {
            // After a restart, the voters of the checkpoint's configuration verify the replica: keep it
            // current.
            replica.checkpoint_wanted = true;
            self.schedule.checkpoints.insert(id);
        }
        if matches!(committed.shard_change, Some(ShardChange::Freeze(_))) {
            // The merge waits for a durable checkpoint of every replica.
            replica.checkpoint_wanted = true;
            self.schedule.checkpoints.insert(id);
        }
        let before = committed.shard_change.is_some().then(|| replica.descriptor.clone());
        if last.kind != EntryKind::Normal {
            let is_changed = replica.descriptor != committed.descriptor;
            replica.descriptor = committed.descriptor.clone();
            self.schedule.changed.insert(id);
            if replica.leads() && is_changed {
                effects.notices.push(Notice::Descriptor((*committed.descriptor).clone()));
            }
        }
        let mut waiters = Vec::new();
        while replica.inflight.front().is_some_and(|(index, ..)| *index <= last.index) {
            let Some((index, term, replies)) = replica.inflight.pop_front() else { break };
            let ours = committed.entries.iter().any(|entry| entry.index == index && entry.term == term);
            if ours {
                waiters.push((index, replies));
            } else {
                // Another leader's entry took its place. It is lost for good, but the caller finds out by
                // retrying.
                effects.replies.extend(replies.into_iter().map(|reply| (reply, Err(RequestError::Unknown))));
            }
        }
        let task = ApplyTask::Apply {
            replica: id,
            entries: committed.entries,
            shard_change: committed.shard_change,
            conf: committed.conf,
            descriptor: committed.descriptor,
            waiters,
            source: None,
        };
        match before {
            Some(before) => self.hand_over_committed(id, task, &before, effects),
            None => replica.hand_over(task, effects),
        }
        self.touched.insert(id);
        self.serve_confirmed(id, effects);
    }
}
