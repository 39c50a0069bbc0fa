//! The core's state of one replica, beside its Raft group.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use flotilla_consensus::Role;
use flotilla_storage::{ReplicaLog, Usage};
use flotilla_types::{
    Checkpoint, ClusterVersion, ConfState, Holder, LogIndex, Message, NodeId, ObjectRef, Refs, ReplicaId,
    ShardDescriptor, ShardId, Term, Timestamp,
};

use super::{
    Effects, Request, RequestError, entry_bytes::EntryBytes, gate::Parked, log_refs::LogRefs, offers::Offer,
    split::Splitting,
};
use crate::HostConfig;

/// Reads that share one confirmation of leadership by a quorum.
pub(super) struct ReadRound<T> {
    pub(super) context: Bytes,
    pub(super) started_ms: u64,
    pub(super) reads: Vec<Request<T>>,
}

/// The step that a replica's next checkpoint has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checkpointing {
    Idle,
    /// No checkpoint is made: only entries that the last one covers are being truncated.
    Truncating,
    Freezing,
    Building,
    Writing,
    Installing,
}

/// A snapshot message that waits for its objects, and then for other jobs on the replica's records to end.
pub(super) struct PendingSnapshot {
    pub(super) message: Message,
    /// Whether its objects are here, durable and held.
    pub(super) complete: bool,
}

impl PendingSnapshot {
    pub(super) fn checkpoint(&self) -> Option<&Checkpoint> {
        self.message.snapshot.as_ref().map(|snapshot| &snapshot.checkpoint)
    }

    /// Orders offers: those of a later term, and newer ones of a term, are greater.
    pub(super) fn offer(&self) -> (Term, LogIndex) {
        (self.message.term, self.checkpoint().map_or(LogIndex(0), |checkpoint| checkpoint.position.index))
    }
}

/// The configurations that may be in force at the end of a log.
pub(super) struct RecentConfs {
    pub(super) confs: Vec<ConfState>,
    /// The nodes of their replicas.
    pub(super) nodes: BTreeMap<ReplicaId, NodeId>,
}

/// The next entry.
pub(super) struct NextBatch<T> {
    pub(super) commands: Vec<Bytes>,
    pub(super) waiters: Vec<T>,
    /// The latest time that one of the commands must follow.
    pub(super) after: Timestamp,
    /// What they refer to, and who holds it until it is proposed.
    pub(super) refs: BTreeSet<ObjectRef>,
    pub(super) holders: Vec<Holder>,
}

impl<T> Default for NextBatch<T> {
    fn default() -> Self {
        Self {
            commands: Vec::new(),
            waiters: Vec::new(),
            after: Timestamp::ZERO,
            refs: BTreeSet::new(),
            holders: Vec::new(),
        }
    }
}

pub(super) struct Replica<T> {
    pub(super) shard: ShardId,
    /// Recovered from disk and not yet verified by its group's voters: it has no group, and neither votes nor
    /// answers.
    pub(super) unverified: bool,
    /// Recovered from disk in this incarnation, not created in it.
    pub(super) recovered: bool,
    /// Failed or lost: must not be used any more.
    pub(super) abandoned: bool,
    /// According to its log, the only voter of its group since the checkpoint.
    pub(super) sole_voter: bool,
    /// While it is unverified: the configurations at the end of its log, cached.
    pub(super) recent_confs: Option<Box<RecentConfs>>,
    pub(super) descriptor: Arc<ShardDescriptor>,
    /// Nodes of replicas that the descriptor does not contain yet, learned from their messages.
    pub(super) routes: BTreeMap<ReplicaId, NodeId>,

    pub(super) role: Role,
    pub(super) term: Term,
    pub(super) leader: ReplicaId,
    /// The first entry of a leader's term. It proposes once it has applied this: then it knows the clock of
    /// all before.
    pub(super) first_of_term: LogIndex,
    /// Hybrid time of the last command, applied or proposed here.
    pub(super) clock: Timestamp,

    /// The term in which this leader proposed its shard's switch to a version.
    pub(super) switch_proposed: Option<(Term, ClusterVersion)>,
    pub(super) pending: VecDeque<Request<T>>,
    /// Commands that wait for the objects that they refer to, by the number of the order.
    pub(super) gathering: BTreeMap<u64, Request<T>>,
    /// Orders of objects so far.
    pub(super) gathers: u64,
    pub(super) pending_bytes: usize,
    /// Entries proposed here and not yet committed, with the callers that wait for their commands.
    pub(super) inflight: VecDeque<(LogIndex, Term, Vec<T>)>,

    /// Strong reads that wait, in `reads`, `read_rounds` or `confirmed`.
    pub(super) reads_waiting: usize,
    pub(super) reads: Vec<Request<T>>,
    pub(super) read_rounds: VecDeque<ReadRound<T>>,
    /// Confirmed reads that wait for entries to be handed to the state machine.
    pub(super) confirmed: VecDeque<(LogIndex, Vec<Request<T>>)>,

    /// The last committed entry delivered to the state machine.
    pub(super) delivered: LogIndex,
    pub(super) applied: LogIndex,
    /// The version of its state machine, if it has one of its own.
    pub(super) version: Option<ClusterVersion>,
    pub(super) unapplied_bytes: usize,
    pub(super) usage: Usage,

    /// Records are being loaded, or a snapshot was accepted and will be: nothing else may touch them.
    pub(super) loading: bool,
    /// It applies nothing more, for want of a damaged object, until a snapshot replaces its records.
    pub(super) halted: bool,
    pub(super) checkpoint: LogIndex,
    pub(super) checkpointing: Checkpointing,
    pub(super) checkpoint_wanted: bool,
    /// A compaction has made tables that no checkpoint names yet.
    pub(super) compacted: bool,
    /// Its runs are to be folded, with pieces of this size, as soon as its log orders it.
    pub(super) fold_due: Option<u32>,
    /// The term in which this leader last proposed a fold, and the entry.
    pub(super) fold_proposed: Option<(Term, LogIndex)>,
    /// The log cannot free space because of this replica: its next checkpoint keeps no tail of entries.
    pub(super) releases_log: bool,
    /// Log bytes written since the last checkpoint began.
    pub(super) log_bytes: u64,
    /// The bytes of committed entries that are still in the log.
    pub(super) entry_bytes: EntryBytes,
    pub(super) pending_snapshot: Option<Box<PendingSnapshot>>,
    /// Appends that wait for objects.
    pub(super) parked: Option<Box<Parked>>,
    /// Objects may be held that were fetched for such appends.
    pub(super) holds_parked: bool,
    /// They could not all be fetched: when what came is let go of.
    pub(super) parked_kept_ms: Option<u64>,
    /// When it last gave its leadership away, because there was no room for objects.
    pub(super) gave_way_ms: Option<u64>,
    /// The entries of its log that refer to objects.
    pub(super) log_refs: LogRefs,
    /// A snapshot was accepted and is not loaded yet.
    pub(super) installing: bool,
    /// Objects may be held for it that were fetched for snapshots: the last one's index.
    pub(super) receives: Option<LogIndex>,
    /// The snapshots that its followers were offered, if it leads.
    pub(super) offers: BTreeMap<ReplicaId, Offer>,
    /// Its durable checkpoint, if its shard was frozen there to be merged.
    pub(super) frozen: Option<Box<Checkpoint>>,
    /// The replica here that it is being merged into, or was to be.
    pub(super) merges_into: Option<ReplicaId>,
    /// `None` if its shard was neither split nor merged since the start.
    pub(super) splitting: Option<Box<Splitting<T>>>,
}

impl<T> Replica<T> {
    pub(super) fn new(state: &ReplicaLog, recovered: bool) -> Self {
        let index = state.checkpoint.position.index;
        let mut replica = Self {
            shard: state.shard,
            unverified: recovered,
            recovered,
            abandoned: false,
            sole_voter: false,
            recent_confs: None,
            descriptor: state.checkpoint.position.descriptor.clone(),
            routes: BTreeMap::new(),
            role: Role::Follower,
            term: state.hard_state.term,
            leader: ReplicaId::NONE,
            first_of_term: LogIndex(u64::MAX),
            clock: Timestamp::ZERO,
            switch_proposed: None,
            pending: VecDeque::new(),
            gathering: BTreeMap::new(),
            gathers: 0,
            pending_bytes: 0,
            inflight: VecDeque::new(),
            reads_waiting: 0,
            reads: Vec::new(),
            read_rounds: VecDeque::new(),
            confirmed: VecDeque::new(),
            delivered: index,
            applied: index,
            version: None,
            unapplied_bytes: 0,
            usage: Usage::default(),
            loading: true,
            halted: false,
            checkpoint: index,
            checkpointing: Checkpointing::Idle,
            checkpoint_wanted: false,
            compacted: false,
            fold_due: None,
            fold_proposed: None,
            releases_log: false,
            log_bytes: 0,
            entry_bytes: EntryBytes::after(index),
            pending_snapshot: None,
            parked: None,
            holds_parked: false,
            parked_kept_ms: None,
            gave_way_ms: None,
            log_refs: LogRefs::default(),
            installing: false,
            receives: None,
            offers: BTreeMap::new(),
            frozen: None,
            merges_into: None,
            splitting: None,
        };
        replica.note_checkpoint(&state.checkpoint);
        replica
    }

    pub(super) fn leads(&self) -> bool {
        self.role == Role::Leader
    }

    /// Whether the checkpoint has every entry that was delivered to the state machine, and what was compacted:
    /// another one would be the same.
    pub(super) fn is_checkpoint_current(&self) -> bool {
        self.delivered <= self.checkpoint && !self.compacted
    }

    /// Whether a checkpoint can be made now, as far as this replica is concerned.
    pub(super) fn may_checkpoint(&self) -> bool {
        !self.unverified
            && !self.abandoned
            && !self.loading
            && !self.halted
            && self.checkpointing == Checkpointing::Idle
            && !self.is_checkpoint_current()
    }

    /// Whether so much waits to be applied or checkpointed that nothing more may be proposed.
    pub(super) fn is_backlogged(&self, config: &HostConfig) -> bool {
        self.unapplied_bytes > config.unapplied_bytes_max
            || self.usage.active_bytes + self.usage.frozen_bytes > 4 * config.memtable_bytes_max
    }

    /// Why a request must be routed again. A frozen shard serves none. A later range epoch than this replica's is no
    /// reason: the replica lags. If it leads, it applies what it lacks before the request.
    pub(super) fn outdated(&self, request: &Request<T>) -> Option<RequestError> {
        let is_old = request.range_epoch.is_some_and(|epoch| epoch < self.descriptor.epoch.range);
        let outdated = is_old || self.descriptor.is_frozen();
        // One that was merged again is no more.
        let is_parted = |heir: &&ShardDescriptor| heir.range.intersection(&self.descriptor.range).is_empty();
        let heirs = || self.splitting.iter().flat_map(|splitting| &splitting.heirs).filter(is_parted).cloned();
        outdated.then(|| RequestError::StaleEpoch {
            now: [(*self.descriptor).clone()].into_iter().chain(heirs()).collect(),
        })
    }

    /// Whether commands may be proposed: the clock of all earlier entries is known.
    pub(super) fn may_propose(&self) -> bool {
        self.leads() && self.applied >= self.first_of_term
    }

    /// Takes the commands of the next entry off the queue. Those that expired, or were routed by a range that has
    /// changed since, are answered instead.
    pub(super) fn take_batch(&mut self, config: &HostConfig, now_ms: u64, effects: &mut Effects<T>) -> NextBatch<T> {
        let mut batch = NextBatch::default();
        let mut bytes = 0;
        while let Some(next) = self.pending.front() {
            let size = next.payload.len();
            let is_full = bytes + size > config.batch_bytes_max || batch.refs.len() + next.refs.refs.len() > Refs::MAX;
            if batch.commands.len() == config.batch_commands_max || (is_full && !batch.commands.is_empty()) {
                break;
            }
            let Some(request) = self.pending.pop_front() else { break };
            self.pending_bytes -= size;
            if request.deadline_ms <= now_ms {
                request.refuse(RequestError::Deadline, effects);
                continue;
            }
            if let Some(error) = self.outdated(&request) {
                request.refuse(error, effects);
                continue;
            }
            bytes += size;
            batch.after = batch.after.max(request.after);
            batch.refs.extend(request.refs.refs.iter().copied());
            batch.holders.extend(request.refs.holder);
            batch.commands.push(request.payload);
            batch.waiters.push(request.reply);
        }
        batch
    }

    pub(super) fn leader_node(&self) -> Option<NodeId> {
        self.node_of(self.leader)
    }

    /// The node of a replica of the group, as far as it is known.
    pub(super) fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.descriptor.node_of(replica).or_else(|| self.routes.get(&replica).copied())
    }

    /// Leadership is lost: proposed commands have an unknown outcome, all other requests can go to another
    /// node.
    pub(super) fn fail_leader_requests(&mut self, effects: &mut Effects<T>) {
        let unproposed = RequestError::NotLeader { leader: self.leader_node() };
        self.fail(unproposed, RequestError::Unknown, effects);
    }

    pub(super) fn fail_all(&mut self, error: RequestError, effects: &mut Effects<T>) {
        self.fail(error, RequestError::Unknown, effects);
    }

    fn fail(&mut self, unproposed: RequestError, proposed: RequestError, effects: &mut Effects<T>) {
        self.pending_bytes = 0;
        self.reads_waiting = 0;
        let inflight = self.inflight.drain(..).flat_map(|(_, _, waiters)| waiters);
        effects.replies.extend(inflight.map(|reply| (reply, Err(proposed.clone()))));
        let rounds = self.read_rounds.drain(..).flat_map(|round| round.reads);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, reads)| reads);
        let gathering = std::mem::take(&mut self.gathering).into_values();
        let rest = self.pending.drain(..).chain(gathering).chain(self.reads.drain(..)).chain(rounds).chain(confirmed);
        rest.for_each(|request| request.refuse(unproposed.clone(), effects));
    }
}
