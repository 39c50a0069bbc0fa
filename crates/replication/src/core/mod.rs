//! The pure half of the shard host: decides what to persist, send, apply, checkpoint, pull and answer.
//!
//! One [`Core`] owns every replica of a node. [`Core::step`] takes one input; [`Core::flush`] emits the
//! effects of many inputs together, so that pending writes share an entry and messages share a frame. There
//! is no clock, lock, thread, randomness or I/O inside, except synchronous log reads through
//! [`flotilla_storage::Log`], which raft-rs needs.

mod announced;
mod checkpoints;
mod damage;
mod demand;
mod effects;
mod entry_bytes;
mod folds;
mod gate;
mod handshake;
mod input;
mod lease;
mod log_refs;
mod merge;
mod offers;
mod outcome;
mod pace;
mod replica;
mod requests;
mod rest;
mod schedule;
mod snapshots;
mod split;
mod status;
mod transfer;
mod upkeep;
mod versions;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use flotilla_consensus::{self as consensus, GroupError, MultiRaft, Origin};
use flotilla_storage::{Log, LogError, LogEvidence, Remedy, ReplicaLog, ReplicaWrite, remedy};
use flotilla_types::{
    Checkpoint, ClusterVersion, ConfState, HardState, Holder, Incarnation, LogIndex, Message, MessageKind, NodeId,
    Position, ReplicaId, ReplicaRole, ShardDescriptor, ShardId, Term,
};

use crate::{FolderTrust, HostConfig};
pub use announced::LEADERS_PER_ROUND;
pub use demand::{Demand, Demands};
pub use effects::{
    ApplyTask, Background, Count, Effects, Gather, Hold, LostReason, Notice, Outgoing, Query, ReplicaStatus, Write,
};
use handshake::RecoveryHandshake;
pub use handshake::first_sequence;
pub use input::{
    Answer, Answered, CommandRefs, Done, Freshness, GatherEnd, Input, NodeHeartbeat, Request, RequestError,
};
pub use lease::ReadCounts;
use replica::{Checkpointing, Replica};
use rest::RestingReplicas;
use schedule::Schedule;
pub use status::{Replicas, StatusUpdates};

/// The position of a shard's first checkpoint: behind one imaginary entry, so that a later replica always needs a
/// snapshot.
pub(crate) const FIRST_POSITION: (LogIndex, Term) = (LogIndex(1), Term(1));

/// Bound on the senders that a replica knows from their messages only: replicas that a newer configuration
/// added.
const ROUTES_MAX: usize = 64;

/// The state machine that decides for every replica of a node.
pub struct Core<T> {
    node: NodeId,
    config: HostConfig,
    log: Arc<dyn Log>,
    raft: MultiRaft,
    raft_effects: consensus::Effects,
    /// In boxes: a map has room for about as many replicas as it holds.
    replicas: BTreeMap<ReplicaId, Box<Replica<T>>>,
    /// How many of them are unverified.
    unverified: usize,
    /// The replica that serves a shard here: the one that leads, or else the newest that is not abandoned.
    serving: BTreeMap<ShardId, ReplicaId>,
    /// All replicas by shard.
    by_shard: BTreeSet<(ShardId, ReplicaId)>,
    /// The cluster version in force.
    cluster_version: ClusterVersion,
    /// Replicas whose state machines are at an earlier version than the one in force.
    to_switch: BTreeSet<ReplicaId>,
    /// Replicas whose requests the next flush must process.
    touched: BTreeSet<ReplicaId>,
    schedule: Schedule,
    rest: RestingReplicas,
    pace: pace::Pace,
    /// The replica here that has offered a snapshot to this one.
    offers_to: BTreeMap<ReplicaId, ReplicaId>,
    handshake: RecoveryHandshake,
    /// Replicas that need damaged objects, or were halted by them.
    damaged: BTreeSet<ReplicaId>,
    /// Replicas that need damaged objects, as far as was reported.
    damage_reported: BTreeSet<ReplicaId>,
    /// Replicas whose tombstone is being written: they must never be created again. And who holds what their logs
    /// refer to.
    being_destroyed: BTreeMap<ReplicaId, Vec<Holder>>,
    unborn: split::Unborn,
    /// Replicas that were merged into others here, since the start.
    merged: VecDeque<ReplicaId>,
    seed: u64,
    ticks: u64,
    now_ms: u64,
    wall_ms: u64,
    /// Makes read contexts unique across restarts.
    read_nonce: u64,
    reads_started: u64,
    reads: ReadCounts,
    demands: Demands,
    stepping_down: bool,
}

impl<T> Core<T> {
    /// Opens every replica in the log. `seed` randomizes election timeouts and must differ between starts.
    pub fn open(
        node: NodeId,
        incarnation: Incarnation,
        config: HostConfig,
        log: Arc<dyn Log>,
        seed: u64,
        effects: &mut Effects<T>,
    ) -> Result<Self, LogError> {
        let recovered = log.replicas()?;
        let evidence = match (config.folder_trust, log.evidence()) {
            (FolderTrust::Never, LogEvidence::Complete) => LogEvidence::Unknown,
            (FolderTrust::Always, LogEvidence::Unknown) => LogEvidence::Complete,
            (_, evidence) => evidence,
        };
        let trusted = evidence == LogEvidence::Complete;
        let mut core = Self {
            node,
            raft: MultiRaft::new(config.raft.clone(), log.clone()),
            raft_effects: consensus::Effects::default(),
            replicas: BTreeMap::new(),
            unverified: 0,
            serving: BTreeMap::new(),
            by_shard: BTreeSet::new(),
            cluster_version: ClusterVersion::FIRST,
            to_switch: BTreeSet::new(),
            touched: BTreeSet::new(),
            schedule: Schedule::default(),
            rest: RestingReplicas::default(),
            pace: pace::Pace::default(),
            offers_to: BTreeMap::new(),
            handshake: RecoveryHandshake::new(node, incarnation, log.recovered(), trusted, log.peer_sequences()),
            config,
            log,
            damaged: BTreeSet::new(),
            damage_reported: BTreeSet::new(),
            being_destroyed: BTreeMap::new(),
            unborn: split::Unborn::default(),
            merged: VecDeque::new(),
            seed,
            ticks: 0,
            now_ms: 0,
            wall_ms: 0,
            read_nonce: seed,
            reads_started: 0,
            reads: ReadCounts::default(),
            demands: Demands::default(),
            stepping_down: false,
        };
        // All at first: what one replica lets go of, another one may need.
        effects.holds.extend(recovered.iter().map(|(replica, state)| Hold {
            holder: Holder::Checkpoint(*replica),
            objects: state.checkpoint.objects().collect(),
        }));
        for (replica, state) in recovered {
            core.add_replica(replica, &state, true, effects);
            if let Err(error) = core.recover_log_refs(replica, (state.truncated.0, state.last), effects) {
                core.on_group_failed(replica, GroupError::Log(error), effects);
            }
        }
        if let LogEvidence::WentBack { synced } = evidence {
            core.on_rollback(node, synced, effects);
        }
        core.open_verified(effects);
        core.report_forgotten_replicas(effects);
        Ok(core)
    }

    /// Processes one input. `now_ms` is monotonic and counts suspend; `wall_ms` is Unix milliseconds.
    pub fn step(&mut self, now_ms: u64, wall_ms: u64, input: Input<T>, effects: &mut Effects<T>) {
        self.now_ms = now_ms;
        self.wall_ms = wall_ms;
        match input {
            Input::Tick => self.tick(effects),
            Input::Raft { from, shard, message } => self.receive(from, shard, message, effects),
            Input::PeerSynced { from, sequence } => self.handshake.note_synced(from, sequence),
            Input::NodeHeartbeat { from, heartbeat } => self.on_node_heartbeat(from, heartbeat, effects),
            Input::Peers(peers) => {
                self.rest.set_peers(&peers);
                self.handshake.set_peers(peers);
                self.open_verified(effects);
            }
            Input::ClusterVersion(version) => self.on_cluster_version(version),
            Input::Peer { node, connected } => self.on_peer_changed(node, connected, effects),
            Input::Propose(request) => self.propose(request, effects),
            Input::Read(request, freshness) => self.read(request, freshness, effects),
            Input::Written { sequence, done } => self.on_written(sequence, done, effects),
            Input::Applied { replica, index, clock, version, upkeep_due_ms, bytes, usage } => {
                self.on_machine_version(replica, version);
                self.on_upkeep_due(replica, upkeep_due_ms);
                self.on_applied(replica, index, clock, bytes, usage, effects);
            }
            Input::Opened { replica, index, clock, version, upkeep_due_ms } => {
                self.on_machine_version(replica, version);
                self.on_upkeep_due(replica, upkeep_due_ms);
                self.on_opened(replica, index, clock, effects);
            }
            Input::Frozen { replica, frozen } => self.on_frozen(replica, frozen, effects),
            Input::Built { replica, checkpoint, split } => self.on_built(replica, checkpoint, split, effects),
            Input::CheckpointInstalled { replica, due } => self.on_checkpoint_installed(replica, due, effects),
            Input::FoldPinned { replica } => self.on_fold_pinned(replica, effects),
            Input::Compacted { replica, done } => self.on_compacted(replica, done, effects),
            Input::Pulled { replica, checkpoint, complete } => self.on_pulled(replica, &checkpoint, complete, effects),
            Input::Gathered { holder, number, end } => self.on_gathered(holder, number, end, effects),
            Input::ObjectsServed { node, to, complete } => self.on_objects_served(node, to, complete),
            Input::SnapshotSent { replica, to, sent } => {
                if !sent {
                    self.raft
                        .step(consensus::Input::SnapshotSent { replica, to, delivered: false }, &mut self.raft_effects);
                }
            }
            Input::Unreachable { replicas, .. } => {
                for (replica, to) in replicas {
                    self.raft.step(consensus::Input::Unreachable { replica, to }, &mut self.raft_effects);
                }
            }
            Input::ReleaseLog { replica } => self.release_log(replica, effects),
            Input::Damaged(damaged) => self.on_damaged(damaged, effects),
            Input::Halted { replica } => self.on_halted(replica, effects),
            Input::Broken { replica } => {
                self.on_compacted(replica, false, effects);
                self.abandon(replica, LostReason::Broken, effects);
            }
            Input::Diverged { replica } => self.on_diverged(replica, effects),
            Input::Create { replica, descriptor, founding } => self.create(replica, descriptor, founding, effects),
            Input::Destroy { replica } if self.is_being_merged(replica) => {}
            Input::Destroy { replica } => self.destroy(replica, effects),
            Input::TrustFolder => self.trust_folder(effects),
            Input::Change { shard, change } => {
                if let Some(replica) = self.serving.get(&shard) {
                    // The reconciler proposes refused changes again.
                    let _ = self.raft.propose_change(*replica, &change, &mut self.raft_effects);
                }
            }
            Input::PrepareSplit { shard, at } => self.prepare_split(shard, &at, effects),
            Input::PrepareMerge { shard, epoch } => self.prepare_merge(shard, epoch, effects),
            Input::CountBegun(count) => effects.background.push(Background::Count(count)),
            Input::Counted { replica, at } => self.on_counted(replica, &at, effects),
            Input::ChangeShard { shard, change } => self.change_shard(shard, &change, effects),
            Input::Transfer { shard, to } => self.transfer(shard, to),
            Input::StepDown => {
                self.stepping_down = true;
                self.transfer_leaderships();
            }
        }
    }

    /// Emits the effects of all inputs since the last flush. `now_ms` must be read after the last of them was
    /// received: leases are checked against it, and the process may have been stopped in between.
    pub fn flush(&mut self, now_ms: u64, effects: &mut Effects<T>) {
        self.now_ms = now_ms;
        while let Some(replica) = self.touched.pop_first() {
            self.propose_switch(replica);
            self.propose_pending(replica, effects);
            self.start_reads(replica, effects);
        }
        self.drain(effects);
        if !effects.writes.is_empty() {
            effects.peer_sequences.extend(self.handshake.take_unrecorded());
        }
    }

    fn tick(&mut self, effects: &mut Effects<T>) {
        self.ticks += 1;
        let pace = self.pace.next(self.now_ms, self.config.tick_ms);
        self.wake_dependents(pace);
        self.raft.limit_campaigns(pace);
        self.raft.step(consensus::Input::Tick, &mut self.raft_effects);
        self.expire_requests(effects);
        self.visit_offers(effects);
        self.start_due_checkpoints(effects);
        self.propose_due_upkeep();
        self.propose_due_folds();
        if self.ticks.is_multiple_of(self.config.node_heartbeat_ticks) {
            self.send_node_heartbeats(effects);
            // A switch that could not be proposed, or was lost with its leader, is proposed again.
            self.touched.extend(&self.to_switch);
            if self.stepping_down {
                self.transfer_leaderships();
            }
        }
    }

    /// Steps a Raft message. Messages for a replica that is absent, unverified or abandoned are dropped: only
    /// the metadata group creates replicas, never a message.
    fn receive(&mut self, from: NodeId, shard: ShardId, message: Message, effects: &mut Effects<T>) {
        let awaits_creation = self.unborn.awaits(message.to);
        let Some(replica) = self.replicas.get_mut(&message.to).filter(|_| !awaits_creation) else {
            self.unborn.keep(from, shard, message);
            return;
        };
        if replica.shard != shard || self.handshake.is_ahead(from) {
            return;
        }
        match replica.descriptor.node_of(message.from) {
            // The certificate authenticates the node, which may send for its own replicas only.
            Some(node) if node != from => {
                tracing::warn!(%from, replica = %message.from, %node, "a node sent a message for another node's replica");
                return;
            }
            Some(_) => {}
            None if replica.routes.len() >= ROUTES_MAX && !replica.routes.contains_key(&message.from) => return,
            None => {
                replica.routes.insert(message.from, from);
            }
        }
        if message.kind == MessageKind::Append
            && !message.entries.is_empty()
            && replica.unapplied_bytes > self.config.unapplied_bytes_max
        {
            return;
        }
        if message.kind == MessageKind::Snapshot {
            self.receive_snapshot(from, message, effects);
        } else {
            self.wake_if_silent(&message);
            if message.kind == MessageKind::Append {
                self.receive_append(message, effects);
            } else {
                self.raft.step(consensus::Input::Message(message), &mut self.raft_effects);
            }
        }
    }

    /// Adds a replica that the log contains. Recovered ones have no group until peers have verified this
    /// node.
    fn add_replica(&mut self, id: ReplicaId, state: &ReplicaLog, recovered: bool, effects: &mut Effects<T>) {
        let mut replica = Replica::new(state, recovered);
        replica.sole_voter = recovered && self.is_sole_voter(id, state);
        effects.apply.push(ApplyTask::Open {
            replica: id,
            shard: state.shard,
            checkpoint: state.checkpoint.clone(),
            replaces: false,
        });
        self.unverified += usize::from(replica.unverified);
        self.replicas.insert(id, Box::new(replica));
        self.by_shard.insert((state.shard, id));
        self.choose_serving(state.shard);
        self.schedule.changed.insert(id);
        if !recovered && state.hard_state.vote == ReplicaId::NONE {
            self.open_group(id, state, Origin::Created, effects);
        }
    }

    fn open_group(&mut self, id: ReplicaId, state: &ReplicaLog, origin: Origin, effects: &mut Effects<T>) {
        let seed = self.seed ^ id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match self.raft.open(id, state, origin, seed) {
            Ok(()) => self.end_doubt(id),
            Err(error) => self.on_group_failed(id, error, effects),
        }
    }

    /// A replica has been verified.
    fn end_doubt(&mut self, id: ReplicaId) {
        if let Some(replica) = self.replicas.get_mut(&id) {
            self.unverified -= usize::from(std::mem::take(&mut replica.unverified));
            replica.recent_confs = None;
        }
    }

    /// Creates a replica, if this node may not have forgotten it. A refused creation is requested again.
    fn create(&mut self, id: ReplicaId, descriptor: ShardDescriptor, founding: bool, effects: &mut Effects<T>) {
        if self.was_merged(id) {
            return;
        }
        if self.being_destroyed.contains_key(&id) || self.log.is_tombstone(id) {
            // Whoever wants it must want another one.
            let replicas = vec![(descriptor.shard, id)];
            effects.notices.push(Notice::Lost { replicas, reason: LostReason::Tombstone });
            return;
        }
        let is_here = self.replicas.contains_key(&id) || self.is_expected(id);
        if is_here || !self.handshake.may_create(self.node, &descriptor) {
            return;
        }
        // Founders start after one imaginary entry, so that a later replica always needs a snapshot, which
        // carries the initial configuration: no entry does.
        let (index, term) = if founding { FIRST_POSITION } else { (LogIndex(0), Term(0)) };
        let voters = descriptor.replicas.iter().filter(|replica| replica.role == ReplicaRole::Voter);
        let conf =
            if founding { ConfState::of_voters(voters.map(|voter| voter.replica)) } else { ConfState::default() };
        let checkpoint =
            Checkpoint::empty(Position { index, term, conf: Arc::new(conf), descriptor: Arc::new(descriptor) });
        let hard_state = HardState { term, vote: ReplicaId::NONE, commit: index };
        let shard = checkpoint.position.descriptor.shard;
        let state = ReplicaLog { shard, hard_state, truncated: (index, term), last: index, checkpoint };
        effects.writes.push(created(id, &state));
        if !founding {
            self.announce_created(shard);
        }
        self.add_replica(id, &state, false, effects);
    }

    /// Writes a tombstone, even for an id that is not here: it must never be created.
    fn destroy(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        if self.log.is_tombstone(id) || self.being_destroyed.contains_key(&id) {
            return;
        }
        let holders = self.replicas.get(&id).map(|replica| replica.log_refs.holders(id)).unwrap_or_default();
        self.being_destroyed.insert(id, holders);
        self.end_offers(id, effects);
        self.end_rest(id);
        self.unborn.forget(id);
        if let Some(mut replica) = self.replicas.remove(&id) {
            self.unverified -= usize::from(replica.unverified);
            self.raft.close(id);
            replica.fail_all(RequestError::Stopped, effects);
            replica.end_splitting(id, effects);
            Self::end_receiving(id, &mut replica, effects);
            Self::end_parked(id, &mut replica, effects);
            self.by_shard.remove(&(replica.shard, id));
            self.schedule.remove(id);
            self.schedule.memtables.set(id, 0);
            self.choose_serving(replica.shard);
            self.end_damage(id, replica.shard, effects);
        }
        effects.writes.push(Write {
            write: Some(ReplicaWrite { destroy: true, ..ReplicaWrite::new(id) }),
            done: Done::Destroyed { replica: id },
            after: Vec::new(),
        });
    }

    /// Chooses the replica that serves a shard here. There are two while one is replaced by the other.
    fn choose_serving(&mut self, shard: ShardId) {
        let here = self.by_shard.range((shard, ReplicaId::NONE)..=(shard, ReplicaId(u64::MAX)));
        let usable = here.rev().filter_map(|(_, id)| {
            self.replicas.get(id).filter(|replica| !replica.abandoned).map(|replica| (*id, replica.leads()))
        });
        // Of several that lead, the first is the newest.
        let chosen = usable.reduce(|best, next| if next.1 && !best.1 { next } else { best });
        match chosen {
            Some((id, _)) => self.serving.insert(shard, id),
            None => self.serving.remove(&shard),
        };
    }

    /// Abandons a replica whose group failed, unless its log could not be read (the disk failed, and the node
    /// ends) or has what only a newer binary knows (see [`Remedy::AwaitUpgrade`]).
    fn on_group_failed(&mut self, id: ReplicaId, error: GroupError, effects: &mut Effects<T>) {
        tracing::error!(replica = %id, %error, "a replica failed");
        match error {
            GroupError::Log(ref log) if remedy(log) != Remedy::AbandonReplica => effects.fatal = Some(error),
            GroupError::Version { .. } => match self.replicas.get(&id).map(|replica| replica.shard) {
                Some(ShardId::META) => effects.fatal = Some(error),
                _ => self.stop_using(id, effects),
            },
            _ => self.abandon(id, LostReason::Broken, effects),
        }
    }

    /// Stops using a replica. It stays on disk until the metadata group has replaced it.
    fn abandon(&mut self, id: ReplicaId, reason: LostReason, effects: &mut Effects<T>) {
        if self.replicas.get(&id).is_none_or(|replica| replica.abandoned) {
            return;
        }
        self.stop_using(id, effects);
        if let Some(replica) = self.replicas.get_mut(&id) {
            self.unverified -= usize::from(std::mem::take(&mut replica.unverified));
            replica.recent_confs = None;
            effects.notices.push(Notice::Lost { replicas: vec![(replica.shard, id)], reason });
        }
    }

    /// Whoever says so has compared it with others; that these are enough without it is looked at again here.
    fn on_diverged(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        let Some(group) = self.raft.group(id) else { return };
        let conf = group.conf();
        let is_needed = conf.voters.contains(&id) && (conf.voters.len() < 3 || !conf.voters_outgoing.is_empty());
        if is_needed {
            tracing::warn!(replica = %id, "a replica that differs from others stays: its shard may need its vote");
            return;
        }
        tracing::error!(replica = %id, "a replica's state differs from that of a majority of its shard");
        self.on_compacted(id, false, effects);
        self.abandon(id, LostReason::Diverged, effects);
    }

    fn stop_using(&mut self, id: ReplicaId, effects: &mut Effects<T>) {
        self.end_rest(id);
        self.raft.close(id);
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        replica.abandoned = true;
        // Its unfinished checkpoint must not hold back others.
        replica.checkpointing = Checkpointing::Idle;
        replica.fail_all(RequestError::Stopped, effects);
        replica.end_splitting(id, effects);
        Self::end_receiving(id, replica, effects);
        Self::end_parked(id, replica, effects);
        let shard = replica.shard;
        self.end_offers(id, effects);
        self.schedule.remove(id);
        self.choose_serving(shard);
        // It has failed, which is more.
        self.damaged.remove(&id);
    }
}

/// The write that creates a replica.
fn created(id: ReplicaId, state: &ReplicaLog) -> Write {
    Write {
        write: Some(ReplicaWrite {
            create: Some(state.shard),
            checkpoint: Some(state.checkpoint.clone()),
            truncate: Some(state.truncated),
            hard_state: Some(state.hard_state),
            ..ReplicaWrite::new(id)
        }),
        done: Done::Created { replica: id },
        after: Vec::new(),
    }
}
