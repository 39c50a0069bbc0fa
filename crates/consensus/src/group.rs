//! One replica of one shard: a raft-rs node with its storage, driven by calls that return effects.
//!
//! Invariant: nothing of a term leaves the replica before that term and its vote are durable.

mod invalid;
mod lease;
mod rest;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use flotilla_storage::{Log, LogError, ReplicaLog};
use flotilla_types::{
    Checkpoint, ConfState, Entry, HardState, LogIndex, Message, MessageKind, NodeId, ReplicaId, ShardDescriptor,
    ShardId, Term,
};
use raft::{RawNode, StateRole, eraftpb};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    ChangeError, ConfChange, Config, Follower, GroupStatus, Role, ShardChange, change::descriptor_after, convert,
    store::Store,
};
use lease::LeaseState;
pub use lease::{Lease, Origin};
use rest::Rest;

/// The replica failed and is closed; other replicas go on. Its durable state is unchanged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// Its log failed or is damaged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The recovered state is inconsistent.
    #[error("the recovered state is inconsistent: {0}")]
    Inconsistent(&'static str),
    /// The Raft library refused its configuration or panicked: a peer sent a message that no correct peer
    /// sends, or this replica's log went backwards.
    #[error("the Raft library failed for this replica")]
    Library,
    /// A committed change, of the replica set or of the shard, has a format that this binary does not know.
    #[error(
        "a change in the log has format {found} and this binary knows {known}: \
         install a newer binary and start the node again"
    )]
    Version {
        /// Format of the change.
        found: u8,
        /// Newest format that this binary reads.
        known: u8,
    },
}

/// A proposal was refused. Nothing was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead.
    #[error("this replica does not lead its group")]
    NotLeader,
    /// Too many bytes are uncommitted, the leader's term is not announced yet, or a leadership transfer is in
    /// progress.
    #[error("the group is busy; try again")]
    Busy,
    /// Another configuration change is in progress, or this change does not apply to the current
    /// configuration or descriptor.
    #[error("this change is not possible now")]
    Configuration,
}

/// The work of one `Ready` of raft-rs.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) sends: Vec<Message>,
    pub(crate) number: u64,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) install: Option<Checkpoint>,
    /// Messages that may be sent only after the write is durable.
    pub(crate) after: Vec<Message>,
    pub(crate) committed: Vec<Entry>,
    pub(crate) reads: Vec<(Bytes, LogIndex)>,
    pub(crate) role: Option<(Role, Term, ReplicaId)>,
}

impl Round {
    pub(crate) fn has_write(&self) -> bool {
        self.hard_state.is_some() || !self.entries.is_empty() || self.install.is_some()
    }
}

/// raft-rs logs nothing. All groups share what it takes to say so.
static NO_LOG: LazyLock<slog::Logger> = LazyLock::new(|| slog::Logger::root(slog::Discard, slog::o!()));

/// One replica of one shard.
pub struct Group {
    shard: ShardId,
    replica: ReplicaId,
    node: RawNode<Store>,
    descriptor: Arc<ShardDescriptor>,
    conf: Arc<ConfState>,
    seed: u64,
    /// Election timeouts drawn so far.
    draws: u64,
    election_ticks: usize,
    /// The last timeout drawn here. raft-rs draws its own at every reset, which is overwritten with this one.
    election_timeout: usize,
    /// The tick of the node up to which this group has counted.
    counted_ticks: usize,
    /// Ticks since the last message of a leader, or since the latest time a previous run may have received
    /// one.
    ticks_since_leader: usize,
    lease_state: LeaseState,
    rest: Rest,
    /// Followers of this leader that did not respond between the last two checks of its quorum.
    silent: BTreeSet<ReplicaId>,
    role: (Role, Term, ReplicaId),
    /// The checkpoint of the snapshot that raft-rs has accepted and not yet returned in a `Ready`.
    incoming: Option<Box<Checkpoint>>,
    /// Rounds returned and not yet persisted, and whether each has a write.
    unpersisted: VecDeque<(u64, bool)>,
    /// Term and vote as last returned for writing.
    term_and_vote: (u64, u64),
    /// The round that writes them, until it is durable: nothing of that term is sent before.
    unsynced_vote_round: Option<u64>,
    persisted: LogIndex,
    applied: LogIndex,
}

impl Group {
    /// Opens a replica from its log at a tick of the node. `seed` determines its election timeouts;
    /// `ticks_since_leader` is how long it certainly has not heard from a leader.
    pub fn open(
        config: &Config,
        replica: ReplicaId,
        log: Arc<dyn Log>,
        state: &ReplicaLog,
        seed: u64,
        tick: usize,
        ticks_since_leader: usize,
    ) -> Result<Self, GroupError> {
        let applied = state.checkpoint.position.index;
        if state.truncated.0 > applied {
            return Err(GroupError::Inconsistent("the log is truncated beyond the checkpoint"));
        }
        if state.last < applied || state.hard_state.commit > state.last {
            return Err(GroupError::Inconsistent("the log ends before the commit index or the checkpoint"));
        }
        let raft_config = raft::Config {
            id: replica.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: applied.0,
            max_size_per_msg: config.append_bytes_max as u64,
            max_inflight_msgs: config.append_inflight_max,
            check_quorum: true,
            pre_vote: true,
            read_only_option: raft::ReadOnlyOption::Safe,
            // Followers learn the commit index with the next entry or heartbeat, which halves the messages.
            // The exception is metadata, which every node reads from its local follower.
            skip_bcast_commit: state.shard != ShardId::META,
            batch_append: true,
            max_uncommitted_size: config.uncommitted_bytes_max as u64,
            max_committed_size_per_ready: config.committed_bytes_max as u64,
            ..raft::Config::default()
        };
        let store = Store::new(replica, log, state, config.cache_bytes_max);
        let node = RawNode::new(&raft_config, store, &NO_LOG).map_err(|_| GroupError::Library)?;
        let mut group = Self {
            shard: state.shard,
            replica,
            node,
            descriptor: state.checkpoint.position.descriptor.clone(),
            conf: state.checkpoint.position.conf.clone(),
            seed,
            draws: 0,
            election_ticks: config.election_ticks,
            election_timeout: config.election_ticks,
            counted_ticks: tick,
            ticks_since_leader,
            lease_state: LeaseState::default(),
            rest: Rest::new(config.rest_after_ticks, tick),
            silent: BTreeSet::new(),
            role: (Role::Follower, state.hard_state.term, ReplicaId::NONE),
            incoming: None,
            unpersisted: VecDeque::new(),
            term_and_vote: (state.hard_state.term.0, state.hard_state.vote.0),
            unsynced_vote_round: None,
            persisted: state.last,
            applied,
        };
        group.draw_election_timeout();
        Ok(group)
    }

    /// Opens a replica as the leader of the term of its hard state. See [`Origin::Heir`].
    pub(crate) fn open_leading(
        config: &Config,
        replica: ReplicaId,
        log: Arc<dyn Log>,
        state: &ReplicaLog,
        seed: u64,
        tick: usize,
    ) -> Result<Self, GroupError> {
        let HardState { term, vote, .. } = state.hard_state;
        let position = &state.checkpoint.position;
        let is_new = state.last == position.index && position.term < term;
        if vote != replica || !is_new || !position.conf.voters.contains(&replica) || position.conf.is_joint() {
            return Err(GroupError::Inconsistent("a replica is to lead for which not every voter has voted"));
        }
        // The library counts the term up when it begins to lead.
        let hard_state = HardState { term: Term(term.0 - 1), vote: ReplicaId::NONE, ..state.hard_state };
        let before = ReplicaLog { hard_state, ..state.clone() };
        let mut group = Self::open(config, replica, log, &before, seed, tick, usize::MAX)?;
        let raft = &mut group.node.raft;
        raft.become_candidate();
        raft.become_leader();
        // Both are durable already.
        group.term_and_vote = (raft.term, raft.vote);
        Ok(group)
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The replica.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        self.replica
    }

    /// The shard's descriptor as of the last committed entry delivered.
    #[must_use]
    pub fn descriptor(&self) -> &Arc<ShardDescriptor> {
        &self.descriptor
    }

    /// The configuration as of the last committed entry delivered.
    #[must_use]
    pub fn conf(&self) -> &Arc<ConfState> {
        &self.conf
    }

    /// Its role, its term and its leader, as of the last drain.
    #[must_use]
    pub fn role(&self) -> (Role, Term, ReplicaId) {
        self.role
    }

    /// The last index in the log, durable or not.
    #[must_use]
    pub fn last(&self) -> LogIndex {
        LogIndex(self.node.raft.raft_log.last_index())
    }

    /// Whether a write is in flight.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.unpersisted.iter().any(|(_, has_write)| *has_write)
    }

    /// The checkpoint that followers get as a snapshot.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        self.node.store().checkpoint()
    }

    /// The last entry no longer in the log.
    #[must_use]
    pub fn truncated(&self) -> (LogIndex, Term) {
        self.node.store().truncated()
    }

    /// The term of an entry that is still in the log, or of the last truncated one.
    #[must_use]
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        self.node.raft.raft_log.term(index.0).ok().map(Term)
    }

    /// Whether an accepted snapshot has not been returned for writing yet.
    #[must_use]
    pub fn has_incoming_snapshot(&self) -> bool {
        self.incoming.is_some()
    }

    /// Counts the ticks up to `tick` that were not counted yet. Only the last of them may end a timer; the
    /// election that it ends in waits for [`campaign_if_due`](Self::campaign_if_due).
    pub(crate) fn advance_to(&mut self, tick: usize) {
        let passed = tick.saturating_sub(self.counted_ticks);
        self.counted_ticks = tick;
        self.ticks_since_leader = self.ticks_since_leader.saturating_add(passed);
        if self.rest.resting || self.must_not_campaign() {
            return;
        }
        let raft = &mut self.node.raft;
        if raft.state != StateRole::Leader && !raft.promotable() {
            // A learner only counts, and may have been at rest for days.
            raft.election_elapsed = raft.election_elapsed.saturating_add(passed);
            return;
        }
        for _ in 0..passed {
            if self.campaigns_next() {
                return;
            }
            self.observe_silence();
            self.node.tick();
        }
    }

    /// Whether the next tick would end in a campaign.
    fn campaigns_next(&self) -> bool {
        let raft = &self.node.raft;
        self.ends_in_election() && raft.election_elapsed + 1 >= raft.randomized_election_timeout()
    }

    /// Whether the replica campaigns when its timer ends.
    pub(crate) fn ends_in_election(&self) -> bool {
        let raft = &self.node.raft;
        raft.state != StateRole::Leader && raft.promotable() && !self.rest.resting && !self.must_not_campaign()
    }

    /// Campaigns, if the election timeout has ended.
    pub(crate) fn campaign_if_due(&mut self) {
        if self.campaigns_next() {
            self.node.tick();
        }
    }

    /// Notes which followers are silent before a check of the quorum forgets it.
    fn observe_silence(&mut self) {
        let raft = &self.node.raft;
        if raft.state == StateRole::Leader && raft.election_elapsed + 1 >= raft.election_timeout() {
            let silent = raft.prs().iter().filter(|(_, progress)| !progress.recent_active);
            self.silent = silent.map(|(id, _)| ReplicaId(*id)).collect();
        }
    }

    /// Whether a follower of this leader has been silent for at least one election timeout.
    #[must_use]
    pub fn is_silent(&self, follower: ReplicaId) -> bool {
        let progress = self.node.raft.prs().get(follower.0);
        self.silent.contains(&follower) && progress.is_some_and(|progress| !progress.recent_active)
    }

    /// The tick at which raft-rs acts without other input: it campaigns, sends heartbeats or checks its
    /// quorum. `None` if no number of ticks makes it act.
    pub(crate) fn timer_ends_at(&self) -> Option<usize> {
        if self.rest.resting {
            return None;
        }
        let raft = &self.node.raft;
        let left = if raft.state == StateRole::Leader {
            let heartbeat = raft.heartbeat_timeout().saturating_sub(raft.heartbeat_elapsed());
            heartbeat.min(raft.election_timeout().saturating_sub(raft.election_elapsed))
        } else if raft.promotable() && !self.must_not_campaign() {
            raft.randomized_election_timeout().saturating_sub(raft.election_elapsed)
        } else {
            return None;
        };
        Some(self.counted_ticks.saturating_add(left.max(1)))
    }

    /// raft-rs makes a lone voter the leader at once and assumes that its whole log is durable.
    fn must_not_campaign(&self) -> bool {
        self.node.raft.state != StateRole::Leader && self.is_lone_voter_with_unsynced_log()
    }

    fn is_lone_voter_with_unsynced_log(&self) -> bool {
        let raft = &self.node.raft;
        raft.prs().is_singleton() && raft.raft_log.persisted < raft.raft_log.last_index()
    }

    /// Steps a message. Messages that do not fit (unknown sender, old term) are dropped, as the network might
    /// have done.
    pub(crate) fn step(&mut self, message: Message) {
        let is_dropped = self.is_invalid(&message) || self.is_stale_rejection(&message) || self.must_not_vote(&message);
        if message.to != self.replica || is_dropped {
            return;
        }
        if message.kind == MessageKind::Rest {
            return self.on_rest(&message);
        }
        self.wake_for(&message);
        let leader_term = Self::leader_term_in(&message);
        let offered = message.snapshot.as_ref().map(|snapshot| snapshot.checkpoint.clone());
        let _ = self.node.step(convert::message_to_raft(message));
        if let Some(term) = leader_term {
            self.observe_leader(term);
        }
        let accepted = self.node.snap().map(|snapshot| snapshot.get_metadata().index);
        if let Some(checkpoint) = offered
            && accepted == Some(checkpoint.position.index.0)
        {
            self.incoming = Some(Box::new(checkpoint));
        }
    }

    /// Appends an entry. Returns its index; the term is the current one.
    pub(crate) fn propose(&mut self, data: Bytes) -> Result<LogIndex, ProposeError> {
        self.append(eraftpb::EntryType::EntryNormal, data, Bytes::new())
    }

    /// Appends a configuration change, if none is in progress and this one applies to the current
    /// configuration.
    pub(crate) fn propose_change(&mut self, change: &ConfChange) -> Result<LogIndex, ProposeError> {
        if self.node.raft.has_pending_conf() || !change.applies_to(&self.conf) || self.descriptor.is_frozen() {
            return Err(ProposeError::Configuration);
        }
        self.append(eraftpb::EntryType::EntryConfChangeV2, change.to_raft_bytes(), change.encode())
    }

    /// Appends a change of the shard, if it applies to the current descriptor. One that was proposed before
    /// and is not committed yet may still keep it from applying.
    pub(crate) fn propose_shard_change(&mut self, change: &ShardChange) -> Result<LogIndex, ProposeError> {
        if self.after(change).is_err() {
            return Err(ProposeError::Configuration);
        }
        self.append(eraftpb::EntryType::EntryNormal, Bytes::from_static(Entry::SHARD_DATA), change.encode())
    }

    fn append(&mut self, kind: eraftpb::EntryType, data: Bytes, context: Bytes) -> Result<LogIndex, ProposeError> {
        if self.node.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader);
        }
        // The caller has not seen the new term yet, and would wait for an entry of the old one.
        if (self.role.0, self.role.1) != (Role::Leader, Term(self.node.raft.term)) {
            return Err(ProposeError::Busy);
        }
        self.note_use();
        let mut entry = eraftpb::Entry::default();
        entry.set_entry_type(kind);
        entry.data = data;
        entry.context = context;
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.from = self.replica.0;
        message.set_entries(vec![entry].into());
        match self.node.raft.step(message) {
            Ok(()) => Ok(self.last()),
            Err(_) => Err(ProposeError::Busy),
        }
    }

    pub(crate) fn unreachable(&mut self, replica: ReplicaId) {
        self.node.report_unreachable(replica.0);
    }

    pub(crate) fn snapshot_sent(&mut self, replica: ReplicaId, delivered: bool) {
        let status = if delivered { raft::SnapshotStatus::Finish } else { raft::SnapshotStatus::Failure };
        self.node.report_snapshot(replica.0, status);
    }

    /// The next snapshot for this follower is the newest checkpoint, not the one that it was sent before.
    pub(crate) fn end_offer(&mut self, to: ReplicaId) {
        self.node.mut_store().end_offer(to);
    }

    /// The state machine has applied every entry up to `index`.
    pub(crate) fn applied(&mut self, index: LogIndex) {
        if index > self.applied {
            self.applied = index;
            if index.0 > self.node.raft.raft_log.applied {
                self.node.advance_apply_to(index.0);
            }
            self.evict();
        }
    }

    /// The writes of round `number` and of all before it are durable.
    pub(crate) fn persisted(&mut self, number: u64) {
        let mut last = None;
        while let Some((front, has_write)) = self.unpersisted.front().copied() {
            // Rounds without a write count as persisted once those before them are.
            if front > number && has_write {
                break;
            }
            last = Some(front);
            self.unpersisted.pop_front();
        }
        if let Some(number) = last {
            self.unsynced_vote_round =
                self.unsynced_vote_round.filter(|unsynced_vote_round| *unsynced_vote_round > number);
            self.node.on_persist_ready(number);
        }
        self.persisted = LogIndex(self.node.raft.raft_log.persisted);
        self.evict();
    }

    fn evict(&mut self) {
        let durable_and_applied = self.persisted.min(self.applied);
        self.node.mut_store().evict(durable_and_applied);
    }

    pub(crate) fn set_checkpoint(&mut self, checkpoint: Checkpoint, truncate: Option<(LogIndex, Term)>) {
        let store = self.node.mut_store();
        // A checkpoint built before a snapshot was installed is stale.
        if checkpoint.position.index >= store.checkpoint().position.index {
            store.set_checkpoint(checkpoint);
        }
        if let Some(to) = truncate {
            store.truncate(to);
        }
    }

    pub(crate) fn truncate(&mut self, to: (LogIndex, Term)) {
        self.node.mut_store().truncate(to);
    }

    /// Whether a follower needs a snapshot newer than the current checkpoint. Clears the flag.
    pub(crate) fn take_wants_checkpoint(&mut self) -> bool {
        self.node.store().take_wants_checkpoint()
    }

    pub(crate) fn take_failure(&mut self) -> Option<LogError> {
        self.node.store().take_failure()
    }

    /// Returns the next round of work, if there is any.
    pub(crate) fn round(&mut self) -> Option<Round> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let mut round = Round { number: ready.number(), ..Round::default() };
        let role = (Role::of(self.node.raft.state), Term(self.node.raft.term), ReplicaId(self.node.raft.leader_id));
        if role != self.role {
            self.role = role;
            self.note_stir();
            self.silent.clear();
            self.node.mut_store().end_offers();
            round.role = Some(role);
            self.draw_election_timeout();
        }
        let offered = self.node.store().take_offered();
        let plain = |messages: Vec<eraftpb::Message>| -> Vec<Message> {
            messages.into_iter().filter_map(|message| convert::message_from_raft(message, &offered)).collect()
        };
        let term_and_vote = (self.node.raft.term, self.node.raft.vote);
        if std::mem::replace(&mut self.term_and_vote, term_and_vote) != term_and_vote {
            self.unsynced_vote_round = Some(round.number);
        }
        round.sends = plain(ready.take_messages());
        round.after = plain(ready.take_persisted_messages());
        if self.unsynced_vote_round.is_some() {
            // A lone voter leads before its own vote is durable. If a crash loses that vote, the same term
            // starts again, and learners must not have received other entries of it before.
            round.sends.append(&mut round.after);
            round.after = std::mem::take(&mut round.sends);
        }
        for read in ready.take_read_states() {
            self.confirm_round(&read.request_ctx);
            round.reads.push((read.request_ctx.into(), LogIndex(read.index)));
        }
        round.committed = ready.take_committed_entries().into_iter().map(convert::entry_from_raft).collect();
        if ready.must_sync() {
            round.hard_state = Some(convert::hard_state_from_raft(&self.node.raft.hard_state()));
        }
        self.take_install(&ready, &mut round);
        let entries = ready.take_entries();
        self.node.mut_store().append(&entries);
        round.entries = entries.into_iter().map(convert::entry_from_raft).collect();

        self.unpersisted.push_back((round.number, round.has_write()));
        self.node.advance_append_async(ready);
        Some(round)
    }

    fn take_install(&mut self, ready: &raft::Ready, round: &mut Round) {
        if ready.snapshot().is_empty() {
            return;
        }
        let index = LogIndex(ready.snapshot().get_metadata().index);
        let incoming = self.incoming.take().filter(|checkpoint| checkpoint.position.index == index);
        assert!(incoming.is_some(), "raft-rs returns only snapshots that were stepped");
        let Some(checkpoint) = incoming else { return };
        self.conf = checkpoint.position.conf.clone();
        self.descriptor = checkpoint.position.descriptor.clone();
        self.node.mut_store().install((*checkpoint).clone());
        // The snapshot's configuration applies from here on, and a campaign must not read entries before it.
        // `advance_apply_to` would require a durable snapshot; no message leaves the node before that anyway.
        self.node.raft.raft_log.applied = index.0;
        self.applied = index;
        round.install = Some(*checkpoint);
    }

    /// Marks rounds without a write as persisted when no write is in flight.
    pub(crate) fn persist_empty_rounds(&mut self) {
        if !self.is_writing()
            && let Some((number, _)) = self.unpersisted.back().copied()
        {
            self.persisted(number);
        }
    }

    /// Applies a committed change to configuration and descriptor. A change that does not apply leaves both
    /// unchanged, on every replica.
    pub(crate) fn apply_change(&mut self, entry: &Entry) -> Result<(), ChangeError> {
        let change = ConfChange::decode(&entry.context)?;
        if self.descriptor.is_frozen() {
            // Whoever merges the shard relies on its replicas.
            return Err(ChangeError::NotApplicable);
        }
        let conf = self.node.apply_conf_change(&change.to_raft()).map_err(|_| ChangeError::NotApplicable)?;
        self.end_lease();
        self.conf = Arc::new(convert::conf_from_raft(&conf));
        self.descriptor = Arc::new(descriptor_after(&self.descriptor, &change, &self.conf));
        Ok(())
    }

    /// Applies a committed change of the shard to the descriptor, and returns it. One that does not apply
    /// leaves the descriptor unchanged, on every replica. A lease stays: the same quorum confirmed it, and
    /// reads that run behind the change are judged by the descriptor after it.
    pub(crate) fn apply_shard_change(&mut self, entry: &Entry) -> Result<ShardChange, ChangeError> {
        let change = ShardChange::decode(&entry.context)?;
        self.descriptor = Arc::new(self.after(&change)?);
        if matches!(change, ShardChange::Split(_) | ShardChange::Freeze(_) | ShardChange::Merge(_)) {
            // Followers learn now that it is committed, and not with the next entry: keys wait for them.
            self.node.ping();
        }
        Ok(change)
    }

    /// The descriptor after a change. A shard is not split, frozen or merged while its configuration is joint: the
    /// change names one set of replicas.
    fn after(&self, change: &ShardChange) -> Result<ShardDescriptor, ChangeError> {
        let names_replicas = matches!(change, ShardChange::Split(_) | ShardChange::Freeze(_) | ShardChange::Merge(_));
        if names_replicas && self.conf.is_joint() {
            return Err(ChangeError::NotApplicable);
        }
        change.after(&self.descriptor)
    }

    /// Steps down if this leader is no longer a voter; raft-rs leaves that to its caller.
    pub(crate) fn step_down_if_removed(&mut self) -> bool {
        let steps_down = self.node.raft.state == StateRole::Leader && !self.conf.is_voter(self.replica);
        if steps_down {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
        steps_down
    }

    /// Draws a timeout from this group's own generator, so that a seed determines all randomness.
    fn draw_election_timeout(&mut self) {
        // Half the range of the dissertation (§9.3): the longest timeouts bound the time without a leader,
        // and for a split vote two voters must also tick within the few milliseconds that a round of votes
        // takes.
        let range = self.election_ticks..self.election_ticks + self.election_ticks.div_ceil(2);
        // A generator is larger than much else of a group that rests.
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.draws);
        self.draws += 1;
        self.election_timeout = rng.random_range(range);
        self.keep_election_timeout();
    }

    /// Overwrites the timeout that raft-rs draws from its own generator at every reset, also at resets not
    /// visible here.
    pub(crate) fn keep_election_timeout(&mut self) {
        self.node.raft.set_randomized_election_timeout(self.election_timeout);
    }

    /// The status of the replica.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let raft = &self.node.raft;
        let mut followers: Vec<_> = match raft.state {
            StateRole::Leader => raft.prs().iter().map(|(id, progress)| Follower::of(*id, progress)).collect(),
            _ => Vec::new(),
        };
        followers.retain(|follower| follower.replica != self.replica);
        followers.sort_unstable_by_key(|follower| follower.replica);
        GroupStatus {
            role: Role::of(raft.state),
            term: Term(raft.term),
            leader: ReplicaId(raft.leader_id),
            commit: LogIndex(raft.raft_log.committed),
            last: self.last(),
            truncated: self.truncated().0,
            conf: (*self.conf).clone(),
            followers,
            transfers_to: raft.lead_transferee.map(ReplicaId),
            rests: self.rest.resting,
        }
    }

    /// Whether [`status`](Self::status) would return this, without building it.
    #[must_use]
    pub fn has_status(&self, status: &GroupStatus) -> bool {
        let raft = &self.node.raft;
        let follows = |(id, progress): (&u64, &raft::Progress)| {
            let follower = Follower::of(*id, progress);
            let at = status.followers.binary_search_by_key(&follower.replica, |known| known.replica);
            follower.replica == self.replica || at.is_ok_and(|at| status.followers[at] == follower)
        };
        let same_followers = match raft.state {
            StateRole::Leader => {
                let others = raft.prs().iter().filter(|(id, _)| **id != self.replica.0).count();
                status.followers.len() == others && raft.prs().iter().all(follows)
            }
            _ => status.followers.is_empty(),
        };
        same_followers
            && (status.role, status.term, status.leader)
                == (Role::of(raft.state), Term(raft.term), ReplicaId(raft.leader_id))
            && (status.commit, status.last, status.truncated)
                == (LogIndex(raft.raft_log.committed), self.last(), self.truncated().0)
            && status.conf == *self.conf
            && status.transfers_to == raft.lead_transferee.map(ReplicaId)
            && status.rests == self.rest.resting
    }

    /// The node that holds a replica of this group, if the descriptor names it.
    #[must_use]
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.descriptor.node_of(replica).filter(|node| *node != NodeId::NONE)
    }
}
