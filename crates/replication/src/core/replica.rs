//! What the core keeps for one replica beside its group.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use flotilla_consensus::Role;
use flotilla_storage::{ReplicaLog, Usage};
use flotilla_types::{ConfState, LogIndex, Message, NodeId, ReplicaId, ShardDescriptor, ShardId, Term, Timestamp};

use super::{Effects, Request, RequestError};

/// Reads that one confirmation of leadership serves.
pub(super) struct ReadRound<T> {
    pub(super) context: Bytes,
    pub(super) started_ms: u64,
    pub(super) reads: Vec<Request<T>>,
}

/// Where a replica stands with its next checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checkpointing {
    Idle,
    Freezing,
    Building,
    Writing,
    Settling,
}

/// A snapshot message that waits for its objects, and then for other work on the replica's records to end.
pub(super) struct Parked {
    pub(super) message: Message,
    /// Whether its objects are here and pinned.
    pub(super) complete: bool,
}

pub(super) struct Replica<T> {
    pub(super) shard: ShardId,
    /// Recovered from disk and not yet greeted: has no group.
    pub(super) dormant: bool,
    /// Recovered from disk in this life, as opposed to created in it.
    pub(super) recovered: bool,
    /// May not be used any more.
    pub(super) given_up: bool,
    /// As far as the log says, the only voter its group ever had since the checkpoint.
    pub(super) alone: bool,
    /// While it is dormant: its configuration at the end of its log, and where those live, once somebody asked.
    pub(super) latest: Option<(ConfState, BTreeMap<ReplicaId, NodeId>)>,
    pub(super) descriptor: ShardDescriptor,
    /// Nodes of replicas that the descriptor does not know yet, learned from their messages.
    pub(super) routes: BTreeMap<ReplicaId, NodeId>,

    pub(super) role: Role,
    pub(super) term: Term,
    pub(super) leader: ReplicaId,
    /// A leader proposes once it has applied this entry, the first of its term: then it knows the clock of all before.
    pub(super) leads_from: LogIndex,
    /// Hybrid time of the last command, applied or proposed here.
    pub(super) clock: Timestamp,

    pub(super) pending: VecDeque<Request<T>>,
    pub(super) pending_bytes: usize,
    /// Entries proposed here and not yet committed, with who waits for their commands.
    pub(super) inflight: VecDeque<(LogIndex, Term, Vec<T>)>,

    /// Strong reads that wait, here or in the two lists that follow.
    pub(super) reads_waiting: usize,
    pub(super) reads: Vec<Request<T>>,
    pub(super) read_rounds: VecDeque<ReadRound<T>>,
    /// Confirmed reads that wait for entries to be handed to the state machine.
    pub(super) confirmed: VecDeque<(LogIndex, Vec<Request<T>>)>,

    pub(super) handed_out: LogIndex,
    pub(super) applied: LogIndex,
    pub(super) unapplied_bytes: usize,
    pub(super) usage: Usage,

    /// Records are being loaded, or an accepted snapshot is on its way to that: nothing else may touch them.
    pub(super) loading: bool,
    pub(super) checkpoint: LogIndex,
    pub(super) checkpointing: Checkpointing,
    pub(super) checkpoint_wanted: bool,
    /// Log bytes written since the last checkpoint was asked for.
    pub(super) log_bytes: u64,
    pub(super) parked: Option<Parked>,
    /// Followers that were sent a snapshot, and when.
    pub(super) snapshots_sent: BTreeMap<ReplicaId, u64>,
}

impl<T> Replica<T> {
    pub(super) fn new(state: &ReplicaLog, recovered: bool) -> Self {
        let index = state.checkpoint.position.index;
        Self {
            shard: state.shard,
            dormant: recovered,
            recovered,
            given_up: false,
            alone: false,
            latest: None,
            descriptor: state.checkpoint.position.descriptor.clone(),
            routes: BTreeMap::new(),
            role: Role::Follower,
            term: state.hard_state.term,
            leader: ReplicaId::NONE,
            leads_from: LogIndex(u64::MAX),
            clock: Timestamp::ZERO,
            pending: VecDeque::new(),
            pending_bytes: 0,
            inflight: VecDeque::new(),
            reads_waiting: 0,
            reads: Vec::new(),
            read_rounds: VecDeque::new(),
            confirmed: VecDeque::new(),
            handed_out: index,
            applied: index,
            unapplied_bytes: 0,
            usage: Usage::default(),
            loading: true,
            checkpoint: index,
            checkpointing: Checkpointing::Idle,
            checkpoint_wanted: false,
            log_bytes: 0,
            parked: None,
            snapshots_sent: BTreeMap::new(),
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.role == Role::Leader
    }

    /// Whether commands may be proposed: the clock of everything before is known.
    pub(super) fn may_propose(&self) -> bool {
        self.leads() && self.applied >= self.leads_from
    }

    pub(super) fn leader_node(&self) -> Option<NodeId> {
        self.descriptor.node_of(self.leader).or_else(|| self.routes.get(&self.leader).copied())
    }

    /// Leadership is lost: what was proposed has an unknown fate, what was not can go elsewhere.
    pub(super) fn fail_led(&mut self, effects: &mut Effects<T>) {
        let elsewhere = RequestError::NotLeader { leader: self.leader_node() };
        self.fail(elsewhere, RequestError::Unknown, effects);
    }

    pub(super) fn fail_all(&mut self, error: RequestError, effects: &mut Effects<T>) {
        self.fail(error, RequestError::Unknown, effects);
    }

    fn fail(&mut self, unproposed: RequestError, proposed: RequestError, effects: &mut Effects<T>) {
        self.pending_bytes = 0;
        self.reads_waiting = 0;
        let inflight = self.inflight.drain(..).flat_map(|(_, _, waiters)| waiters);
        effects.replies.extend(inflight.map(|reply| (reply, Err(proposed))));
        let rounds = self.read_rounds.drain(..).flat_map(|round| round.reads);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, reads)| reads);
        let rest = self.pending.drain(..).chain(self.reads.drain(..)).chain(rounds).chain(confirmed);
        effects.replies.extend(rest.map(|request| (request.reply, Err(unproposed))));
    }
}
