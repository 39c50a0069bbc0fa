//! One replica of one shard: a raft-rs node with its store, turned into calls and effects.

mod lease;
mod misuse;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use flotilla_storage::{Log, LogError, ReplicaLog};
use flotilla_types::{
    Checkpoint, ConfState, Entry, HardState, LogIndex, Message, NodeId, ReplicaId, ShardDescriptor, ShardId, Term,
};
use raft::{RawNode, StateRole, eraftpb};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    ChangeError, ConfChange, Config, Follower, GroupStatus, Role, change::descriptor_after, convert, store::Store,
};
use lease::Earned;
pub use lease::{Lease, Origin};

/// The replica cannot go on; others are not harmed. Its durable state is untouched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GroupError {
    /// Its log failed or is damaged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What the log says of the replica contradicts itself.
    #[error("the recovered state contradicts itself: {0}")]
    Contradiction(&'static str),
    /// The consensus library refused its configuration or panicked: a peer sent what no correct peer sends, or this
    /// replica's log went backwards.
    #[error("the consensus library gave up on this replica")]
    Library,
}

/// A proposal was not taken. Nothing was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead.
    #[error("this replica does not lead its group")]
    NotLeader,
    /// Too much is uncommitted, or leadership is being handed over.
    #[error("the group is busy; try again")]
    Busy,
    /// Another configuration change is under way, or this one does not fit.
    #[error("the configuration cannot change that way now")]
    Configuration,
}

/// What one round of a group wants done.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) sends: Vec<Message>,
    pub(crate) number: u64,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) install: Option<Checkpoint>,
    pub(crate) after: Vec<Message>,
    pub(crate) committed: Vec<Entry>,
    pub(crate) reads: Vec<(Bytes, LogIndex)>,
    pub(crate) role: Option<(Role, Term, ReplicaId)>,
}

impl Round {
    fn persists(&self) -> bool {
        self.hard_state.is_some() || !self.entries.is_empty() || self.install.is_some()
    }
}

/// One replica of one shard.
pub struct Group {
    shard: ShardId,
    replica: ReplicaId,
    node: RawNode<Store>,
    descriptor: ShardDescriptor,
    conf: ConfState,
    rng: ChaCha8Rng,
    election_ticks: usize,
    /// What we drew last; raft-rs draws for itself at every reset, and is corrected.
    election_timeout: usize,
    /// Ticks since a leader was heard, or may have been heard in an earlier life.
    silent_ticks: usize,
    earned: Earned,
    role: (Role, Term, ReplicaId),
    /// The checkpoint of the snapshot that raft-rs has accepted and not yet handed out.
    incoming: Option<Checkpoint>,
    /// Rounds handed out and not yet persisted, and whether each has something to persist.
    unpersisted: VecDeque<(u64, bool)>,
    /// Term and vote as they were last handed out for writing.
    promise: (u64, u64),
    /// The round that carries them, until it is durable: nothing of that term leaves before.
    promised_in: Option<u64>,
    persisted: LogIndex,
    applied: LogIndex,
}

impl Group {
    /// Opens a replica on what its log knows. `seed` decides its election timeouts; `silent_ticks` is how long no leader can have been
    /// heard.
    pub fn open(
        config: &Config,
        replica: ReplicaId,
        log: Arc<dyn Log>,
        state: &ReplicaLog,
        seed: u64,
        silent_ticks: usize,
    ) -> Result<Self, GroupError> {
        let applied = state.checkpoint.position.index;
        if state.truncated.0 > applied {
            return Err(GroupError::Contradiction("entries are gone that the checkpoint does not cover"));
        }
        if state.last < applied || state.hard_state.commit > state.last {
            return Err(GroupError::Contradiction("the log ends before what was committed"));
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
            // Followers learn what is committed with the next entry or heartbeat, in half the messages. Only metadata is read from
            // followers, by all nodes.
            skip_bcast_commit: state.shard != ShardId::META,
            batch_append: true,
            max_uncommitted_size: config.uncommitted_bytes_max as u64,
            max_committed_size_per_ready: config.committed_bytes_max as u64,
            ..raft::Config::default()
        };
        let store = Store::new(replica, log, state, config.cache_bytes_max);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, store, &logger).map_err(|_| GroupError::Library)?;
        let mut group = Self {
            shard: state.shard,
            replica,
            node,
            descriptor: state.checkpoint.position.descriptor.clone(),
            conf: state.checkpoint.position.conf.clone(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            election_ticks: config.election_ticks,
            election_timeout: config.election_ticks,
            silent_ticks,
            earned: Earned::default(),
            role: (Role::Follower, state.hard_state.term, ReplicaId::NONE),
            incoming: None,
            unpersisted: VecDeque::new(),
            promise: (state.hard_state.term.0, state.hard_state.vote.0),
            promised_in: None,
            persisted: state.last,
            applied,
        };
        group.draw_election_timeout();
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

    /// The shard as of the last committed entry handed out.
    #[must_use]
    pub fn descriptor(&self) -> &ShardDescriptor {
        &self.descriptor
    }

    /// The configuration as of the last committed entry handed out.
    #[must_use]
    pub fn conf(&self) -> &ConfState {
        &self.conf
    }

    /// What it does, in which term, and whom it follows.
    #[must_use]
    pub fn role(&self) -> (Role, Term, ReplicaId) {
        self.role
    }

    /// The last index in the log, written or not.
    #[must_use]
    pub fn last(&self) -> LogIndex {
        LogIndex(self.node.raft.raft_log.last_index())
    }

    /// Whether a round with something to write is on its way to the disk.
    #[must_use]
    pub fn is_writing(&self) -> bool {
        self.unpersisted.iter().any(|(_, persists)| *persists)
    }

    /// The checkpoint that snapshots for followers are made of.
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

    /// Whether a snapshot was accepted that is not yet handed out for writing.
    #[must_use]
    pub fn has_incoming_snapshot(&self) -> bool {
        self.incoming.is_some()
    }

    pub(crate) fn tick(&mut self) {
        self.silent_ticks = self.silent_ticks.saturating_add(1);
        if !self.must_not_win_yet() {
            self.node.tick();
        }
    }

    /// raft-rs makes a lone voter leader at once and takes its whole log for durable.
    fn must_not_win_yet(&self) -> bool {
        self.node.raft.state != StateRole::Leader && self.is_alone_and_writing()
    }

    fn is_alone_and_writing(&self) -> bool {
        let raft = &self.node.raft;
        raft.prs().is_singleton() && raft.raft_log.persisted < raft.raft_log.last_index()
    }

    /// Takes a message. Whatever does not fit (an unknown sender, an old term) is dropped, as the network may have done.
    pub(crate) fn step(&mut self, message: Message) {
        if message.to != self.replica || self.would_misuse(&message) || self.must_not_vote(&message) {
            return;
        }
        let voice = Self::voice_of(&message);
        let offered = message.snapshot.as_ref().map(|snapshot| snapshot.checkpoint.clone());
        let _ = self.node.step(convert::message_to_raft(message));
        if let Some(term) = voice {
            self.heard_leader(term);
        }
        let accepted = self.node.snap().map(|snapshot| snapshot.get_metadata().index);
        if let Some(checkpoint) = offered
            && accepted == Some(checkpoint.position.index.0)
        {
            self.incoming = Some(checkpoint);
        }
    }

    /// Appends an entry. Returns its index; the term is the current one.
    pub(crate) fn propose(&mut self, data: Bytes) -> Result<LogIndex, ProposeError> {
        self.append(eraftpb::EntryType::EntryNormal, data, Bytes::new())
    }

    /// Appends a change of the configuration, if none is under way and this one fits.
    pub(crate) fn propose_change(&mut self, change: &ConfChange) -> Result<LogIndex, ProposeError> {
        if self.node.raft.has_pending_conf() || !change.fits(&self.conf) {
            return Err(ProposeError::Configuration);
        }
        self.append(eraftpb::EntryType::EntryConfChangeV2, change.to_raft_bytes(), change.encode())
    }

    fn append(&mut self, kind: eraftpb::EntryType, data: Bytes, context: Bytes) -> Result<LogIndex, ProposeError> {
        if self.node.raft.state != StateRole::Leader {
            return Err(ProposeError::NotLeader);
        }
        // Whoever asks has not heard yet that this is a new term, and would wait for an entry of the old one.
        if (self.role.0, self.role.1) != (Role::Leader, Term(self.node.raft.term)) {
            return Err(ProposeError::Busy);
        }
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

    pub(crate) fn snapshot_sent(&mut self, replica: ReplicaId, arrived: bool) {
        let status = if arrived { raft::SnapshotStatus::Finish } else { raft::SnapshotStatus::Failure };
        self.node.report_snapshot(replica.0, status);
    }

    /// The state machine has applied everything up to here.
    pub(crate) fn applied(&mut self, index: LogIndex) {
        if index > self.applied {
            self.applied = index;
            if index.0 > self.node.raft.raft_log.applied {
                self.node.advance_apply_to(index.0);
            }
            self.evict();
        }
    }

    /// The write of round `number` (and all before it) is durable.
    pub(crate) fn persisted(&mut self, number: u64) {
        let mut last = None;
        while let Some((front, persists)) = self.unpersisted.front().copied() {
            // Rounds without a write count as persisted once those before them are.
            if front > number && persists {
                break;
            }
            last = Some(front);
            self.unpersisted.pop_front();
        }
        if let Some(number) = last {
            self.promised_in = self.promised_in.filter(|promised_in| *promised_in > number);
            self.node.on_persist_ready(number);
        }
        self.persisted = LogIndex(self.node.raft.raft_log.persisted);
        self.evict();
    }

    fn evict(&mut self) {
        let both = self.persisted.min(self.applied);
        self.node.mut_store().evict(both);
    }

    pub(crate) fn set_checkpoint(&mut self, checkpoint: Checkpoint, truncate: Option<(LogIndex, Term)>) {
        let store = self.node.mut_store();
        // One that was built before a snapshot came is of no use any more.
        if checkpoint.position.index >= store.checkpoint().position.index {
            store.set_checkpoint(checkpoint);
        }
        if let Some(to) = truncate {
            store.truncate(to);
        }
    }

    /// Whether a follower waits for a snapshot that only a newer checkpoint can serve. Asking clears it.
    pub(crate) fn take_wants_checkpoint(&mut self) -> bool {
        self.node.store().take_wants_checkpoint()
    }

    pub(crate) fn take_failure(&mut self) -> Option<LogError> {
        self.node.store().take_failure()
    }

    /// The next round of work, if there is any.
    pub(crate) fn round(&mut self) -> Option<Round> {
        if !self.node.has_ready() {
            return None;
        }
        let mut ready = self.node.ready();
        let mut round = Round { number: ready.number(), ..Round::default() };
        let role = (Role::of(self.node.raft.state), Term(self.node.raft.term), ReplicaId(self.node.raft.leader_id));
        if role != self.role {
            self.role = role;
            round.role = Some(role);
            self.draw_election_timeout();
        }
        let offered = self.node.store().take_offered();
        let plain = |messages: Vec<eraftpb::Message>| -> Vec<Message> {
            messages.into_iter().filter_map(|message| convert::message_from_raft(message, &offered)).collect()
        };
        let promise = (self.node.raft.term, self.node.raft.vote);
        if std::mem::replace(&mut self.promise, promise) != promise {
            self.promised_in = Some(round.number);
        }
        round.sends = plain(ready.take_messages());
        round.after = plain(ready.take_persisted_messages());
        if self.promised_in.is_some() {
            // A lone voter leads before its own vote is durable. What learners were told in a term that a crash takes back
            // would differ from what they are told when the same term begins anew.
            round.sends.append(&mut round.after);
            round.after = std::mem::take(&mut round.sends);
        }
        for read in ready.take_read_states() {
            self.round_confirmed(&read.request_ctx);
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

        self.unpersisted.push_back((round.number, round.persists()));
        self.node.advance_append_async(ready);
        Some(round)
    }

    fn take_install(&mut self, ready: &raft::Ready, round: &mut Round) {
        if ready.snapshot().is_empty() {
            return;
        }
        let index = LogIndex(ready.snapshot().get_metadata().index);
        let incoming = self.incoming.take().filter(|checkpoint| checkpoint.position.index == index);
        assert!(incoming.is_some(), "raft-rs hands out a snapshot that was never stepped");
        let Some(checkpoint) = incoming else { return };
        self.conf = checkpoint.position.conf.clone();
        self.descriptor = checkpoint.position.descriptor.clone();
        self.node.mut_store().install(checkpoint.clone());
        // The configuration of a snapshot holds from here on, so whoever campaigns must not look for entries before it.
        // `advance_apply_to` would insist on a durable snapshot; nobody leaves the node before that anyway.
        self.node.raft.raft_log.applied = index.0;
        self.applied = index;
        round.install = Some(checkpoint);
    }

    /// Whether nothing is left to write before what comes next.
    pub(crate) fn settle_if_idle(&mut self) {
        if !self.is_writing()
            && let Some((number, _)) = self.unpersisted.back().copied()
        {
            self.persisted(number);
        }
    }

    /// A committed change reached its place in the log: returns the descriptor and configuration from here on. A change
    /// that does not fit leaves both as they are, on every replica alike.
    pub(crate) fn apply_change(&mut self, entry: &Entry) -> Result<(), ChangeError> {
        let change = ConfChange::decode(&entry.context)?;
        let conf = self.node.apply_conf_change(&change.to_raft()).map_err(|_| ChangeError::Unfit)?;
        self.end_lease();
        self.conf = convert::conf_from_raft(&conf);
        self.descriptor = descriptor_after(&self.descriptor, &change, &self.conf);
        Ok(())
    }

    /// A leader that the configuration no longer knows stops to lead (raft-rs leaves that to us).
    pub(crate) fn step_down_if_removed(&mut self) -> bool {
        let steps_down = self.node.raft.state == StateRole::Leader && !self.conf.is_voter(self.replica);
        if steps_down {
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
        steps_down
    }

    /// Our own randomness, so that a seed decides everything.
    fn draw_election_timeout(&mut self) {
        // Half as wide a range as in the dissertation (§9.3): those who wait longest decide how long nobody leads, and for a tie two
        // voters must also tick at the same moment, within the few milliseconds that a round of votes takes.
        let range = self.election_ticks..self.election_ticks + self.election_ticks.div_ceil(2);
        self.election_timeout = self.rng.random_range(range);
        self.keep_election_timeout();
    }

    /// raft-rs draws from a generator of its own whenever it resets, also when nothing changes that we see.
    pub(crate) fn keep_election_timeout(&mut self) {
        self.node.raft.set_randomized_election_timeout(self.election_timeout);
    }

    /// The replica at a glance.
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
            conf: self.conf.clone(),
            followers,
        }
    }

    /// The node that holds a replica of this group, as far as the group knows.
    #[must_use]
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.descriptor.node_of(replica).filter(|node| *node != NodeId::NONE)
    }
}
